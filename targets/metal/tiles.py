"""Tile numbers and lane exchange for Apple GPUs."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simt import Library, Machine, Tiles, simdgroup
from mlcrt.kernels.simt.experts_many import Products

from .architecture import THREADGROUP_BYTES, MetalArch

SIMDGROUP = 32


def _exchange(value, mask: int):
    """simd_shuffle_xor over the whole simdgroup."""
    return tirx.call_pure_extern(str(value.ty.dtype), "simd_shuffle_xor", value, T.uint16(mask))


@lru_cache
def _use_precise(name: str) -> None:
    """Lower tirx.NAME to Metal's precise:: form. TVM's runtime compiles with fast math, whose sine and cosine are off
    by 2**-13 within [-pi, pi] and undefined outside; angles of the rotary embedding grow with the position."""
    from tvm.tirx.op import register_intrin_lowering

    def lower(call):
        return tirx.call_pure_extern(str(call.ty.dtype), f"precise::{name}", call.args[0])

    register_intrin_lowering(f"tirx.{name}", "metal", f=lower, level=11)


def tiles(arch: MetalArch) -> Tiles:
    return Tiles()


class MetalLibrary(Library):
    """The GPU kernels, with simdgroup matrices where many tokens meet a weight."""

    def build_linear(self, op: Linear, name: str):
        if simdgroup.fits(op):
            return simdgroup.linear(op, self.machine, name)
        return super().build_linear(op, name)

    def expert_products(self, op: Moe) -> Products:
        return Products(self.tiles.linear, self.machine, simdgroup.TILE, simdgroup.product)


def library(arch: MetalArch, kv_dtype: str) -> Library:
    for name in ("sin", "cos"):
        _use_precise(name)
    return MetalLibrary(
        tiles(arch), kv_dtype, Machine(SIMDGROUP, _exchange, vector=4, shared_bytes=THREADGROUP_BYTES, any_angle=True)
    )
