"""Experts of many tokens on tensor cores: linear.Product over tiles of one expert's entries.

The tokens are prepared once, and blocks gather their rows. The inner activations are written as the second product
wants them: float16, in its order, zero beyond the columns.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.records import Moe
from mlcrt.kernels.simt.common import Machine
from mlcrt.kernels.simt.experts import Arguments
from mlcrt.kernels.simt.experts_many import Down, GateUp, Products
from mlcrt.kernels.simt.functions import activation
from mlcrt.kernels.simt.linear import LinearTiles

from .linear import TOKENS, PrefillTiles, Product, padded, prepare
from .unit import MatrixUnit

WARP_ROWS = 64


class TensorCoreProducts(Products):
    def __init__(self, tiles: PrefillTiles, machine: Machine, unit: MatrixUnit):
        super().__init__(LinearTiles(), machine, TOKENS)
        self.prefill_tiles, self.unit = tiles, unit

    @staticmethod
    def covers(op: Moe) -> bool:
        """Both weights in schemes that compute in half precision."""
        return op.gate_up.dtype == op.down.dtype == "float16"

    def operands(self, op: Moe, n) -> list[Space]:
        """The inner activations [n*top_k, padded intermediate] f16 by place, the tokens [n, padded hidden] f16."""
        return [
            Space((n * op.top_k, padded(op.intermediate)), "float16"),
            Space((n, padded(op.hidden)), "float16"),
        ]

    def emit(self, a: Arguments) -> None:
        inner, tokens = a.spaces[5:]
        self.choose(a, None)
        up = _GateUp(a, self, a.x, inner, a.norm)
        prepare(up, tokens, a.n)
        for k, prepared in ((up, tokens), (Down(a, self, inner), inner)):
            Product(k, self.prefill_tiles, self.unit, prepared, WARP_ROWS).emit()
        self.combine(a)


class _GateUp(GateUp):
    @property
    def span(self) -> int:
        return padded(self.op.units)

    def finish(self, row, unit, sums: list) -> None:
        value = activation(self.op.gate, sums[0]) * sums[1]
        eight, place = tirx.floordiv(unit, 8), tirx.floormod(unit, 8)
        place = tirx.floormod(place, 4) * 2 + tirx.floordiv(place, 4)  # see ORDER
        kept = tirx.Select(unit < self.op.units, value, T.float32(0))
        T.buffer_store(self.y, tirx.Cast("float16", kept), [row, eight * 8 + place])
