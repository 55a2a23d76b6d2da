"""Cooperative matrices: pieces that a subgroup holds together, named by small numbers.

    matrix_shape (m, n, k)                    sizes of all pieces of the kernel; 16 each without it
    matrix_fill (c, value)                    accumulator c [m, n] = value everywhere
    matrix_load_a (a, address, stride)        [m, k] float16 of workgroup memory, rows `stride` elements apart
    matrix_load_b (b, address, stride)        [k, n], transposed: address points to the n columns' rows of k
    matrix_load_rows (b, address, stride)     [k, n], rows of n
    matrix_load_c (c, address, stride)        [m, n] float32
    matrix_scale (c, d)                       c *= d, both accumulators, element by element
    matrix_multiply_add (c, a, b)             c += a * b, float32
    matrix_store (c, address, stride)         accumulator → float32 workgroup memory

The address is of an element of any workgroup buffer, and the stride in such elements: a buffer of words may hold the
float16 of two columns each, so that it is read as vectors of 16 bytes. All subgroups of the workgroup must reach these
calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import spirv
from .analysis import call_name, literal
from .dtypes import F16, F32, U32
from .errors import CodegenError

if TYPE_CHECKING:
    from .expressions import Expressions

# element, rows and columns as places in the shape, use
_KINDS = {
    "a": (F16, 0, 2, spirv.MATRIX_A),
    "b": (F16, 2, 1, spirv.MATRIX_B),
    "c": (F32, 0, 1, spirv.MATRIX_ACCUMULATOR),
}
_LOADS = {
    "matrix_load_a": ("a", spirv.ROW_MAJOR), "matrix_load_b": ("b", spirv.COLUMN_MAJOR),
    "matrix_load_rows": ("b", spirv.ROW_MAJOR), "matrix_load_c": ("c", spirv.ROW_MAJOR),
}  # fmt: skip


class Matrices:
    """Emits the calls; a number's matrix is a private variable that drivers keep in registers."""

    def __init__(self, expressions: Expressions):
        self.x, self.m = expressions, expressions.m
        self.shape = (16, 16, 16)
        self._variables: dict[tuple[str, int], int] = {}

    @property
    def requirement(self) -> str | None:
        """The feature that a device needs for the matrices in use; None if there are none."""
        return "matrix:{}x{}x{}:f16:f32".format(*self.shape) if self._variables else None

    def call(self, name: str, arguments: list) -> list[int]:
        m = self.m
        if name == "matrix_shape":
            if self._variables:
                raise CodegenError("matrix_shape must come before the kernel's first matrix")
            self.shape = tuple(literal(a) for a in arguments)
        elif name == "matrix_fill":
            number, value = arguments
            # the constituent of a matrix is the value of all its elements
            self._set("c", number, m.pure("CompositeConstruct", self._type("c"), self.x.scalar(value)))
        elif name in _LOADS:
            kind, order = _LOADS[name]
            number, address, stride = arguments
            pointer, step = self._memory(address, stride)
            layout = m.constant(U32, order)
            operands = (pointer, layout, step, spirv.NON_PRIVATE)
            self._set(kind, number, m.op("CooperativeMatrixLoadKHR", self._type(kind), *operands))
        elif name == "matrix_multiply_add":
            c, a, b = arguments
            operands = [self._get("a", a), self._get("b", b), self._get("c", c)]
            self._set("c", c, m.op("CooperativeMatrixMulAddKHR", self._type("c"), *operands))
        elif name == "matrix_scale":
            c, d = arguments
            self._set("c", c, m.op("FMul", self._type("c"), self._get("c", c), self._get("c", d)))
        elif name == "matrix_store":
            number, address, stride = arguments
            pointer, step = self._memory(address, stride)
            value, layout = self._get("c", number), m.constant(U32, spirv.ROW_MAJOR)
            m.effect("CooperativeMatrixStoreKHR", pointer, value, layout, step, spirv.NON_PRIVATE)
        else:
            raise CodegenError(f"the function {name} is not known on Vulkan")
        return []

    def _type(self, kind: str) -> int:
        dtype, rows, columns, use = _KINDS[kind]
        return self.m.matrix(dtype, self.shape[rows], self.shape[columns], use)

    def _variable(self, kind: str, number) -> int:
        key = (kind, literal(number))
        if key not in self._variables:
            self._variables[key] = self.m.local(self._type(kind))
        return self._variables[key]

    def _get(self, kind: str, number) -> int:
        return self.m.op("Load", self._type(kind), self._variable(kind, number))

    def _set(self, kind: str, number, value: int) -> None:
        self.m.effect("Store", self._variable(kind, number), value)

    def _memory(self, address, stride) -> tuple[int, int]:
        """Pointer and stride, both in units of the vectors that the array is made of."""
        if type(address).__name__ != "Call" or call_name(address) != "address_of":
            raise CodegenError("a matrix needs the address of a buffer element")
        load = address.args[0]
        pointer, unit = self.x.memory.element(load.source, load.indices[0])
        if literal(stride) % unit:
            raise CodegenError(f"a matrix with rows {literal(stride)} apart does not fit vectors of {unit}")
        return pointer, self.m.constant(U32, literal(stride) // unit)
