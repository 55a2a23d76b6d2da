"""Which kernel serves which project operator on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlcrt.kernels.library import KernelLibrary
from mlcrt.kernels.records import Attention, Embed, Linear, Moe

from .attention import AttentionTiles, attention, rope_append
from .choose import choose
from .elementwise import embed, finish_step, rotary_tables, softcap
from .linear import LinearTiles, linear
from .moe import moe


@dataclass(frozen=True)
class Tiles:
    linear: LinearTiles = field(default_factory=LinearTiles)
    attention: AttentionTiles = field(default_factory=AttentionTiles)


class Library(KernelLibrary):
    batch = 64
    skipped_passes = ("s_tir.CompactBufferAllocation",)  # no buffer here is too large, and finding that takes seconds

    def build_linear(self, op: Linear, name: str):
        return linear(op, self.tiles.linear, name)

    def build_embed(self, op: Embed):
        return embed(op, self.tiles.linear.native_f16)

    def build_rotary_tables(self, half: int, tokens: int | None, factor: float, own: bool):
        return rotary_tables(half, tokens, factor, own)

    def build_rope_append(self, op: Attention):
        return rope_append(op, self.tiles.attention)

    def build_attention(self, op: Attention, name: str):
        return attention(op, self.tiles.attention, name)

    def build_softcap(self, width: int, tokens: int | None, cap: float):
        return softcap(width, tokens, cap, self.tiles.linear.lanes)

    def build_finish_step(self, vocab: int, count: int | None):
        return finish_step(vocab, count, self.tiles.linear.lanes)

    def build_choose(self, vocab: int):
        return choose(vocab, self.tiles.linear.lanes)

    def build_moe(self, op: Moe, name: str):
        return moe(op, self.tiles.linear, name)
