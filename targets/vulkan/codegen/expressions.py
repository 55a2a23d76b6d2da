"""TensorIR expressions → lists of ids, one per lane."""

from __future__ import annotations

from collections.abc import Callable

from . import dtypes
from .analysis import Analysis, literal, subexpressions
from .arithmetic import BINARY_NODES, Arithmetic
from .builder import Module
from .dtypes import BOOL
from .errors import CodegenError
from .intrinsics import Intrinsics
from .mathlib import MathLibrary
from .memory import Memory

_EAGER = {"Call", "TensorLoad"}  # what makes both sides of a conditional worth (or in need of) branching


class Expressions:
    """Evaluates expressions of one kernel into its module."""

    def __init__(self, module: Module, analysis: Analysis):
        self.m = module
        self.a = Arithmetic(module)
        self.math = MathLibrary(self.a)
        self.values: dict = {}
        self.memory = Memory(self.a, analysis, self.lanes)
        self.intrinsics = Intrinsics(self)
        self._visit: dict[str, Callable] = {
            "Var": self._variable, "IntImm": self._constant, "FloatImm": self._constant, "Cast": self._cast,
            "Not": self._not, "BitwiseNot": self._bit_not, "Select": self._select, "Let": self._let,
            "Ramp": self._ramp, "Broadcast": self._broadcast, "Shuffle": self._shuffle, "TensorLoad": self._load,
            "Call": self._call, **dict.fromkeys(BINARY_NODES, self._binary),
        }  # fmt: skip

    def lanes(self, expr) -> list[int]:
        """The value of an expression."""
        visit = self._visit.get(type(expr).__name__)
        if visit is None:
            raise CodegenError(f"the expression {type(expr).__name__} is not supported on Vulkan")
        return visit(expr)

    def scalar(self, expr) -> int:
        """The value of an expression of one lane."""
        values = self.lanes(expr)
        if len(values) != 1:
            raise CodegenError(f"a scalar was expected where {len(values)} lanes are")
        return values[0]

    def spread(self, expr, lanes: int) -> list[int]:
        """Values of an expression, repeated where it has one lane and more are wanted."""
        values = self.lanes(expr)
        return values * lanes if len(values) == 1 else values

    # ---- nodes

    def _variable(self, var) -> list[int]:
        if var not in self.values:
            raise CodegenError(f"the variable {var.name} is used before it has a value")
        return self.values[var]

    def _constant(self, expr) -> list[int]:
        dtype = dtypes.of(expr)[0]
        if dtype.is_bfloat:
            return [self.a.cast(dtype, dtypes.F32, self.m.constant(dtypes.F32, expr.value))]
        return [self.m.constant(dtype, expr.value)]

    def _binary(self, expr) -> list[int]:
        dtype, lanes = dtypes.of(expr.a)
        lanes = max(lanes, dtypes.of(expr.b)[1])
        name = type(expr).__name__
        pairs = zip(self.spread(expr.a, lanes), self.spread(expr.b, lanes), strict=True)
        return [self.a.binary(name, dtype, a, b) for a, b in pairs]

    def _cast(self, expr) -> list[int]:
        to, of = dtypes.of(expr)[0], dtypes.of(expr.value)[0]
        return [self.a.cast(to, of, value) for value in self.lanes(expr.value)]

    def _not(self, expr) -> list[int]:
        return [self.a.logical_not(value) for value in self.lanes(expr.a)]

    def _bit_not(self, expr) -> list[int]:
        dtype = dtypes.of(expr)[0]
        return [self.a.bit_not(dtype, value) for value in self.lanes(expr.a)]

    def _select(self, expr) -> list[int]:
        dtype, lanes = dtypes.of(expr)
        conditions = self.spread(expr.condition, lanes)
        yes, no = self.spread(expr.true_value, lanes), self.spread(expr.false_value, lanes)
        return [self.a.select(dtype, c, a, b) for c, a, b in zip(conditions, yes, no, strict=True)]

    def _let(self, expr) -> list[int]:
        self.values[expr.var] = self.lanes(expr.value)
        return self.lanes(expr.body)

    def _ramp(self, expr) -> list[int]:
        dtype, lanes = dtypes.of(expr)
        base, stride = self.scalar(expr.base), self.scalar(expr.stride)
        known = literal(expr.stride)
        out = [base]
        for lane in range(1, lanes):
            if known is None:
                step = self.a.binary("Mul", dtype, stride, self.m.constant(dtype, lane))
            else:
                step = self.m.constant(dtype, known * lane)
            out.append(self.a.binary("Add", dtype, base, step))
        return out

    def _broadcast(self, expr) -> list[int]:
        return self.lanes(expr.value) * dtypes.of(expr)[1]

    def _shuffle(self, expr) -> list[int]:
        values = [lane for vector in expr.vectors for lane in self.lanes(vector)]
        indices = [literal(index) for index in expr.indices]
        if None in indices:
            raise CodegenError("a shuffle needs constant lane numbers on Vulkan")
        return [values[index] for index in indices]

    def _load(self, expr) -> list[int]:
        if type(expr.indices[0]).__name__ == "Broadcast":
            return self.memory.load(expr.source, [expr.indices[0].value]) * dtypes.of(expr.indices[0])[1]
        return self.memory.load(expr.source, list(expr.indices))

    def _call(self, expr) -> list[int]:
        return self.intrinsics.call(expr)

    # ---- control flow inside expressions

    def conditional(self, condition, yes, no) -> list[int]:
        """if_then_else: only the chosen side is evaluated where that can be told."""
        dtype, lanes = dtypes.of(yes)
        plain = not any(type(e).__name__ in _EAGER for side in (yes, no) for e in subexpressions(side))
        chosen = self.scalar(condition)
        if plain:
            pairs = zip(self.spread(yes, lanes), self.spread(no, lanes), strict=True)
            return [self.a.select(dtype, chosen, a, b) for a, b in pairs]
        ends: list[tuple[list[int], int]] = []

        def side(expr) -> Callable[[], None]:
            return lambda: ends.append((self.spread(expr, lanes), self.m.block))

        self.branch(chosen, side(yes), side(no))
        (a, a_block), (b, b_block) = ends
        type_id = self.m.type(dtype)
        return [self.m.op("Phi", type_id, p, a_block, q, b_block) for p, q in zip(a, b, strict=True)]

    def branch(self, condition: int, yes: Callable[[], None], no: Callable[[], None] | None) -> None:
        """A structured selection; each side emits its own code."""
        m = self.m
        first, merge = m.new_id(), m.new_id()
        second = m.new_id() if no else merge
        m.effect("SelectionMerge", merge, 0)
        m.end("BranchConditional", condition, first, second)
        for label, emit in ((first, yes), (second, no)):
            if emit is None:
                continue
            m.begin(label)
            with m.scope():
                emit()
            m.end("Branch", merge)
        m.begin(merge)

    def condition(self, expr) -> int:
        """A scalar truth value."""
        dtype = dtypes.of(expr)[0]
        return self.a.cast(BOOL, dtype, self.scalar(expr))
