"""Which kernel serves which project operator on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlcrt.kernels import Kernel

from mlcrt.quant.scheme import SCHEMES

from .attention import BLOCK, Attention, AttentionTiles, attention, kv_shapes, rope_append
from .elementwise import Embed, embed, finish_step, rotary_tables, softcap
from .linear import Linear, LinearTiles, linear
from .moe import Moe, moe


@dataclass(frozen=True)
class Tiles:
    linear: LinearTiles = field(default_factory=LinearTiles)
    attention: AttentionTiles = field(default_factory=AttentionTiles)


def _tokens(expr) -> int | None:
    """The leading dimension if it is fixed (one token), None if symbolic."""
    dim = expr.ty.shape[0]
    return int(dim) if hasattr(dim, "value") else None


def _suffix(tokens: int | None) -> str:
    return "decode" if tokens == 1 else "prefill"


class Library:
    """kv_block: positions in a block of this family's KV layout; kv_shapes: the layout itself."""

    kv_block = BLOCK
    kv_shapes = staticmethod(kv_shapes)

    def __init__(self, tiles: Tiles, kv_dtype: str):
        self.tiles, self.kv_dtype = tiles, kv_dtype

    def linear(self, a: dict, args: list) -> Kernel:
        op = Linear(
            SCHEMES[a["scheme"]], a["rows"], a["columns"], _tokens(args[0]), a.get("norm_eps"), bool(a["bias"]),
            a.get("gate"), bool(a["residual"]),
        )  # fmt: skip
        name = f"linear_{a['scheme']}_{_suffix(op.tokens)}"
        return Kernel(name, ("linear", op), lambda: linear(op, self.tiles.linear, name), args)

    def embed(self, a: dict, args: list) -> Kernel:
        op = Embed(SCHEMES[a["scheme"]], a["vocab"], a["hidden"], _tokens(args[-1]), a["scale"])
        return Kernel("embed", ("embed", op), lambda: embed(op, self.tiles.linear.native_f16), args)

    def rotary_tables(self, a: dict, args: list) -> Kernel:
        half, tokens, factor = int(args[0].ty.shape[0]), _tokens(args[2]), a["factor"]
        key = ("rotary_tables", half, tokens, factor)
        return Kernel("rotary_tables", key, lambda: rotary_tables(half, tokens, factor), args[:2])

    def _attention(self, a: dict, x) -> Attention:
        return Attention(
            a["heads"], a["kv_heads"], a["head_dim"], _tokens(x), self.kv_dtype, a.get("scale", 1.0), a.get("window"),
            a.get("softcap"), a.get("rotary_dim", 0), a.get("norm_eps"),
        )  # fmt: skip

    def rope_append(self, a: dict, args: list) -> Kernel:
        op, last = self._attention(a, args[0]), len(args) - 1
        key = ("rope_append", op)
        build = lambda: rope_append(op, self.tiles.attention)  # noqa: E731
        return Kernel("rope_append", key, build, args, inplace=[last - 1, last, -1])

    def attention(self, a: dict, args: list) -> Kernel:
        op = self._attention(a, args[0])
        name = f"attention_{_suffix(op.tokens)}"
        return Kernel(name, ("attention", op), lambda: attention(op, self.tiles.attention, name), args)

    def softcap(self, a: dict, args: list) -> Kernel:
        width, tokens, cap, lanes = int(args[0].ty.shape[1]), _tokens(args[0]), a["cap"], self.tiles.linear.lanes
        return Kernel("softcap", ("softcap", width, tokens, cap), lambda: softcap(width, tokens, cap, lanes), args)

    def finish_step(self, a: dict, args: list) -> Kernel:
        vocab, count, last = int(args[0].ty.shape[1]), 1 if len(args) == 4 else None, len(args) - 1
        build = lambda: finish_step(vocab, count, self.tiles.linear.lanes)  # noqa: E731
        return Kernel("finish_step", ("finish_step", vocab, count), build, args, inplace=[last - 2, last - 1, last])

    def moe(self, a: dict, args: list) -> Kernel:
        op = Moe(
            SCHEMES[a["gate_up_scheme"]], SCHEMES[a["down_scheme"]], a["hidden"], a["intermediate"], a["experts"],
            a["top_k"], bool(a["normalize"]), a["activation"], _tokens(args[0]),
        )  # fmt: skip
        return Kernel("moe", ("moe", op), lambda: moe(op, self.tiles.linear), args)
