"""Tile numbers for NVIDIA GPUs."""

from __future__ import annotations

from mlcrt.kernels.mma.library import Library as TensorCoreLibrary
from mlcrt.kernels.mma.library import WarpgroupLibrary
from mlcrt.kernels.simt import Library, Machine, Tiles
from mlcrt.kernels.simt.linear import LinearTiles

from .architecture import CudaArch
from .instructions import WARP, TensorCores, dot8, exchange, overlap, stream
from .warpgroup import Warpgroups

AMPERE, HOPPER = 80, 90


def tiles(arch: CudaArch) -> Tiles:
    """Three blocks of a product's 256 threads fit a multiprocessor: 132 of them from Hopper on, 108 on the A100."""
    return Tiles(LinearTiles(gemv_blocks=3 * multiprocessors(arch), gemv_resident=3), draw_threads=1024)


def multiprocessors(arch: CudaArch) -> int:
    return 132 if arch.oldest >= HOPPER else 108


def library(arch: CudaArch, kv_dtype: str) -> Library:
    """Code has to run on the oldest architecture named: tensor cores as used here came with Ampere, starting a kernel
    early with Hopper."""
    machine = Machine(WARP, exchange, dot8, overlap if arch.oldest >= HOPPER else None, stream)
    if arch.oldest < AMPERE:
        return Library(tiles(arch), kv_dtype, machine)
    if arch.warpgroups:
        return WarpgroupLibrary(tiles(arch), kv_dtype, machine, Warpgroups(), multiprocessors(arch))
    return TensorCoreLibrary(tiles(arch), kv_dtype, machine, TensorCores())
