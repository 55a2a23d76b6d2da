"""Tile numbers for CPUs: what fits the register file."""

from __future__ import annotations

from mlcrt.kernels.simd import Library, Tiles
from mlcrt.kernels.simd.attention import AttentionTiles
from mlcrt.kernels.simd.linear import LinearTiles

from .architecture import CpuArch


def tiles(arch: CpuArch) -> Tiles:
    """gemm_tokens x gemm_rows accumulators, plus gemm_tokens + 1 operands, must fit the vector registers."""
    tokens, rows = (4, 6) if arch.registers == 32 else (2, 4)
    linear = LinearTiles(lanes=arch.lanes, gemm_tokens=tokens, gemm_rows=rows, native_f16=arch.native_f16)
    return Tiles(linear, AttentionTiles(lanes=arch.lanes))


def library(arch: CpuArch, kv_dtype: str) -> Library:
    return Library(tiles(arch), kv_dtype)
