"""What is known about a kernel before any of it is emitted: ranges, which buffers are written, widths of accesses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import tvm
from tvm import tirx
from tvm.ir import Range

from . import dtypes
from .errors import CodegenError

_EXPRESSION_FIELDS = {
    "Not": ("a",), "BitwiseNot": ("a",), "Cast": ("value",), "Select": ("condition", "true_value", "false_value"),
    "TensorLoad": ("indices",), "Call": ("args",), "Ramp": ("base", "stride"), "Broadcast": ("value",),
    "Let": ("value", "body"), "Shuffle": ("vectors", "indices"),
}  # fmt: skip
_STATEMENT_EXPRESSIONS = {
    "For": ("min", "extent", "step"), "While": ("condition",), "IfThenElse": ("condition",), "Bind": ("value",),
    "BufferStore": ("value", "indices"), "Evaluate": ("value",), "AttrStmt": ("value",), "AssertStmt": ("condition",),
}  # fmt: skip
_STATEMENT_CHILDREN = {
    "SeqStmt": ("seq",), "For": ("body",), "While": ("body",), "IfThenElse": ("then_case", "else_case"),
    "AttrStmt": ("body",),
}  # fmt: skip
MAX_ACCESS_BYTES = 16


def _fields(node, names: tuple[str, ...]) -> Iterator:
    for name in names:
        value = getattr(node, name, None)
        if value is None:
            continue
        if isinstance(value, (list, tuple)) or type(value).__name__ == "Array":
            yield from value
        else:
            yield value


def call_name(call) -> str:
    """Name of an intrinsic without its dialect: 'exp' for tirx.exp, 'if_then_else' for prim.if_then_else."""
    return call.op.name.split(".", 1)[1]


def subexpressions(expr) -> Iterator:
    """`expr` and everything below it."""
    yield expr
    for child in _fields(expr, _EXPRESSION_FIELDS.get(type(expr).__name__, ("a", "b"))):
        yield from subexpressions(child)


def statements(stmt) -> Iterator:
    """`stmt` and every statement inside, outer first."""
    yield stmt
    for child in _fields(stmt, _STATEMENT_CHILDREN.get(type(stmt).__name__, ())):
        yield from statements(child)


@dataclass(frozen=True)
class Contiguous:
    """An access to `lanes` neighbouring scalars from the scalar index `start` on, which is a multiple of `aligned`
    (a power of two no larger than MAX_ACCESS_BYTES in bytes)."""

    start: tvm.ir.Expr
    lanes: int
    aligned: int


@dataclass
class Usage:
    """How the memory behind a parameter or an allocation is used."""

    loaded: bool = False
    stored: bool = False


@dataclass
class View:
    """All buffers of one scalar type on one allocation: the scalars [low, high) that are touched, as far as that can
    be told, else up to `limit`, the end of the allocation (None: not a constant); the most and the fewest in one
    aligned access."""

    limit: int | None
    low: int
    high: int
    widest: int = 1
    narrowest: int = MAX_ACCESS_BYTES

    def touch(self, first: int, last: int) -> None:
        self.low = min(self.low, max(0, first))
        self.high = max(self.high, min(self.limit or 0, last + 1))


@dataclass
class Analysis:
    """Facts about one lowered kernel. Roots are parameters and allocated buffers; views share their root's usage."""

    function: tirx.PrimFunc
    analyzer: tvm.sym.Analyzer = field(default_factory=tvm.sym.Analyzer)
    roots: dict = field(default_factory=dict)  # buffer → root variable
    usage: dict = field(default_factory=dict)  # root → Usage
    views: dict = field(default_factory=dict)  # (allocation, scalar type) → View
    used: set = field(default_factory=set)  # variables that appear in an expression
    threads: dict[str, int] = field(default_factory=dict)  # threadIdx.* → extent
    synchronises: bool = False
    matrices: bool = False  # cooperative matrices, which bring the Vulkan memory model
    unaligned: set = field(default_factory=set)  # buffers and pointers

    def __post_init__(self):
        # kept alive: dictionary keys compare by object identity
        self._statements = list(statements(self.function.body))
        for stmt in self._statements:
            self._bind(stmt)
        for stmt in self._statements:
            self._note(stmt)

    def _bind(self, stmt) -> None:
        kind = type(stmt).__name__
        if kind == "For" and (stmt.step is None or literal(stmt.step) == 1):
            self.analyzer.bind(stmt.loop_var, Range.from_min_extent(stmt.min, stmt.extent))
        elif kind == "Bind" and is_pointer(stmt.var):
            self.roots[stmt.var] = self.root_of_pointer(stmt.value)
            self._note_alignment(stmt.var, stmt.value)
        elif kind == "Bind" and dtypes.of(stmt.value)[0].is_integer and dtypes.of(stmt.value)[1] == 1:
            # the facts only: binding the value would let the analyzer expand long chains of lets into each other
            self.analyzer.update(stmt.var, self.analyzer.const_int_bound(stmt.value))
            self.analyzer.update(stmt.var, self.analyzer.modular_set(stmt.value))
        elif kind == "AttrStmt" and stmt.attr_key == "thread_extent":
            self.analyzer.bind(stmt.node.var, Range(0, stmt.value))
            tag = str(stmt.node.thread_tag)
            if tag.startswith("threadIdx"):
                extent = literal(stmt.value)
                if extent is None:
                    raise CodegenError(f"the extent of {tag} is not a constant, which Vulkan needs")
                self.threads[tag] = max(extent, self.threads.get(tag, 1))
        elif kind == "AllocBuffer":
            self._declare(stmt.buffer, stmt.buffer)
        elif kind == "DeclBuffer":
            self._declare(stmt.buffer, self.root_of_pointer(stmt.data))
            self._note_alignment(stmt.buffer, stmt.data)

    def _note_alignment(self, target, data) -> None:
        """Nothing is known about the alignment of a pointer with a byte offset, nor of what is made from it."""
        if (type(data).__name__ == "Call" and call_name(data) != "buffer_data") or data in self.unaligned:
            self.unaligned.add(target)

    def _declare(self, buffer, root) -> None:
        self.roots[buffer] = root
        self.usage.setdefault(root, Usage())
        if is_pointer(root):
            return
        dtype, lanes = dtypes.parse(str(buffer.ty.dtype))
        if buffer.same_as(root):
            elements = element_count(buffer)
            limit = None if elements is None else elements * lanes
            self.views[root, dtype] = View(limit, 0, limit or 0)
        elif (root, dtype) not in self.views:
            # stock lowering gives such views indices from the start of the allocation, past their own shape
            of, of_lanes = dtypes.parse(str(root.ty.dtype))
            elements = element_count(root)
            limit = None if elements is None else elements * of_lanes * of.size // dtype.size
            self.views[root, dtype] = View(limit, limit or 0, 0)

    def root_of_pointer(self, data):
        """The parameter or allocation behind a pointer expression."""
        if type(data).__name__ == "Call":
            name = call_name(data)
            if name == "buffer_data":
                return self.roots[data.args[0]]
            if name in ("ptr_byte_offset", "handle_add_byte_offset"):
                return self.root_of_pointer(data.args[0])
            raise CodegenError(f"a buffer made from {name} is not supported on Vulkan")
        return self.roots.get(data, data)

    def _note(self, stmt) -> None:
        kind = type(stmt).__name__
        if kind == "BufferStore":
            self._access(stmt.buffer, stmt.indices, store=True)
        for top in _fields(stmt, _STATEMENT_EXPRESSIONS.get(kind, ())):
            for expr in subexpressions(top):
                node = type(expr).__name__
                if node == "Var":
                    self.used.add(expr)
                elif node == "TensorLoad":
                    self._access(expr.source, expr.indices, store=False)
                elif node == "Call":
                    self._call(expr)

    def _call(self, call) -> None:
        name = call_name(call)
        if name == "tvm_storage_sync":
            self.synchronises = True
        elif name == "call_extern":
            self.matrices |= call.args[0].value.startswith("matrix_")
        elif name in ("address_of", "tvm_access_ptr"):  # an atomic reads and writes behind it
            target = call.args[0] if name == "address_of" else call.args[1]
            root = self.roots[target.source] if type(target).__name__ == "TensorLoad" else self.root_of_pointer(target)
            for (owner, _), view in self.views.items():
                view.narrowest = 1 if owner.same_as(root) else view.narrowest
            self.usage[root].loaded = self.usage[root].stored = True

    def _access(self, buffer, indices, store: bool) -> None:
        root = self.roots[buffer]
        self.usage[root].stored |= store
        self.usage[root].loaded |= not store
        dtype, per_element = dtypes.parse(str(buffer.ty.dtype))
        view = self.views.get((root, dtype))
        if view is None:
            return
        access = self.contiguous(buffer, indices)
        if access is None:
            bound = self.analyzer.const_int_bound(indices[0])
            offset = literal(buffer.ty.elem_offset) or 0
            view.touch((bound.min_value + offset) * per_element, (bound.max_value + offset + 1) * per_element - 1)
            view.narrowest = 1
        else:
            bound = self.analyzer.const_int_bound(access.start)
            view.touch(bound.min_value, bound.max_value + access.lanes - 1)
            view.widest = max(view.widest, access.aligned)
            view.narrowest = min(view.narrowest, access.aligned)

    # ---- questions about indices

    def contiguous(self, buffer, indices) -> Contiguous | None:
        """How `buffer[indices]` lies in memory, or None when its lanes are scattered."""
        if len(indices) != 1:
            raise CodegenError(f"buffer {buffer.name} has {len(indices)} dimensions after lowering instead of 1")
        index = indices[0]
        scalar, per_element = dtypes.parse(str(buffer.ty.dtype))
        lanes, start = per_element, index
        if dtypes.of(index)[1] > 1:
            if type(index).__name__ != "Ramp" or literal(index.stride) != 1:
                return None
            lanes, start = per_element * dtypes.of(index)[1], index.base
        if per_element > 1:
            start = start * per_element
        offset = buffer.ty.elem_offset
        if literal(offset) != 0:
            start = start + offset * per_element
        if lanes == 1 or buffer in self.unaligned:
            return Contiguous(start, lanes, 1)
        modular = self.analyzer.modular_set(start)
        multiple = math.gcd(int(modular.coeff), int(modular.base)) or MAX_ACCESS_BYTES
        widest = min(multiple & -multiple, lanes, MAX_ACCESS_BYTES // scalar.size)
        return Contiguous(start, lanes, 1 << (widest.bit_length() - 1))

    def split(self, index) -> tuple[tvm.ir.Expr | None, int]:
        """index = rest + constant; rest is None when all of it is constant."""
        value = literal(index)
        if value is not None:
            return None, value
        if type(index).__name__ == "Add":
            for rest, tail in ((index.a, index.b), (index.b, index.a)):
                constant = literal(tail)
                if constant is not None and constant >= 0:
                    deeper, more = self.split(rest)
                    return deeper, more + constant
        return index, 0

    def non_negative(self, index) -> bool:
        return self.analyzer.const_int_bound(index).min_value >= 0


def literal(expr) -> int | None:
    """The value of an integer literal, else None."""
    return int(expr.value) if type(expr).__name__ == "IntImm" else None


def is_pointer(var) -> bool:
    return type(var.ty).__name__ == "PointerType"


def element_count(buffer) -> int | None:
    """Elements of a buffer, or None where that is known only at run time."""
    extents = [literal(extent) for extent in buffer.ty.shape]
    return None if None in extents else math.prod(extents)
