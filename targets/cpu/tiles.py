"""Tile numbers for CPUs: what fits the register file."""

from __future__ import annotations

from mlcrt.kernels.amx import AmxLibrary, AmxTiles
from mlcrt.kernels.simd import Library, Tiles
from mlcrt.kernels.simd.attention import AttentionTiles
from mlcrt.kernels.simd.linear import LinearTiles

from .architecture import CpuArch


def tiles(arch: CpuArch) -> Tiles:
    """gemm_tokens x gemm_rows accumulators, plus gemm_tokens + 1 operands, must fit the vector registers; so must
    twice alike_tokens x alike_rows, for the sum of a word and that of a row, plus alike_rows + 1.

    For ARM64 (32 registers, 4 lanes) that is 24 multiply-adds in 38 instructions of the inner loop; 8x3 and 8 rows of a
    matrix-vector product at once already spill, and vectors of 8 lanes do no more per instruction.
    """
    tokens, rows = (4, 6) if arch.registers == 32 else (2, 4)
    linear = LinearTiles(
        lanes=arch.lanes,
        gemm_tokens=tokens,
        gemm_rows=rows,
        native_f16=arch.native_f16,
        alike_tokens=(4, 2) if arch.registers == 32 else (2,),
    )
    return Tiles(linear, AttentionTiles(lanes=arch.lanes))


def library(arch: CpuArch, kv_dtype: str) -> Library:
    if arch.amx:
        return AmxLibrary(tiles(arch), AmxTiles(), kv_dtype)
    return Library(tiles(arch), kv_dtype)
