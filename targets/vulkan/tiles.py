"""Tile numbers, lane exchange and half arithmetic for Vulkan devices by subgroup size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import IRBuilder

from mlcrt.errors import MlcrtError
from mlcrt.kernels import Kernel
from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simt import Library, Machine, Tiles, experts_many
from mlcrt.kernels.simt.attention import AttentionTiles
from mlcrt.kernels.simt.linear import LinearTiles

from . import build, matrix  # registers the code generator with TVM
from .architecture import Variant, VulkanArch

# A block has 256 threads at most where the subgroup allows it, so that it runs on every device; small subgroups get
# as many of them as fill a block of 64, large ones share a block of 4.
_SUBGROUPS = 8
_OPERATORS = ("linear", "rope_append", "attention", "finish_step", "moe")  # those whose kernels exchange between lanes


def _exchange(value, mask: int):
    """The value of lane `lane ^ mask`."""
    return tirx.call_pure_extern(str(value.ty.dtype), "subgroup_shuffle_xor", value, tirx.const(mask, "int32"))


def _dot8(word, x):
    return tirx.call_pure_extern("float32", "dot8_f16", word, x)


def machine(variant: Variant) -> Machine:
    return Machine(variant.lanes, _exchange, _dot8 if variant.half else None)


def tiles(variant: Variant) -> Tiles:
    # grids of the first variant are for all, and the others' tiles are multiples of its tiles
    small = variant.lanes == 8
    linear = LinearTiles(gemv_subgroups=_SUBGROUPS, gemm_tile=32 if small else 64, experts_staged=32 << 10)
    return Tiles(linear, AttentionTiles(subgroups=2 if small else 4))


class MatrixLibrary(Library):
    """Prefill's linear layers and experts with cooperative matrices."""

    def build_linear(self, op: Linear, name: str):
        return matrix.linear(op, self.machine, name)

    def expert_products(self, op: Moe):
        return experts_many.Products(
            self.tiles.linear, self.machine, matrix.TOKENS, matrix.product, slots_for=experts_many.TILE
        )


class VariantLibrary(Library):
    """The kernels of every variant of an architecture: the first is what the host calls, the others stand in for it."""

    def __init__(self, arch: VulkanArch, kv_dtype: str):
        first, *others = arch.variants
        super().__init__(tiles(first), kv_dtype, machine(first))
        self.first = first
        if others or first.lanes > 8:
            self.chunk = 512  # enough blocks to fill a GPU
        self.others = {
            v: (MatrixLibrary if v.matrices else Library)(tiles(v), kv_dtype, machine(v)) for v in others
        }

    def __getattribute__(self, name: str):
        if name not in _OPERATORS:
            return super().__getattribute__(name)
        return lambda attributes, args: self._alternatives(name, attributes, args)

    def _alternatives(self, operator: str, attributes: dict, args: list) -> Kernel:
        kernel: Kernel = getattr(super(), operator)(attributes, args)
        name = build.variant_name(kernel.name, self.first.tag)
        variants = {}
        for variant, library in self.others.items():
            other: Kernel = getattr(library, operator)(attributes, args)
            if variant.matrices and not (operator in ("linear", "moe") and matrix.suits(other.key[1])):
                continue
            if [tuple(map(str, s)) for s in other.scratch] != [tuple(map(str, s)) for s in kernel.scratch]:
                raise MlcrtError(f"{kernel.name} needs other workspaces for {variant.tag} than for {self.first.tag}")
            variants[variant.tag] = partial(_named, other.build)
        first = partial(_named, kernel.build)
        return replace(kernel, name=name, build=first, variants=variants, alternative_name=build.alternative_name)


def _named(builder):
    """The PrimFunc with a name for each argument and dimension, so that variants agree on which is which."""
    function = builder()
    for i, parameter in enumerate(function.params):
        if not parameter.name:
            IRBuilder.name(f"a{i}", parameter)
        for axis, extent in enumerate(parameter.ty.shape):
            if type(extent).__name__ == "Var" and not extent.name:
                IRBuilder.name(f"n{i}_{axis}", extent)
    return function


def library(arch: VulkanArch, kv_dtype: str) -> Library:
    return VariantLibrary(arch, kv_dtype)
