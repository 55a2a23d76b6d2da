"""A mixture-of-experts MLP for many tokens: tokens are sorted by expert, then one product runs over all experts.

A token and one of its experts make an entry. Kernels: `_route` chooses each token's experts (and normalises it),
`_sort` orders the entries by expert and cuts each expert's into tiles, two products take a tile a block (see
LinearKernel: token_range), and `_combine` adds up each token's entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.records import Linear, Moe

from .common import Machine, Register, barrier, block_reduce, launch, shared, strided
from .experts import Arguments, Choice, Product, flat
from .linear import LinearTiles, _gemm
from .weights import Rows

TILE = 32  # entries
_THREADS = 256


def unshared(n, kernel: int):
    """n, written differently in each kernel. What several have in common, such as the number of entries, TVM would
    find on the host and pass as one more argument, and not the same one for all variants of a kernel."""
    return tirx.bitwise_and(n, T.int32(0x7FFFFFFF >> kernel))


class Products:
    """How tiles of entries are multiplied: here by plain multiply-adds, or by `matrices` where that takes the layer.

    tile: entries of a tile; matrices(product) emits a product and returns True, or returns False; slots_for: the tile
    that the grid is made for, at most `tile`.
    """

    def __init__(
        self, tiles: LinearTiles, machine: Machine, tile: int = TILE, matrices: Callable | None = None,
        slots_for: int | None = None,
    ):  # fmt: skip
        self.tiles, self.machine, self.tile, self.matrices = tiles, machine, tile, matrices
        self.slots_for = slots_for or tile

    def slots(self, op: Moe, n):
        """Tiles that n tokens have at most: each expert's last one may be small."""
        return n * op.top_k // self.slots_for + op.experts

    def workspaces(self, op: Moe, n) -> list[Space]:
        """experts [n*top_k] i32 and weights f32 of the entries; the entries' order [n*top_k] i32; tiles [·, 3] i32
        (expert, first place, end); the results [n*top_k, hidden] f32, by entry; and what `operands` says."""
        entries = n * op.top_k
        return [
            Space((entries,), "int32"),
            Space((entries,)),
            Space((entries,), "int32"),
            Space((self.slots(op, n), 3), "int32"),
            Space((entries, op.hidden)),
            *self.operands(op, n),
        ]

    def operands(self, op: Moe, n) -> list[Space]:
        """The inner activations [n*top_k, intermediate] f32, by place; the normalised tokens [n, hidden] f32 where
        there is a norm."""
        inner = Space((n * op.top_k, op.intermediate))
        return [inner] if op.norm_eps is None else [inner, Space((n, op.hidden))]

    def emit(self, a: Arguments) -> None:
        normed = None if a.norm is None else a.spaces[6]
        self.choose(a, normed)
        self.multiply(GateUp(a, self, a.x if normed is None else normed, a.spaces[5]))
        self.multiply(Down(a, self, a.spaces[5]))
        self.combine(a)

    def choose(self, a: Arguments, normed) -> None:
        """Fill the first four workspaces, and `normed` unless it is None."""
        _route(a, self.machine, normed)
        _sort(a, self.machine, self.tile, lambda n: self.slots(a.op, n))

    def combine(self, a: Arguments) -> None:
        _combine(a, self.machine)

    def multiply(self, k: Grouped) -> None:
        if self.matrices is None or not self.matrices(k):
            _gemm(k, replace(self.tiles, gemm_tile=self.tile))


def _route(a: Arguments, machine: Machine, normed) -> None:
    """A block per token; `normed`: where to put the normalised token, or None."""
    op, (experts, weights) = a.op, a.spaces[:2]
    with launch(bx=a.n, tx=_THREADS) as (token, thread):
        machine.follow()
        choice = Choice(op, a.logits, token, thread, _THREADS)
        with strided(op.top_k, thread, _THREADS) as k:
            T.buffer_store(experts, choice.expert(k), [token * op.top_k + k])
            T.buffer_store(weights, choice.weight(k), [token * op.top_k + k])
        if normed is None:
            return
        squares = Register(T.float32(0))
        with strided(op.hidden, thread, _THREADS) as i:
            value = T.bind(T.BufferLoad(a.x, [token, i]))
            squares.add(value * value)
        whole = block_reduce(machine, squares.get(), lambda p, q: p + q, _THREADS, thread)
        inverse = T.bind(tirx.rsqrt(whole * T.float32(1.0 / op.hidden) + T.float32(op.norm_eps)))
        with strided(op.hidden, thread, _THREADS) as i:
            value = T.BufferLoad(a.x, [token, i]) * T.BufferLoad(a.norm, [i])
            T.buffer_store(normed, value * inverse, [token, i])


def _sort(a: Arguments, machine: Machine, tile: int, slots_of: Callable) -> None:
    """A block per expert finds its entries, in order, and where the experts in front of it end.

    With s entries in front, an expert's tiles go to the places from s // tile + expert on: that leaves room for those
    of each expert, and what stays empty is marked.
    """
    op, (experts, _, order, table) = a.op, a.spaces[:4]
    with launch(bx=op.experts, tx=_THREADS) as (expert, thread):
        machine.follow()
        n = T.bind(unshared(a.n, 0))
        entries, slots = n * op.top_k, slots_of(n)
        each = T.bind(tirx.floordiv(entries + _THREADS - 1, _THREADS))
        start = T.bind(thread * each)
        end = T.bind(tirx.min(start + each, entries))
        mine, front = Register(T.float32(0)), Register(T.float32(0))  # counts below 2**24 are exact
        with T.serial(each) as i, T.If(start + i < end), T.Then():
            other = T.bind(T.BufferLoad(experts, [start + i]))
            mine.add(tirx.Select(other == expert, T.float32(1), T.float32(0)))
            front.add(tirx.Select(other < expert, T.float32(1), T.float32(0)))
        counts = [shared((_THREADS,)) for _ in range(2)]
        T.buffer_store(counts[0], mine.get(), [thread])
        barrier()
        for s in range(_THREADS.bit_length() - 1):  # each count becomes the sum up to it
            source, target, step = counts[s % 2], counts[1 - s % 2], 1 << s
            before = T.BufferLoad(source, [tirx.max(thread - step, 0)])
            value = T.BufferLoad(source, [thread]) + tirx.Select(thread >= step, before, T.float32(0))
            T.buffer_store(target, value, [thread])
            barrier()
        final = counts[(_THREADS.bit_length() - 1) % 2]
        total = T.bind(tirx.Cast("int32", T.BufferLoad(final, [_THREADS - 1])))
        below = T.bind(tirx.Cast("int32", T.BufferLoad(final, [thread]) - mine.get()))
        barrier()
        whole = block_reduce(machine, front.get(), lambda p, q: p + q, _THREADS, thread)
        first = T.bind(tirx.Cast("int32", whole))
        place = Register(first + below, "int32")
        with T.serial(each) as i, T.If(start + i < end), T.Then():
            other = T.bind(T.BufferLoad(experts, [start + i]))
            with T.If(other == expert), T.Then():
                T.buffer_store(order, start + i, [place.get()])
                place.add(T.int32(1))
        behind = T.bind(first + total)
        slot = T.bind(tirx.floordiv(first, tile) + expert)
        next_slot = tirx.floordiv(behind, tile) + expert + 1
        next_slot = T.bind(tirx.Select(expert == op.experts - 1, slots, next_slot))
        with strided(next_slot - slot, thread, _THREADS) as i:
            token = T.bind(first + i * tile)
            full = token < behind
            row = (expert, token, tirx.min(token + tile, behind))
            for column, value in enumerate(row):
                T.buffer_store(table, tirx.Select(full, value, T.int32(0)), [slot + i, column])


class Grouped(Product):
    """A product whose blocks each take a tile of one expert's places."""

    def __init__(self, a: Arguments, products: Products, op: Linear, stack: dict, x, y, norm=None):
        super().__init__(op, products.machine, a.n * a.op.top_k, x, y, norm)
        self.a, self.stack = a, stack
        self.slots = products.slots(a.op, unshared(a.n, 1 if self.gathers else 2))
        self.declare(stack)

    def declare(self, buffers: dict) -> None:
        op = self.op
        self.weights = Rows(op.scheme, self.a.op.experts * op.rows, op.columns, buffers, self.machine.vector)

    def token_blocks(self, tile: int):
        return self.slots

    def token_range(self, block, tile: int) -> tuple:
        table = self.a.spaces[3]
        self.expert, first, self.end = (T.bind(T.BufferLoad(table, [block, column])) for column in range(3))
        self.busy = T.bind(self.end > first)
        self.declare(flat(self.stack))
        return first, self.end

    def steps(self, count: int):
        return tirx.Select(self.busy, T.int32(count), T.int32(0))

    def place(self, token, end):
        """The place of a token of the block; any where there is none."""
        return tirx.max(tirx.min(token, end - 1), 0)

    def weight_row(self, unit, part: int):
        return self.expert * self.op.rows + unit + part * self.op.units


class GateUp(Grouped):
    """Rows of x, which are tokens, → inner activations by place; `norm` where x has not had it yet."""

    gathers = True

    def __init__(self, a: Arguments, products: Products, x, inner, norm=None):
        o = a.op
        eps = None if norm is None else o.norm_eps
        op = Linear(o.gate_up, 2 * o.intermediate, o.hidden, None, eps, False, o.activation)
        super().__init__(a, products, op, a.gate_up, x, inner, norm)

    def source(self, token, end):
        return tirx.floordiv(T.BufferLoad(self.a.spaces[2], [self.place(token, end)]), self.a.op.top_k)


class Down(Grouped):
    """Inner activations by place → weighted results by entry."""

    def __init__(self, a: Arguments, products: Products, inner):
        op = Linear(a.op.down, a.op.hidden, a.op.intermediate, None)
        super().__init__(a, products, op, a.down, inner, a.spaces[4])

    def source(self, token, end):
        return self.place(token, end)

    def finish(self, row, unit, sums: list) -> None:
        entry = T.bind(T.BufferLoad(self.a.spaces[2], [row]))
        T.buffer_store(self.y, sums[0] * T.BufferLoad(self.a.spaces[1], [entry]), [entry, unit])


def _combine(a: Arguments, machine: Machine) -> None:
    """Each token's results added up."""
    op, results = a.op, a.spaces[4]
    with launch(bx=-(-op.hidden // _THREADS), by=a.n, tx=_THREADS) as (block, token, thread):
        machine.follow()
        at = T.bind(block * _THREADS + thread)
        with T.If(at < op.hidden), T.Then():
            total = Register(T.float32(0))
            with T.serial(op.top_k) as k:
                total.add(T.BufferLoad(results, [token * op.top_k + k, at]))
            value = total.get()
            if a.residual is not None:
                value = T.BufferLoad(a.residual, [token, at]) + value
            T.buffer_store(a.y, value, [token, at])
