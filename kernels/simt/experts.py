"""A mixture-of-experts MLP on a GPU. Which experts run is decided on the device and read from there.

One token: two matrix-vector products over the weights of the chosen experts alone, every block working out the choice
by itself from the router's logits. The first takes the units of all chosen experts as rows of one weight; the second
sees a row of every chosen expert's down weight as one long row, times the inner activations already weighted.

More tokens: `experts_many`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Linear, Moe

from .common import Machine, Register, barrier, launch, local, prim_func, resident, shared, strided
from .linear import (
    _REDUCTION_BYTES,
    LinearKernel,
    LinearTiles,
    _activations,
    _shares,
    multiply_items,
)
from .staging import described, staged_groups, tiles_with_room
from .stream import WeightStream
from .unstaged import Unstaged
from .weights import Rows

if TYPE_CHECKING:
    from .experts_many import Products


class Arguments:
    """Declares (x [n, hidden] f32, router logits [n, experts] f32, gate_up parts [experts, …], down parts
    [experts, …], [norm [hidden]], [residual [n, hidden]], y [n, hidden] f32, workspaces …) in a prim_func frame."""

    def __init__(self, op: Moe, products: Products | None):
        self.op = op
        self.n = n = T.int32() if op.tokens is None else op.tokens
        x, logits = (T.arg(a, T.handle()) for a in ("x", "logits"))
        self.gate_up = weight_arguments(op.gate_up, 2 * op.intermediate, op.hidden, "gate_up", op.experts)
        self.down = weight_arguments(op.down, op.hidden, op.intermediate, "down", op.experts)
        self.norm = T.arg("norm", T.Buffer((op.hidden,), "float32")) if op.norm_eps is not None else None
        residual = T.arg("residual", T.handle()) if op.residual else None
        y = T.arg("y", T.handle())
        self.x, self.y = (T.match_buffer(h, (n, op.hidden), "float32") for h in (x, y))
        self.logits = T.match_buffer(logits, (n, op.experts), "float32")
        self.residual = T.match_buffer(residual, (n, op.hidden), "float32") if op.residual else None
        spaces = enumerate(workspaces(op, n, products))
        self.spaces = [T.match_buffer(T.arg(f"space{i}", T.handle()), s.shape, s.dtype) for i, s in spaces]


def workspaces(op: Moe, n, products: Products | None) -> list[Space]:
    """What `moe` takes after its output. One token: the inner activations [top_k, intermediate] f32."""
    return [Space((op.top_k, op.intermediate))] if op.tokens == 1 else products.workspaces(op, n)


def flat(buffers: dict) -> dict:
    """A stack of weights as one weight, expert after expert; to be declared in the kernel that uses it. It keeps its
    name, by which targets know it in the machine code."""
    made = {}
    for part, b in buffers.items():
        rows = T.decl_buffer((b.ty.shape[0] * b.ty.shape[1], b.ty.shape[2]), str(b.ty.dtype), data=b.data)
        made[part] = IRBuilder.name(b.name, rows)
    return made


class Choice:
    """The experts of a token, largest logit first and of equals the first, found by all threads of a block.

    An expert's place is the number of those in front of it. What shared memory holds are the numbers of the chosen
    ones, exact as float32, and their weights; like most of what may lie there before and after.
    """

    def __init__(self, op: Moe, logits, token, thread, threads: int, weigh: bool = True):
        self.op, self.logits, self.token = op, logits, token
        size = max(op.top_k, 4)  # compilers read 16 bytes ahead of a short loop
        self.experts, self.weights = shared((size,)), shared((size,))
        with strided(op.top_k, thread, threads) as k:  # what stays where logits are no numbers: experts that exist
            T.buffer_store(self.experts, tirx.Cast("float32", k), [k])
        barrier()
        with strided(op.experts, thread, threads) as e:
            place = self.place(e)
            with T.If(place < op.top_k), T.Then():
                T.buffer_store(self.experts, tirx.Cast("float32", e), [place])
        barrier()
        if weigh:
            self.weigh(thread, threads)
            barrier()

    def place(self, expert):
        """How many experts are in front of `expert`."""
        width = next(v for v in (4, 2, 1) if self.op.experts % v == 0)
        mine, place = T.bind(self.logit(expert)), Register(T.int32(0), "int32")
        with T.serial(self.op.experts // width) as step:
            values, first = local((width,)), T.bind(step * width)
            index, at = (first, 0) if width == 1 else (tirx.Ramp(first, 1, width), tirx.Ramp(0, 1, width))
            T.buffer_store(values, self.logit(index), [at])
            for i in range(width):
                value = T.bind(T.BufferLoad(values, [i]))
                before = tirx.Or(value > mine, tirx.And(value == mine, first + i < expert))
                place.add(tirx.Select(before, T.int32(1), T.int32(0)))
        return place.get()

    def weigh(self, thread, threads: int) -> None:
        """Softmax over all experts, or over the chosen ones, which is the same as making their weights add up to 1."""
        op, total = self.op, Register(T.float32(0))
        peak = T.bind(self.logit(self.expert(0)))
        with T.serial(op.top_k if op.normalize else op.experts) as i:
            total.add(tirx.exp(self.logit(self.expert(i) if op.normalize else i) - peak))
        with strided(op.top_k, thread, threads) as k:
            T.buffer_store(self.weights, tirx.exp(self.logit(self.expert(k)) - peak) / total.get(), [k])

    def logit(self, expert):
        return T.BufferLoad(self.logits, [self.token, expert])

    def expert(self, slot):
        return tirx.Cast("int32", T.BufferLoad(self.experts, [slot]))

    def weight(self, slot):
        return T.BufferLoad(self.weights, [slot])


class Product(LinearKernel):
    """A product over rows of a stack of weights; what LinearKernel declares is given."""

    def __init__(self, op: Linear, machine: Machine, n, x, y, norm=None, residual=None):
        self.op, self.machine, self.n, self.x, self.y = op, machine, n, x, y
        self.norm, self.residual, self.bias = norm, residual, None
        self.parts = 2 if op.gate else 1


class _GateUp(Product):
    """Units of all chosen experts, one expert after another."""

    def __init__(self, a: Arguments, machine: Machine):
        o = a.op
        self.a, self.each = a, o.intermediate
        op = Linear(o.gate_up, 2 * o.top_k * o.intermediate, o.hidden, 1, o.norm_eps, False, o.activation)
        super().__init__(op, machine, 1, a.x, a.spaces[0], a.norm)
        self.declare(a.gate_up)

    def declare(self, buffers: dict) -> None:
        o = self.a.op
        self.weights = Rows(o.gate_up, 2 * o.experts * self.each, o.hidden, buffers, self.machine.vector)

    def start(self, tiles: LinearTiles, thread, threads: int, begin):
        """The choice is that of the kernel in front, x is older."""
        self.declare(flat(self.a.gate_up))
        x = _inputs(self, tiles)(self, thread, threads)
        self.machine.follow()
        self.choice = Choice(self.a.op, self.a.logits, 0, thread, threads, weigh=False)
        begin()
        if tiles.gemv_staged:
            barrier()  # what is fetched to shared memory is there
        return x

    @property
    def run_pitch(self) -> int:
        """From one expert to the next, which no block may cross."""
        return self.each

    def weight_row(self, unit, part: int):
        slot = tirx.floordiv(unit, self.each)
        first = self.choice.expert(slot) * (2 * self.each)
        return first + tirx.floormod(unit, self.each) + part * self.each

    def finish(self, row, unit, sums: list) -> None:
        from .functions import activation

        value = activation(self.op.gate, sums[0]) * sums[1]
        T.buffer_store(self.y, value, [tirx.floordiv(unit, self.each), tirx.floormod(unit, self.each)])


class _StackedRows(Rows):
    """Row r of all chosen experts as one row, expert after expert."""

    def __init__(self, op: Moe, buffers: dict, vector: int, choice: Choice | None = None):
        super().__init__(op.down, op.experts * op.hidden, op.intermediate, buffers, vector)
        self.height, self.choice, self.each, self.each_groups = op.hidden, choice, self.words, self.groups
        self.words, self.padded, self.groups = (op.top_k * size for size in (self.words, self.padded, self.groups))
        self.grouped = self._grouped

    def first(self, slot):
        return self.choice.expert(slot) * self.height

    def place(self, word) -> tuple:
        skip = T.bind(self.first(tirx.floordiv(word, self.each)))
        return skip, T.bind(tirx.floormod(word, self.each))

    def _grouped(self, part: str, row, group):
        skip = self.first(tirx.floordiv(group, self.each_groups))
        return T.BufferLoad(self.buffers[part], [row + skip, tirx.floormod(group, self.each_groups)])


class _Down(Product):
    """The weighted sum of the chosen experts' results, which is one dot product per row."""

    def __init__(self, a: Arguments, machine: Machine):
        o = a.op
        self.a = a
        self.weights = _StackedRows(o, a.down, machine.vector)
        op = Linear(o.down, o.hidden, self.weights.padded, 1, residual=o.residual)
        super().__init__(op, machine, 1, a.spaces[0], a.y, residual=a.residual)

    @property
    def runs(self) -> int:
        """One for each of the chosen experts."""
        return self.a.op.top_k

    @property
    def run_pitch(self) -> int:
        return self.a.op.hidden

    def run_starts(self, unit) -> list:
        return [self.weights.first(slot) + unit for slot in range(self.runs)]

    def start(self, tiles: LinearTiles, thread, threads: int, begin):
        """The inner activations are those of the kernel in front, the choice is older."""
        self.choice = Choice(self.a.op, self.a.logits, 0, thread, threads)
        self.weights = _StackedRows(self.a.op, flat(self.a.down), self.machine.vector, self.choice)
        begin()
        self.machine.follow()
        kind = _inputs(self, tiles)
        return type("_Weighted", (_Weighted, kind), {})(self, thread, threads)


class _Weighted:
    """Mixed into a way of holding activations: those of all chosen experts, times the experts' weights."""

    def read(self, word, squares: Register) -> list:
        o, n = self.k.a.op, self.w.per_word
        slot = T.bind(tirx.floordiv(word, self.w.each))
        start = T.bind(tirx.floormod(word, self.w.each) * n)
        share = T.bind(self.k.choice.weight(slot))
        width = next(v for v in (4, 2, 1) if n % v == 0 and o.intermediate % v == 0)
        values = []
        for j in range(0, n, width):
            chunk = local((width,))
            for i in range(width):
                T.buffer_store(chunk, T.float32(0), [i])
            with T.If(start + j < o.intermediate), T.Then():
                index, at = (start + j, 0) if width == 1 else (tirx.Ramp(start + j, 1, width), tirx.Ramp(0, 1, width))
                T.buffer_store(chunk, T.BufferLoad(self.k.x, [slot, index]), [at])
            values += [T.BufferLoad(chunk, [i]) * share for i in range(width)]
        return values


def _inputs(k: Product, tiles: LinearTiles):
    """How activations are held: as for any product of one token, but not in more shared memory than is allowed."""
    kind, most = _activations(k), min(tiles.experts_staged, k.machine.shared_bytes)
    return kind if kind.bytes(k) + _REDUCTION_BYTES + 4 * k.a.op.experts <= most else Unstaged


def _gemv(k: Product, tiles: LinearTiles) -> None:
    op, lanes, activations = k.op, k.machine.subgroup, _inputs(k, tiles).bytes(k)
    tiles = tiles_with_room(k, tiles, activations)
    threads = tiles.gemv_subgroups * lanes
    units, count, blocks = _shares(k, tiles)
    with (
        launch(bx=blocks, tx=threads) as (block, thread),
        resident(tiles.gemv_resident),
        contextlib.ExitStack() as stack,
    ):
        lane, subgroup = T.bind(tirx.floormod(thread, lanes)), T.bind(tirx.floordiv(thread, lanes))
        stream = staged = None

        def rows_of(item):
            first = T.bind(((block + item * blocks) * tiles.gemv_subgroups + subgroup) * units)
            units_ = [T.bind(tirx.min(first + u, op.units - 1)) for u in range(units)]
            rows = [T.bind(k.weight_row(u, p)) for u in units_ for p in range(k.parts)]
            if staged is not None:
                staged.locate(rows)
            return first, rows

        def begin() -> None:
            nonlocal stream, staged
            if count == 1 and k.run_pitch % (units * tiles.gemv_subgroups) == 0:
                staged = staged_groups(k, tiles, block, units, activations)
            stack.enter_context(described(k, tiles, staged))
            few = staged is not None
            stream = WeightStream(k.weights, units * k.parts, lane, k.machine, tiles.gemv_depth, count, few)
            stream.begin(rows_of(0)[1])
            if staged is not None:
                staged.fetch(thread, threads)

        x = k.start(tiles, thread, threads, begin)
        k.machine.divide()  # as in linear
        multiply_items(k, stream, x, rows_of, count, lane, units, [{}] * units)


def moe(op: Moe, tiles: LinearTiles, machine: Machine, products: Products, name: str = "moe"):
    """PrimFunc with the arguments of `Arguments`: y = [residual +] the sum over the top_k experts of softmax weight *
    down(act(gate(x)) * up(x)), x normalised first where op.norm_eps says so. products: how many tokens are done."""

    def body() -> None:
        arguments = Arguments(op, products)
        if op.tokens == 1:
            _gemv(_GateUp(arguments, machine), tiles)
            _gemv(_Down(arguments, machine), tiles)
        else:
            products.emit(arguments)

    return prim_func(name, body)
