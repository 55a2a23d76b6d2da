"""Independent tokens times a weight, each computed in the same order however many share the call.

Two kernels: `prepare` normalises the activations and writes them in the order in which lanes want them; the product
unpacks a few weight rows once for a tile of up to eight tokens. Every token of a tile runs the same instructions, and
those of the tokens that are not there are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import Scheme

from .activations import PACKED_ORDER, PACKED_SCALE, takes_halves
from .common import Machine, Register, block_reduce, launch, local, prim_func, subgroup_reduce, where
from .linear import LinearKernel, LinearTiles
from .stream import WeightStream

TOKENS = 8  # of a tile
_LEVELS = ((0, 1), (1, 2), (2, 4), (4, 8))  # tokens of a tile that are computed or skipped together
_THREADS = 256
_HELD = 4  # pieces of a thread that stay in its registers while the squares are summed


@dataclass(frozen=True)
class Order:
    """Where a token's activations lie: a lane multiplies runs of `each` columns and loads them in pieces of `width`;
    piece p of run q is at (p * runs + q) * width, so that neighbouring lanes read neighbouring pieces."""

    each: int
    width: int
    runs: int

    @property
    def pieces(self) -> int:
        """Of a run."""
        return self.each // self.width

    @classmethod
    def of(cls, scheme: Scheme, words: int, per_lane: int, vector: int) -> Order:
        each = per_lane if scheme.is_float else per_lane * scheme.per_word
        inside = per_lane if scheme.is_float else scheme.per_word  # a piece does not span words
        widest = min(inside, vector, 16 // (2 if scheme.dtype == "float16" else 4))
        width = next(v for v in (8, 4, 2, 1) if v <= widest and inside % v == 0)
        return cls(each, width, words // per_lane)


def scratch(op: Linear, n, machine: Machine) -> list[Space]:
    """Workspaces of `linear`: the ordered activations and, where weights have minima, the sum of every run."""
    order = _order(op, machine)
    spaces = [Space((n, order.runs * order.each), op.scheme.dtype)]
    return [*spaces, Space((n, order.runs))] if op.scheme.asymmetric else spaces


def linear(op: Linear, tiles: LinearTiles, machine: Machine, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    workspaces of `scratch`)."""

    def body() -> None:
        k = LinearKernel(op, machine)
        spaces = scratch(op, k.n, machine)
        handles = [T.arg(f"space{i}", T.handle()) for i in range(len(spaces))]
        buffers = [T.match_buffer(h, s.shape, s.dtype) for h, s in zip(handles, spaces, strict=True)]
        prepare(k, _order(op, machine), _packed(op, machine), *buffers)
        _Product(k, tiles, buffers).emit()

    return prim_func(name, body)


def _order(op: Linear, machine: Machine) -> Order:
    from .weights import Rows

    w = Rows(op.scheme, op.rows, op.columns, {}, machine.vector)
    return Order.of(op.scheme, w.words, w.per_lane, machine.vector)


def _packed(op: Linear, machine: Machine) -> bool:
    return takes_halves(op.scheme) and machine.dot8 is not None


def prepare(k: LinearKernel, order: Order, packed: bool, ordered, sums=None) -> None:
    """Kernel that writes x, or RMSNorm(x), as `order` says, and the sums of runs. packed: as PACKED_ORDER says.

    A thread takes a piece of neighbouring columns at a time. Without a norm the blocks share out a token's pieces; with
    one a block has them all, and holds them in registers until their squares are summed, if they are few.
    """
    total = order.runs * order.pieces
    steps = -(-total // _THREADS)
    apart = k.norm is None
    with launch(bx=steps if apart else 1, by=k.n, tx=_THREADS) as (part, token, thread):
        k.machine.follow()
        work = _Pieces(k, order, packed, token, ordered, sums)
        if apart:
            at = T.bind(part * _THREADS + thread)
            work.write(at, work.read(at), None)
            return
        squares = Register(T.float32(0))
        held = []
        if steps <= _HELD:
            places = [T.bind(step * _THREADS + thread) for step in range(steps)]
            held = [(at, work.read(at, squares)) for at in places]
        else:
            with T.serial(steps) as step:
                work.read(T.bind(step * _THREADS + thread), squares)
        inverse = k.inverse_rms(block_reduce(k.machine, squares.get(), lambda a, b: a + b, _THREADS, thread))
        for at, values in held:
            work.write(at, values, inverse)
        if not held:
            with T.serial(steps) as step:
                at = T.bind(step * _THREADS + thread)
                work.write(at, work.read(at), inverse)


class _Pieces:
    """The pieces of one token on their way into order."""

    def __init__(self, k: LinearKernel, order: Order, packed: bool, token, ordered, sums):
        self.k, self.order, self.packed, self.token, self.ordered, self.sums = k, order, packed, token, ordered, sums
        self.total = order.runs * order.pieces

    def read(self, at, squares: Register | None = None) -> list[Register]:
        """The columns of piece `at`, times the norm's weights, zero beyond the last; adds their squares before that."""
        k, op, width = self.k, self.k.op, self.order.width
        values = [Register(T.float32(0)) for _ in range(width)]
        together = next(v for v in (4, 2, 1) if width % v == 0 and op.columns % v == 0)
        for j in range(0, width, together):
            column = T.bind(at * width + j)
            with where(column < op.columns, self.total * width == op.columns and self.total % _THREADS == 0):
                x, weight = local((together,)), local((together,)) if k.norm is not None else None
                index, whole = (column, 0)
                if together > 1:
                    index, whole = tirx.Ramp(column, 1, together), tirx.Ramp(0, 1, together)
                T.buffer_store(x, T.BufferLoad(k.x, [self.token, index]), [whole])
                if weight is not None:
                    T.buffer_store(weight, T.BufferLoad(k.norm, [index]), [whole])
                for i in range(together):
                    value = T.bind(T.BufferLoad(x, [i]))
                    if squares is not None:
                        squares.add(value * value)
                    values[j + i].set(value if weight is None else value * T.BufferLoad(weight, [i]))
        return values

    def write(self, at, values: list[Register], inverse) -> None:
        """Round the values, times 1/rms, and store them where their lane looks for them. All threads call it."""
        order, width, scheme = self.order, self.order.width, self.k.op.scheme
        factor = T.float32(1 / _scale(self.packed))
        scaled = [v.get() * factor if inverse is None else v.get() * inverse * factor for v in values]
        stored = [T.bind(tirx.Cast(scheme.dtype, v)) for v in scaled]
        held = local((width,), scheme.dtype)
        for place, i in enumerate(PACKED_ORDER if self.packed else range(width)):
            T.buffer_store(held, stored[i], [place])
        run, piece = T.bind(tirx.floordiv(at, order.pieces)), T.bind(tirx.floormod(at, order.pieces))
        start = T.bind((piece * order.runs + run) * width)
        index, whole = (start, 0) if width == 1 else (tirx.Ramp(start, 1, width), tirx.Ramp(0, 1, width))
        with where(at < self.total, self.total % _THREADS == 0):
            T.buffer_store(self.ordered, T.BufferLoad(held, [whole]), [self.token, index])
        if self.sums is None:
            return
        part = Register(T.float32(0))
        for value in stored:  # of what is multiplied: rounding must not act as an offset
            part.add(tirx.Cast("float32", value))
        of_run = T.bind(subgroup_reduce(self.k.machine, part.get(), lambda a, b: a + b, order.pieces))
        with T.If(tirx.And(at < self.total, piece == 0)), T.Then():
            T.buffer_store(self.sums, of_run, [self.token, run])


def _scale(packed: bool) -> float:
    return PACKED_SCALE if packed else 1.0


class _Product:
    """A subgroup multiplies a few rows with all tokens of a tile."""

    def __init__(self, k: LinearKernel, tiles: LinearTiles, buffers: list):
        self.k, self.op, self.w, self.machine = k, k.op, k.weights, k.machine
        self.order, self.packed = _order(k.op, k.machine), _packed(k.op, k.machine)
        self.x, self.sums = buffers[0], buffers[1] if len(buffers) > 1 else None
        self.subgroups = tiles.gemv_subgroups
        # rows at once: what is loaded of a token serves them all, and their sums have to fit the registers
        self.units = min(max(1, (4 if self.packed else 2) // k.parts), k.op.units)

    def emit(self) -> None:
        k, op, lanes = self.k, self.op, self.machine.subgroup
        blocks = -(-op.units // (self.units * self.subgroups))
        grid = {"bx": blocks, "by": tirx.floordiv(k.n + (TOKENS - 1), TOKENS), "tx": self.subgroups * lanes}
        with launch(**grid) as (block, tile, thread):
            lane, subgroup = T.bind(tirx.floormod(thread, lanes)), T.bind(tirx.floordiv(thread, lanes))
            first = T.bind((block * self.subgroups + subgroup) * self.units)
            units = [T.bind(tirx.min(first + u, op.units - 1)) for u in range(self.units)]
            rows = [T.bind(u + p * op.units) for u in units for p in range(k.parts)]
            stream = WeightStream(self.w, len(rows), lane, self.machine, len(rows), 1, False)
            stream.begin(rows)
            self.machine.follow()
            token0 = T.bind(tile * TOKENS)
            self.left = T.bind(k.n - token0)
            self.tokens = [T.bind(tirx.min(token0 + t, k.n - 1)) for t in range(TOKENS)]
            self.totals = [[Register(T.float32(0)) for _ in rows] for _ in range(TOKENS)]
            add = self.add_packed if self.packed else self.add
            stream.consume(rows, None, lambda word, stored, scales: add(rows, word, stored, scales))
            self.finish(lane, token0, first)

    def each_token(self, body) -> None:
        """Emit body(token of the tile) for all, where they exist."""
        for low, high in _LEVELS:
            with where(self.left > low, low == 0):
                for t in range(low, high):
                    body(t)

    def piece(self, token, run, piece) -> list:
        """Float32 activations of a piece of a run."""
        width = self.order.width
        start = T.bind((run + piece * self.order.runs) * width)
        if width == 1:
            return [T.bind(tirx.Cast("float32", T.BufferLoad(self.x, [token, start])))]
        held = local((width,), self.op.scheme.dtype)
        T.buffer_store(held, T.BufferLoad(self.x, [token, tirx.Ramp(start, 1, width)]), [tirx.Ramp(0, 1, width)])
        return [T.bind(tirx.Cast("float32", T.BufferLoad(held, [i]))) for i in range(width)]

    def each_chunk(self, size: int, stored: list, body) -> None:
        """Emit body(chunk, its words of each row) for all chunks of `size` words, as a loop: unrolled it would be most
        of what drivers have to compile. Words move up, for registers have no index."""
        count = len(stored[0])
        if count == size:
            body(0, stored)
            return
        dtype = str(stored[0][0].ty.dtype)
        words = [Register(dtype=dtype, count=count) for _ in stored]
        for held, row in zip(words, stored, strict=True):
            for v, word in enumerate(row):
                held.set(word, v)
        with T.serial(count // size) as chunk:
            now = [[T.bind(held.get(v)) for v in range(size)] for held in words]
            for held in words:
                for v in range(count - size):
                    held.set(held.get(v + size), v)
            body(chunk, now)

    def add_packed(self, rows: list, word, stored: list, scales: list) -> None:
        run = T.bind(tirx.floordiv(word, self.w.per_lane))

        def chunk(v, words: list) -> None:
            index = T.bind((run + v * self.order.runs) * 8)

            def token(t: int) -> None:
                x = T.bind(T.BufferLoad(self.x, [self.tokens[t], tirx.Ramp(index, 1, 8)]))
                for total, (code,), (scale,) in zip(self.totals[t], words, scales, strict=True):
                    total.add(scale * self.machine.dot8(code, x))

            self.each_token(token)

        self.each_chunk(1, stored, chunk)

    def add(self, rows: list, word, stored: list, scales: list) -> None:
        """Any scheme: a chunk is what one piece or one word covers, whichever is more."""
        w, order = self.w, self.order
        run = T.bind(tirx.floordiv(word, w.per_lane))
        if w.scheme.is_float:
            self.add_words(rows, run, 0, word, stored, self.totals)
            return
        size = w.per_lane // w.lane_groups
        for g, first in enumerate(w.group_starts(word)):
            partial = [[Register(T.float32(0)) for _ in rows] for _ in range(TOKENS)]
            words = [held[g * size : (g + 1) * size] for held in stored]
            self.add_words(rows, run, g * size * w.per_word // order.width, first, words, partial)
            offsets = []
            if w.scheme.asymmetric:
                offsets = [T.bind(w.offset(row, first, scale[g])) for row, scale in zip(rows, scales, strict=True)]

            def affine(t: int, g=g, partial=partial, offsets=offsets) -> None:
                whole = T.bind(T.BufferLoad(self.sums, [self.tokens[t], run])) if offsets else None
                for r, total in enumerate(self.totals[t]):
                    total.add(scales[r][g] * partial[t][r].get())
                    if offsets:
                        total.add(offsets[r] * whole)

            self.each_token(affine)

    def add_words(self, rows: list, run, piece0: int, word, stored: list, totals: list) -> None:
        """Add the products of the stored words, the first of which is `word` and meets piece `piece0` of the run."""
        w, width = self.w, self.order.width
        per_chunk = width if w.scheme.is_float else 1  # words
        pieces = max(width, w.per_word) // width

        def chunk(at, words: list) -> None:
            first = T.bind(word + at * per_chunk)
            codes = [
                [T.bind(c) for v, one in enumerate(held) for c in w.values(one, row, first + v, w.scheme.zero or 0)]
                for row, held in zip(rows, words, strict=True)
            ]

            def token(t: int) -> None:
                for p in range(pieces):
                    values = self.piece(self.tokens[t], run, at * pieces + (piece0 + p))
                    for r in range(len(rows)):
                        for i, value in enumerate(values):
                            totals[t][r].add(codes[r][p * width + i] * value)

            self.each_token(token)

        self.each_chunk(per_chunk, stored, chunk)

    def finish(self, lane, token0, first) -> None:
        """Sum over the lanes, handing half of what is left to the other half of them at every step, so that in the end
        each has few results, or one, to finish."""
        k, parts = self.k, self.k.parts
        # in registers, not lets: TVM's simplifier looks through a chain of lets again and again
        items = [totals[u * parts : (u + 1) * parts] for totals in self.totals for u in range(self.units)]
        index, alone, step = Register(T.int32(0), "int32"), None, self.machine.subgroup // 2
        while step:
            half = len(items) // 2
            if half and len(items) % 2 == 0:
                upper = T.bind(tirx.bitwise_and(lane, step) != 0)
                index.add(tirx.Select(upper, T.int32(half), T.int32(0)))
                for a, b in zip(items[:half], items[half:], strict=True):
                    for low, high in zip(a, b, strict=True):
                        self.halve(low, high, upper, step)
                items = items[:half]
            else:
                for value in (v for item in items for v in item):
                    value.add(self.machine.exchange(value.get(), step))
                spare = T.bind(tirx.bitwise_and(lane, step) == 0)
                alone = spare if alone is None else T.bind(tirx.And(alone, spare))
            step //= 2
        for i, item in enumerate(items):
            at = T.bind(index.get() + i)
            token, unit = T.bind(token0 + tirx.floordiv(at, self.units)), T.bind(first + tirx.floormod(at, self.units))
            inside = tirx.And(token < k.n, unit < k.op.units)
            with T.If(inside if alone is None else tirx.And(inside, alone)), T.Then():
                k.finish(token, unit, [T.float32(_scale(self.packed)) * v.get() for v in item])

    def halve(self, low: Register, high: Register, upper, step: int) -> None:
        """low becomes the sum with the other lane's of `high` in upper lanes, of `low` in the others."""
        given, kept = Register(tirx.Select(upper, low.get(), high.get())), tirx.Select(upper, high.get(), low.get())
        low.set(kept + self.machine.exchange(given.get(), step))
