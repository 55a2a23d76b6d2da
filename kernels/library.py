"""Operator attributes → kernel records: what all kernel libraries share.

A family of kernels (simd, simt) supplies the `build_*` methods; this class reads attributes and names kernels.
"""

from __future__ import annotations

import contextlib

from mlcrt.kernels import Kernel
from mlcrt.quant.scheme import SCHEMES

from .arguments import BLOCK, kv_shapes
from .records import Attention, Embed, Linear, Moe


def tokens_of(expr) -> int | None:
    """The leading dimension if it is fixed (one token), None if symbolic."""
    dim = expr.ty.shape[0]
    return int(dim) if hasattr(dim, "value") else None


def counts(expr, what: str) -> bool:
    """Whether the leading dimension is the symbolic one of this name."""
    return getattr(expr.ty.shape[0], "name", None) == what


def _suffix(tokens: int | None) -> str:
    return "decode" if tokens == 1 else "prefill"


# Dimensions as models/decoder.py names them: independent sequences, each to be computed as if it were alone; tokens of
# prompts that others cut into pieces.
BATCH, PIECES = "rows", "pieces"


class KernelLibrary:
    """One method per project operator (see mlcrt.compile.ops), each giving a `Kernel`.

    kv_block: positions in a block of the KV cache; kv_shapes: the shapes of a layer's cache; kv_layout: a name for the
    order of a block, which saved sessions depend on; chunk: most tokens of one
    prefill call, enough to amortise dequantisation and few enough for the activations to stay in the cache;
    score_chunk: the same where the logits of every position are kept; draws: whether the family has a kernel that draws
    tokens at random; batch: most sequences of one batched step, 0 if the family has no kernels for paged caches;
    skipped_passes: of TVM's own pipeline; varies: whether products of many tokens add in an order that goes by how many
    there are, unless Linear.steady forbids it; routed: whether the model at hand has experts; fuses_experts: whether
    the routed MLP takes the norm in front of it and the residual behind it.
    """

    chunk = 128
    score_chunk = 128
    draws = False
    batch = 0
    skipped_passes: tuple[str, ...] = ()
    varies = False
    routed = False
    fuses_experts = False
    kv_block = BLOCK
    kv_layout = "rows"
    kv_shapes = staticmethod(kv_shapes)

    def __init__(self, tiles, kv_dtype: str):
        self.tiles, self.kv_dtype = tiles, kv_dtype

    def linear(self, a: dict, args: list) -> Kernel:
        op = Linear(
            SCHEMES[a["scheme"]], a["rows"], a["columns"], tokens_of(args[0]), a.get("norm_eps"), bool(a["bias"]),
            a.get("gate"), bool(a["residual"]), counts(args[0], BATCH), "packed_in" in a, "packed_out" in a,
            self.varies and counts(args[0], PIECES),
        )  # fmt: skip
        name = f"linear_{a['scheme']}_{'batch' if op.alike else _suffix(op.tokens)}"
        scratch = self.linear_scratch(op, args[0].ty.shape[0])
        return Kernel(name, ("linear", op), lambda: self.build_linear(op, name), args, scratch=scratch)

    def embed(self, a: dict, args: list) -> Kernel:
        op = Embed(SCHEMES[a["scheme"]], a["vocab"], a["hidden"], tokens_of(args[-1]), a["scale"])
        return Kernel("embed", ("embed", op), lambda: self.build_embed(op), args)

    def rotary_tables(self, a: dict, args: list) -> Kernel:
        key = (int(args[0].ty.shape[0]), tokens_of(args[2]), a["factor"], "own" in a)
        return Kernel("rotary_tables", ("rotary_tables", *key), lambda: self.build_rotary_tables(*key), args[:2])

    def rope_append(self, a: dict, args: list) -> Kernel:
        op, last = self._attention(a, args[0]), len(args) - 1
        inplace = [last - 1, last, -1]
        return Kernel("rope_append", ("rope_append", op), lambda: self.build_rope_append(op), args, inplace)

    def fuses_rope(self, a: dict) -> bool:
        """Whether rope_append and attention of one token, with these attributes, are one kernel (rope_attention)."""
        return False

    def takes_packed(self, a: dict) -> bool:
        """Whether the product of one token with these attributes takes its activations packed (see records.Linear)."""
        return False

    def rope_attention(self, a: dict, args: list) -> Kernel:
        op, last = self._attention(a, args[0]), len(args) - 1
        name, scratch = "rope_attention", self.rope_attention_scratch(op)
        inplace = [last - 1, last, -1]
        return Kernel(name, (name, op), lambda: self.build_rope_attention(op, name), args, inplace, scratch)

    def attention(self, a: dict, args: list) -> Kernel:
        op = self._attention(a, args[0])
        name = f"attention_{'paged' if op.paged else _suffix(op.tokens)}"
        scratch = self.attention_scratch(op, args[0].ty.shape[0])
        return Kernel(name, ("attention", op), lambda: self.build_attention(op, name), args, scratch=scratch)

    def moe(self, a: dict, args: list) -> Kernel:
        op = Moe(
            SCHEMES[a["gate_up_scheme"]], SCHEMES[a["down_scheme"]], a["hidden"], a["intermediate"], a["experts"],
            a["top_k"], bool(a["normalize"]), a["activation"], tokens_of(args[0]), a.get("norm_eps"),
            "residual" in a,
        )  # fmt: skip
        name, scratch = f"moe_{_suffix(op.tokens)}", self.moe_scratch(op, args[0].ty.shape[0])
        return Kernel(name, ("moe", op), lambda: self.build_moe(op, name), args, scratch=scratch)

    def softcap(self, a: dict, args: list) -> Kernel:
        key = (int(args[0].ty.shape[1]), tokens_of(args[0]), a["cap"])
        return Kernel("softcap", ("softcap", *key), lambda: self.build_softcap(*key), args)

    def finish_step(self, a: dict, args: list) -> Kernel:
        last = len(args) - 1
        key = (int(args[0].ty.shape[1]), 1 if len(args) == 4 else None)
        inplace = [last - 2, last - 1, last]
        build = lambda: self.build_finish_step(*key)  # noqa: E731
        return Kernel("finish_step", ("finish_step", *key), build, args, inplace, self.finish_scratch())

    def draw(self, a: dict, args: list) -> Kernel:
        vocab = int(args[0].ty.shape[1])
        build, inplace = lambda: self.build_draw(vocab), [2, 3, 4]
        return Kernel("draw_token", ("draw", vocab), build, args, inplace, self.draw_scratch())

    def choose(self, a: dict, args: list) -> Kernel:
        vocab = int(args[0].ty.shape[1])
        return Kernel("choose", ("choose", vocab), lambda: self.build_choose(vocab), args, [0, -1, -1])

    def schedule(self, mod):
        """Schedule the functions that stock operators left behind; a CPU runs them as they are."""
        return mod

    def linear_scratch(self, op: Linear, n) -> list:
        """Workspaces that a linear kernel takes after its output."""
        return []

    def moe_scratch(self, op: Moe, n) -> list:
        """Workspaces that the kernels of a routed MLP take after their output."""
        return []

    def generating(self):
        """A context that TVM's code generation runs in."""
        return contextlib.nullcontext()

    def finish_scratch(self) -> list:
        """Shapes of float32 workspaces that the finish_step kernel takes last."""
        return []

    def draw_scratch(self) -> list:
        """Workspaces that the draw kernel takes last."""
        return []

    def attention_scratch(self, op: Attention, n) -> list:
        """Shapes of float32 workspaces that the attention kernel takes after its output."""
        return []

    def _attention(self, a: dict, x) -> Attention:
        return Attention(
            a["heads"], a["kv_heads"], a["head_dim"], tokens_of(x), self.kv_dtype, a.get("scale", 1.0),
            a.get("window"), a.get("softcap"), a.get("rotary_dim", 0), a.get("norm_eps"),
            "paged" in a, "packed_out" in a,
        )  # fmt: skip
