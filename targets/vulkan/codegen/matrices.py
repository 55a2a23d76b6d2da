"""Cooperative matrices: 16x16 pieces that a subgroup holds together, named by small numbers.

    matrix_fill (c, value)                    accumulator c = value everywhere
    matrix_load_a (a, address, stride)        16x16 float16 of workgroup memory, rows `stride` elements apart
    matrix_load_b (b, address, stride)        the same, transposed: address points to the 16 columns' rows
    matrix_multiply_add (c, a, b)             c += a * b, float32
    matrix_store (c, address, stride)         accumulator → float32 workgroup memory

All subgroups of the workgroup must reach these calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import spirv
from .analysis import call_name, literal
from .dtypes import F16, F32, U32
from .errors import CodegenError

if TYPE_CHECKING:
    from .expressions import Expressions

_KINDS = {"a": (F16, spirv.MATRIX_A), "b": (F16, spirv.MATRIX_B), "c": (F32, spirv.MATRIX_ACCUMULATOR)}


class Matrices:
    """Emits the calls; a number's matrix is a private variable that drivers keep in registers."""

    def __init__(self, expressions: Expressions):
        self.x, self.m = expressions, expressions.m
        self._variables: dict[tuple[str, int], int] = {}

    def call(self, name: str, arguments: list) -> list[int]:
        m = self.m
        if name == "matrix_fill":
            number, value = arguments
            # the constituent of a matrix is the value of all its elements
            self._set("c", number, m.pure("CompositeConstruct", self._type("c"), self.x.scalar(value)))
        elif name in ("matrix_load_a", "matrix_load_b"):
            kind = name[-1]
            number, address, stride = arguments
            pointer, step = self._memory(address, stride)
            layout = m.constant(U32, spirv.ROW_MAJOR if kind == "a" else spirv.COLUMN_MAJOR)
            operands = (pointer, layout, step, spirv.NON_PRIVATE)
            self._set(kind, number, m.op("CooperativeMatrixLoadKHR", self._type(kind), *operands))
        elif name == "matrix_multiply_add":
            c, a, b = arguments
            operands = [self._get("a", a), self._get("b", b), self._get("c", c)]
            self._set("c", c, m.op("CooperativeMatrixMulAddKHR", self._type("c"), *operands))
        elif name == "matrix_store":
            number, address, stride = arguments
            pointer, step = self._memory(address, stride)
            value, layout = self._get("c", number), m.constant(U32, spirv.ROW_MAJOR)
            m.effect("CooperativeMatrixStoreKHR", pointer, value, layout, step, spirv.NON_PRIVATE)
        else:
            raise CodegenError(f"the function {name} is not known on Vulkan")
        return []

    def _type(self, kind: str) -> int:
        return self.m.matrix(*_KINDS[kind])

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
