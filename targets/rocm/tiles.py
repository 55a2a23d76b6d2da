"""Tile numbers, lane exchange and packed arithmetic for AMD GPUs."""

from __future__ import annotations

from tvm import tirx

from mlcrt.kernels.simt import Library, Machine, Tiles
from mlcrt.kernels.simt.linear import LinearTiles

from . import assembly  # makes TVM build AMD code as this project wants it
from .architecture import RocmArch


def exchange(value, mask: int):
    """The value of lane `lane ^ mask`; mask is a power of two below the lanes of a wave (llvm/exchange-*.ll)."""
    bits = value if str(value.ty.dtype) == "int32" else tirx.reinterpret("int32", value)
    other = tirx.call_extern("int32", f"mlcrt_xor_{mask}", bits)
    return other if str(value.ty.dtype) == "int32" else tirx.reinterpret(str(value.ty.dtype), other)


def dot8(word, x):
    """Sum of (code - 8) * x over a word's codes (llvm/dot8-*.ll)."""
    return tirx.call_extern("float32", "mlcrt_dot8", tirx.reinterpret("int32", word), x)


def tiles(arch: RocmArch) -> Tiles:
    return Tiles(LinearTiles(gemv_staged=56 << 10))


class RocmLibrary(Library):
    def generating(self):
        return assembly.quiet()


def library(arch: RocmArch, kv_dtype: str) -> Library:
    return RocmLibrary(tiles(arch), kv_dtype, Machine(arch.lanes, exchange, dot8))
