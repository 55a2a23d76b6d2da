"""Experts of many tokens where matrix instructions multiply float16 that is prepared in device memory.

The tokens are prepared once, and blocks gather their rows. The inner activations are written as the second product
wants them: float16, in its order, zero beyond the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.records import Moe

from .common import Machine
from .experts import Arguments
from .experts_many import Down, GateUp, Products
from .functions import activation
from .linear import LinearTiles


class Half(NamedTuple):
    """A product of prepared rows. tokens: of a block; padded(columns): of a prepared row; place(column): where it
    stands in there; prepare(k, prepared, n): emit the kernel that writes the n rows of k.x; product(k, prepared)."""

    tokens: int
    padded: Callable
    place: Callable
    prepare: Callable
    product: Callable


def covers(op: Moe) -> bool:
    """Both weights in schemes that compute in half precision."""
    return op.gate_up.dtype == op.down.dtype == "float16"


class HalfProducts(Products):
    def __init__(self, machine: Machine, half: Half):
        super().__init__(LinearTiles(), machine, half.tokens)
        self.half = half

    def operands(self, op: Moe, n) -> list[Space]:
        """The inner activations [n*top_k, padded intermediate] f16 by place, the tokens [n, padded hidden] f16."""
        shapes = ((n * op.top_k, self.half.padded(op.intermediate)), (n, self.half.padded(op.hidden)))
        return [Space(shape, "float16") for shape in shapes]

    def emit(self, a: Arguments) -> None:
        inner, tokens = a.spaces[5:]
        self.choose(a, None)
        up = _GateUp(a, self, a.x, inner, a.norm)
        self.half.prepare(up, tokens, a.n)
        self.half.product(up, tokens)
        self.half.product(Down(a, self, inner), inner)
        self.combine(a)


class _GateUp(GateUp):
    def __init__(self, a: Arguments, products: HalfProducts, *arguments):
        super().__init__(a, products, *arguments)
        self.half = products.half

    @property
    def span(self) -> int:
        return self.half.padded(self.op.units)

    def finish(self, row, unit, sums: list) -> None:
        value = activation(self.op.gate, sums[0]) * sums[1]
        kept = tirx.Select(unit < self.op.units, value, T.float32(0))
        T.buffer_store(self.y, tirx.Cast("float16", kept), [row, self.half.place(unit)])
