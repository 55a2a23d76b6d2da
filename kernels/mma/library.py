"""The GPU library with the parts that tensor cores do better."""

from __future__ import annotations

from mlcrt.kernels import Space
from mlcrt.kernels.records import Attention, Linear, Moe
from mlcrt.kernels.simt import Library as SimtLibrary
from mlcrt.kernels.simt import Machine, Tiles, experts_half
from mlcrt.kernels.simt.activations import packs
from mlcrt.kernels.simt.attention import rope_append
from mlcrt.kernels.simt.experts_many import Products
from mlcrt.quant.scheme import SCHEMES

from . import alike, linear, paged, warpgroup
from .attention import decode_spaces, prefill_attention, rope_attention, supports, value_index
from .linear import PrefillTiles, prefill_linear, prepared_shape
from .unit import MatrixUnit, WarpgroupUnit


class Library(SimtLibrary):
    """`unit` is the target's tensor cores. A model whose attention they do not fit uses simt's throughout, because the
    V cache has an order of its own here."""

    chunk = 1024
    kv_layout = "mma"

    def __init__(self, tiles: Tiles, kv_dtype: str, machine: Machine, unit: MatrixUnit):
        super().__init__(tiles, kv_dtype, machine)
        self.unit, self.prefill_tiles = unit, PrefillTiles()

    def fuses_rope(self, a: dict) -> bool:
        """Whether rope_append and attention of one token become one kernel."""
        return supports(self._shape(a))

    def takes_packed(self, a: dict) -> bool:
        return packs(SCHEMES[a["scheme"]], a["columns"])

    def _shape(self, a: dict) -> Attention:
        return Attention(a["heads"], a["kv_heads"], a["head_dim"], 1, self.kv_dtype, 1.0)

    def build_rope_append(self, op: Attention):
        return rope_append(op, self.machine, value_index=value_index if supports(op) and not op.paged else None)

    def build_rope_attention(self, op: Attention, name: str):
        return rope_attention(op, self.tiles.attention, self.machine, self.unit, name)

    def rope_attention_scratch(self, op: Attention) -> list:
        return decode_spaces(op, self.tiles.attention)

    def attention_scratch(self, op: Attention, n) -> list:
        return [] if supports(op) and op.tokens is None and not op.alike else super().attention_scratch(op, n)

    def build_attention(self, op: Attention, name: str):
        if supports(op) and op.paged:
            return paged.attention(op, self.tiles.attention, self.machine, self.unit, name)
        if supports(op) and op.tokens is None:
            return prefill_attention(op, self.machine, self.unit, name)
        return super().build_attention(op, name)

    def alike_scratch(self, op: Linear, n) -> list:
        return alike.scratch(op, n) if alike.covers(op) else super().alike_scratch(op, n)

    def build_alike(self, op: Linear, name: str):
        if alike.covers(op):
            return alike.linear(op, self.machine, self.unit, name)
        return super().build_alike(op, name)

    def linear_scratch(self, op: Linear, n) -> list:
        return [Space(prepared_shape(op, n), "float16")] if op.many_in_half else []

    def expert_products(self, op: Moe) -> Products:
        if not experts_half.covers(op):
            return super().expert_products(op)
        return experts_half.HalfProducts(self.machine, linear.half(self.prefill_tiles, self.unit))

    def build_linear(self, op: Linear, name: str):
        if op.many_in_half:
            return prefill_linear(op, self.prefill_tiles, self.machine, self.unit, name)
        return super().build_linear(op, name)


class WarpgroupLibrary(Library):
    """Products of many tokens by warpgroups, on a chip of so many multiprocessors. Not in models with experts, whose
    prompts take longer with them, though each of the kernels alone takes less (see tests/perf/NOTES.md)."""

    def __init__(self, tiles: Tiles, kv_dtype: str, machine: Machine, unit: WarpgroupUnit, multiprocessors: int):
        super().__init__(tiles, kv_dtype, machine, unit)
        self.multiprocessors = multiprocessors

    @property
    def varies(self) -> bool:
        return not self.routed

    def linear_scratch(self, op: Linear, n) -> list:
        if op.many_in_half and not self.routed:
            return [Space(warpgroup.prepared_shape(op, n), "float16")]
        return super().linear_scratch(op, n)

    def build_linear(self, op: Linear, name: str):
        if op.many_in_half and not self.routed:
            return warpgroup.prefill_linear(op, self.multiprocessors, self.machine, self.unit, name)
        return super().build_linear(op, name)
