"""Tile numbers, lane exchange and half arithmetic for Vulkan devices by subgroup size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import IRBuilder

from mlcrt.errors import MlcrtError
from mlcrt.kernels import Kernel
from mlcrt.kernels.records import Attention, Linear, Moe
from mlcrt.kernels.simt import Library, Machine, Tiles, experts_many
from mlcrt.kernels.simt.attention import AttentionTiles
from mlcrt.kernels.simt.linear import LinearTiles

from . import build, experts, flash, matrix, plain, rope  # registers the code generator with TVM
from .architecture import Variant, VulkanArch
from .matrix import MatrixTiles

# A block has 256 threads at most where the subgroup allows it, so that it runs on every device; small subgroups get
# as many of them as fill a block of 64, large ones share a block of 4.
_SUBGROUPS = 8
# Workgroup memory that drivers have at least (the specification asks for half of it), and NVIDIA's. A device of 32
# lanes that has less takes the kernels for 16.
_SHARED, _NVIDIA_SHARED = 32 << 10, 48 << 10
# those whose kernels exchange between lanes
_OPERATORS = ("linear", "rope_append", "attention", "rope_attention", "finish_step", "choose", "moe")


def _exchange(value, mask: int):
    """The value of lane `lane ^ mask`."""
    return tirx.call_pure_extern(str(value.ty.dtype), "subgroup_shuffle_xor", value, tirx.const(mask, "int32"))


def _dot8(word, x):
    return tirx.call_pure_extern("float32", "dot8_f16", word, x)


def machine(variant: Variant) -> Machine:
    shared = _NVIDIA_SHARED if variant.lanes == 32 else _SHARED
    return Machine(variant.lanes, _exchange, _dot8 if variant.half else None, shared_bytes=shared)


def tiles(variant: Variant) -> Tiles:
    # grids of the first variant are for all, and the others' tiles are multiples of its tiles
    small = variant.lanes == 8
    linear = LinearTiles(gemv_subgroups=_SUBGROUPS, gemm_tile=32 if small else 64, experts_staged=32 << 10)
    return Tiles(linear, AttentionTiles(subgroups=2 if small else 4))


def matrix_tiles(variant: Variant, op: Linear) -> MatrixTiles:
    """How a variant with matrices computes a layer: as measured on an H100 with 512 tokens, of which a layer with few
    rows makes too few large tiles to go round."""
    whole = op.columns % 64 == 0
    if variant.lanes < 32:  # registers hold fewer sums; not measured
        return MatrixTiles(64, 64, 32, 32, 32, shape=variant.matrix)
    if op.rows < 1536:
        return MatrixTiles(64, 64, 64, 32, 32) if whole else MatrixTiles(64, 64, 32, 32, 32)
    if op.rows < 3072:
        return MatrixTiles(64, 128, 32, 32, 32)
    return MatrixTiles(128, 128, 64, 64, 64, double=False) if whole else MatrixTiles(128, 128, 32, 64, 32)


class KindLibrary(Library):
    """The kernels of one variant; `mixed`: in a library that has a variant with matrices."""

    def __init__(self, variant: Variant, kv_dtype: str, mixed: bool):
        super().__init__(tiles(variant), kv_dtype, machine(variant))
        self.variant, self.mixed = variant, mixed

    def _prepares(self, op: Linear) -> bool:
        """Whether a layer's kernels are those of a library with matrices."""
        return self.mixed and matrix.suits(op)

    def linear_scratch(self, op: Linear, n) -> list:
        return [matrix.prepared_shape(op, n)] if self._prepares(op) else []

    def build_linear(self, op: Linear, name: str):
        if not self._prepares(op):
            return super().build_linear(op, name)
        if self.variant.matrices:
            return matrix.linear(op, matrix_tiles(self.variant, op), self.machine, name)
        return plain.linear(op, self.tiles.linear, self.machine, name)

    def build_attention(self, op: Attention, name: str):
        if self.variant.matrices:
            return flash.attention(op, self.variant.matrix, self.machine, name)
        return super().build_attention(op, name)

    def fuses_rope(self, a: dict) -> bool:
        return True

    def build_rope_attention(self, op: Attention, name: str):
        return rope.rope_attention(op, self.tiles.attention, self.machine, name)

    def rope_attention_scratch(self, op: Attention) -> list:
        return self.attention_scratch(op, 1)

    def stands_in(self, operator: str, op) -> bool:
        """Whether this variant has kernels of its own for an operator."""
        if not self.variant.matrices:
            return True
        if operator == "attention":
            return flash.suits(op, self.tiles.attention.splits_of(op))
        if operator == "moe":
            return self.variant.lanes == experts.LANES and self.variant.matrix == experts.SHAPE and experts.suits(op)
        return operator == "linear" and matrix.suits(op)

    def expert_products(self, op: Moe):
        if not self.variant.matrices:
            return super().expert_products(op)
        return experts_many.Products(
            self.tiles.linear, self.machine, experts.TOKENS, experts.product, slots_for=experts_many.TILE
        )


class VariantLibrary(KindLibrary):
    """The kernels of every variant of an architecture: the first is what the host calls, the others stand in for it."""

    def __init__(self, arch: VulkanArch, kv_dtype: str):
        first, *others = arch.variants
        mixed = any(v.matrices for v in others)
        super().__init__(first, kv_dtype, mixed)
        self.first = first
        if others or first.lanes > 8:
            self.chunk = 512  # enough blocks to fill a GPU
        self.others = {v: KindLibrary(v, kv_dtype, mixed) for v in others}

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
            if not library.stands_in(operator, other.key[1]):
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
