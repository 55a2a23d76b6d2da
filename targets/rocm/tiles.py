"""Tile numbers, lane exchange and packed arithmetic for AMD GPUs."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import wmma
from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simt import Library, Machine, Tiles, experts_half
from mlcrt.kernels.simt.attention import AttentionTiles
from mlcrt.kernels.simt.experts_many import Products
from mlcrt.kernels.simt.linear import LinearTiles

from . import assembly  # makes TVM build AMD code as this project wants it
from .architecture import RocmArch


def exchange(value, mask: int):
    """The value of lane `lane ^ mask`; mask is a power of two below the lanes of a wave (llvm/exchange-*.ll)."""
    bits = value if str(value.ty.dtype) == "int32" else tirx.reinterpret("int32", value)
    other = tirx.call_extern("int32", f"mlcrt_xor_{mask}", bits)
    return other if str(value.ty.dtype) == "int32" else tirx.reinterpret(str(value.ty.dtype), other)


def dot8(word, x):
    """Sum of (code - 8) * x over a word's codes (llvm/dot8.ll)."""
    return tirx.call_extern("float32", "mlcrt_dot8", tirx.reinterpret("int32", word), x)


def dot32(words: list, high, x: list):
    """Sum of (code - 4) * x over a group's codes (llvm/dot32.ll)."""
    bits = [tirx.reinterpret("int32", v) for v in (*words, high)]
    return tirx.call_extern("float32", "mlcrt_dot32", *bits, *x)


def divide() -> None:
    """Instructions stay on their side (llvm/divide.ll)."""
    T.evaluate(tirx.call_extern("void", "mlcrt_divide"))


THREADS = 256  # of a workgroup at most, see architecture.chip_target
LDS_BYTES = 64 << 10  # of a workgroup at most


def tiles(arch: RocmArch) -> Tiles:
    """Work is shared out among the compute units of the largest chip: 20 subgroups for each when multiplying by a
    weight, 4 workgroups for each in attention. A small chip loses little by more slices than it needs."""
    cus = max(chip.cus for chip in arch.chips)
    linear = LinearTiles(gemv_fill=20 * cus, gemv_subgroups=THREADS // arch.lanes, gemv_staged=63 << 10)
    return Tiles(linear, AttentionTiles(subgroups=128 // arch.lanes, blocks=4 * cus))


def _of_lane(function: str, lane, *more: int):
    return tirx.call_pure_extern("int32", f"mlcrt_{function}", lane, *(tirx.const(i, "int32") for i in more))


# RDNA: which fragment a lane holds is the chip's (llvm/fragments-*.ll), so that one kernel serves them all
RDNA = wmma.Fragments(
    lanes=32,
    columns=16,
    held=16,
    results=8,
    column=lambda lane: _of_lane("fragment_column", lane),
    row=lambda lane, i: _of_lane("result_row", lane, i),
    product=lambda a, b, c: tirx.call_extern("float32x8", "mlcrt_product", a, b, c),
)
CDNA = wmma.Fragments(
    lanes=64,
    columns=32,
    held=8,
    results=4,
    column=lambda lane: tirx.floordiv(lane, 16) * 8,
    row=lambda lane, i: tirx.floordiv(lane, 16) * 4 + i,
    product=lambda a, b, c: tirx.call_extern("float32x4", "mlcrt_product64", a, b, c),
)


def fragments(arch: RocmArch) -> wmma.Fragments | None:
    """How waves multiply matrices; None where some chip of a list can not, or they have waves of different sizes. Chips
    of 32 lanes without WMMA hold RDNA3's fragments and use dot products."""
    if all(chip.lanes == 32 for chip in arch.chips):
        return RDNA
    return CDNA if all(chip.matrix == "mfma" for chip in arch.chips) else None


class RocmLibrary(Library):
    """`fragments`: how many tokens go through 16 x 16 products of a wave, None if they do not."""

    def __init__(self, tiles: Tiles, kv_dtype: str, machine: Machine, fragments: wmma.Fragments | None):
        super().__init__(tiles, kv_dtype, machine)
        self.fragments = fragments

    def generating(self):
        return assembly.quiet()

    def build_linear(self, op: Linear, name: str):
        if self.fragments and op.many_in_half:
            return wmma.prefill_linear(op, self.machine, self.fragments, name)
        return super().build_linear(op, name)

    def expert_products(self, op: Moe) -> Products:
        if not self.fragments or not experts_half.covers(op):
            return super().expert_products(op)
        return experts_half.HalfProducts(self.machine, wmma.half(self.fragments))

    def linear_scratch(self, op: Linear, n) -> list:
        return [wmma.prepared_shape(op, n)] if self.fragments and op.many_in_half else super().linear_scratch(op, n)


def library(arch: RocmArch, kv_dtype: str) -> Library:
    machine = Machine(arch.lanes, exchange, dot8, shared_bytes=LDS_BYTES, dot32=dot32, part=divide)
    return RocmLibrary(tiles(arch), kv_dtype, machine, fragments(arch))
