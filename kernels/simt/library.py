"""Which kernel serves which project operator on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlcrt.errors import MlcrtError
from mlcrt.kernels import Kernel
from mlcrt.kernels.library import KernelLibrary
from mlcrt.kernels.records import Attention, Embed, Linear

from .attention import AttentionTiles, attention, rope_append, workspace_shape
from .common import Machine
from .draw import draw, draw_scratch
from .elementwise import embed, finish_scratch, finish_step, rotary_tables, softcap
from .linear import LinearTiles, linear


@dataclass(frozen=True)
class Tiles:
    linear: LinearTiles = field(default_factory=LinearTiles)
    attention: AttentionTiles = field(default_factory=AttentionTiles)


class Library(KernelLibrary):
    draws = True

    def __init__(self, tiles: Tiles, kv_dtype: str, machine: Machine):
        super().__init__(tiles, kv_dtype)
        self.machine = machine

    def schedule(self, mod):
        from tvm.s_tir import dlight

        gpu = dlight.gpu
        return dlight.ApplyDefaultSchedule(gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())(mod)

    def build_linear(self, op: Linear, name: str):
        return linear(op, self.tiles.linear, self.machine, name)

    def build_embed(self, op: Embed):
        return embed(op, self.machine)

    def build_rotary_tables(self, half: int, tokens: int | None, factor: float, own: bool):
        return rotary_tables(half, tokens, factor, self.machine)

    def build_rope_append(self, op: Attention):
        return rope_append(op, self.machine)

    def build_attention(self, op: Attention, name: str):
        return attention(op, self.tiles.attention, self.machine, name)

    def attention_scratch(self, op: Attention, n) -> list:
        return [workspace_shape(op, self.tiles.attention.splits_of(op), n)]

    def finish_scratch(self) -> list:
        return finish_scratch()

    def build_softcap(self, width: int, tokens: int | None, cap: float):
        return softcap(width, tokens, cap, self.machine)

    def build_finish_step(self, vocab: int, count: int | None):
        return finish_step(vocab, count, self.machine)

    def draw_scratch(self) -> list:
        return draw_scratch()

    def build_draw(self, vocab: int):
        return draw(vocab, self.machine)

    def moe(self, a: dict, args: list) -> Kernel:
        raise MlcrtError("mixture-of-experts models run on the CPU target only so far; use --target cpu")
