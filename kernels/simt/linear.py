"""y = epilogue(prologue(x) @ W^T) with W dequantised on the fly, for GPUs.

One token: a subgroup takes a few rows at once; each lane loads 16 bytes of each row, and the activations, staged in
shared memory in the order of the packed words, serve all of them. More tokens: a block computes a tile of outputs from
tiles of activations and dequantised weights in shared memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import reduce
from operator import add

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import Scheme

from .common import (
    Machine,
    Register,
    barrier,
    block_reduce,
    launch,
    local,
    prim_func,
    resident,
    shared,
    strided,
    subgroup_reduce,
    where,
)
from .functions import activation
from .staging import described, staged_groups, tiles_with_room
from .weights import Rows

_REDUCTION_BYTES = 512  # shared memory left for block_reduce


@dataclass(frozen=True)
class LinearTiles:
    """gemv_rows: rows a subgroup multiplies at once, halved while the chip would not have gemv_fill subgroups;
    gemv_depth: 16-byte loads a thread keeps in flight; gemv_subgroups: subgroups in a block; gemv_blocks: blocks that
    the chip holds at once, of which gemv_resident have to fit a multiprocessor; gemv_staged: bytes of shared memory up
    to which a block fetches its scales there, in 16-byte loads (0: every lane loads its own); gemm_tile: outputs of a
    block in both directions; gemm_k: columns of a tile; experts_staged: shared memory, in bytes, that the inner
    activations of all experts of a token may take."""

    gemv_rows: int = 4
    gemv_fill: int = 2000
    gemv_depth: int = 8
    gemv_subgroups: int = 8
    gemv_blocks: int = 1 << 30
    gemv_resident: int | None = None
    gemv_staged: int = 0
    gemm_tile: int = 64
    gemm_k: int = 32
    experts_staged: int = 64 << 10


class LinearKernel:
    """Arguments, prologue and epilogue shared by the one-token and the many-token form. gathers: the tokens of a block
    are no neighbours in x."""

    gathers = False

    def __init__(self, op: Linear, machine: Machine):
        self.op, self.machine = op, machine
        symbolic = op.tokens is None
        n = self.n = T.int32() if symbolic else op.tokens
        x = T.arg("x", T.handle())
        buffers = weight_arguments(op.scheme, op.rows, op.columns)
        self.weights = Rows(op.scheme, op.rows, op.columns, buffers, machine.vector)
        self.norm = T.arg("norm", T.Buffer((op.columns,), "float32")) if op.norm_eps is not None else None
        self.bias = T.arg("bias", T.Buffer((op.rows,), "float32")) if op.bias else None
        residual = T.arg("residual", T.handle()) if op.residual else None
        y = T.arg("y", T.handle())
        self.x = T.match_buffer(x, (n, op.columns), "float16" if op.packed_in else "float32")
        self.residual = T.match_buffer(residual, (n, op.units), "float32") if op.residual else None
        self.y = T.match_buffer(y, (n, op.units), "float16" if op.packed_out else "float32")
        self.parts = 2 if op.gate else 1

    def inverse_rms(self, sum_of_squares):
        """1 / sqrt(mean(x²) + eps)."""
        mean = sum_of_squares * T.float32(1.0 / self.op.columns)
        return T.bind(tirx.rsqrt(mean + T.float32(self.op.norm_eps)))

    def token_inverse(self, token, thread, threads: int):
        """1/rms of one token, found by the threads of a block together; None without a norm."""
        if self.norm is None:
            return None
        squares = Register(T.float32(0))
        with strided(self.op.columns, thread, threads) as i:
            value = T.bind(T.BufferLoad(self.x, [token, i]))
            squares.add(value * value)
        return self.inverse_rms(block_reduce(self.machine, squares.get(), lambda a, b: a + b, threads, thread))

    def activation_at(self, row, column):
        """x times the norm's weight; 1/rms is a factor of the whole row and multiplies the dot products."""
        value = T.BufferLoad(self.x, [row, column])
        return value if self.norm is None else value * T.BufferLoad(self.norm, [column])

    def weight_row(self, unit, part: int):
        """The row of the weight that gives a part of a unit."""
        return unit + part * self.op.units

    @property
    def runs(self) -> int:
        """Runs of neighbouring rows that neighbouring units need; those of one part, or more that count as one row."""
        return self.parts

    @property
    def run_pitch(self) -> int:
        """Rows between the runs are multiples of it."""
        return self.op.units

    def run_starts(self, unit) -> list:
        """The first row of every run of the units from `unit` on."""
        return [self.weight_row(unit, p) for p in range(self.parts)]

    def token_blocks(self, tile: int):
        """Blocks of `tile` tokens that the many-token form takes."""
        return tirx.floordiv(self.n + tile - 1, tile)

    def token_range(self, block, tile: int) -> tuple:
        """(first token of a block, number of all tokens)."""
        return T.bind(block * tile), self.n

    @property
    def span(self) -> int:
        """Units to be finished, those that only fill up the result included."""
        return self.op.units

    def steps(self, count: int):
        """How many of `count` steps along the columns this block has to take."""
        return count

    def source(self, token, end):
        """The row of x that belongs to a token of the block, or to the last one before `end`."""
        return tirx.min(token, end - 1)

    def addends(self, unit) -> list:
        """One token's residual and biases of an output element, loaded here and now, for `finish`."""
        places = [] if self.residual is None else [(self.residual, [0, unit])]
        if self.bias is not None:
            places += [(self.bias, [unit + p * self.op.units]) for p in range(self.parts)]
        return [Register(self.machine.stream(buffer, index, "float32")).get() for buffer, index in places]

    def finish(self, row, unit, sums: list, addends: list | None = None) -> None:
        """Bias, gate, residual and store of one output element; `sums` has one dot product per part. addends: what
        `addends` gave, if it was called."""
        held = [] if addends is None else list(addends)
        residual = held.pop(0) if held and self.residual is not None else None
        if self.bias is not None:
            biases = held or [T.BufferLoad(self.bias, [unit + p * self.op.units]) for p in range(self.parts)]
            sums = [s + b for s, b in zip(sums, biases, strict=True)]
        value = sums[0]
        if self.op.gate:
            value = activation(self.op.gate, sums[0]) * sums[1]
        if self.residual is not None:
            value = value + (T.BufferLoad(self.residual, [row, unit]) if residual is None else residual)
        if self.op.packed_out:
            store_packed(self.y, unit, value)
        else:
            T.buffer_store(self.y, value, [row, unit])


PACKED_SCALE = 16.0
PACKED_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight activations that belong to a word of codes, as `dot8` wants them


def takes_halves(scheme: Scheme) -> bool:
    """Whether the one-token form multiplies packed halves where the machine has a `dot8`."""
    return scheme.bits == 4 and scheme.zero == 8 and scheme.dtype == "float16"


def packs(scheme: Scheme, columns: int) -> bool:
    """Whether activations of one token may come packed: as float16, divided by PACKED_SCALE, eight to a word of codes
    in PACKED_ORDER, word w at [w % 4, w // 4], as they will lie in shared memory."""
    return takes_halves(scheme) and columns % scheme.group == 0


def store_packed(buffer, index, value) -> None:
    """buffer [1, columns] f16: put element `index` of the activations (float32) where it belongs."""
    words = int(buffer.ty.shape[1]) // 8
    word, inside = tirx.floordiv(index, 8), tirx.floormod(index, 8)
    at = (tirx.floormod(word, 4) * (words // 4) + tirx.floordiv(word, 4)) * 8
    place = tirx.floormod(inside, 4) * 2 + tirx.floordiv(inside, 4)
    T.buffer_store(buffer, tirx.Cast("float16", value * T.float32(1 / PACKED_SCALE)), [0, at + place])


def _gemv(k: LinearKernel, tiles: LinearTiles) -> None:
    op, lanes, activations = k.op, k.machine.subgroup, _activations(k)
    tiles = tiles_with_room(k, tiles, activations.bytes(k))
    threads = tiles.gemv_subgroups * lanes
    units, count, blocks = _shares(k, tiles)
    with (
        launch(bx=blocks, tx=threads) as (block, thread),
        resident(tiles.gemv_resident),
        contextlib.ExitStack() as stack,
    ):
        lane = T.bind(tirx.floormod(thread, lanes))
        subgroup = T.bind(tirx.floordiv(thread, lanes))
        staged = staged_groups(k, tiles, block, units, activations.bytes(k)) if count == 1 else None

        def rows_of(item):
            """(first unit, rows) of this subgroup's share of the block's item."""
            first = T.bind(((block + item * blocks) * tiles.gemv_subgroups + subgroup) * units)
            rows = [T.bind(tirx.min(first + u, op.units - 1)) for u in range(units)]
            rows = [T.bind(k.weight_row(r, p)) for r in rows for p in range(k.parts)]
            if staged is not None:
                staged.locate(rows)
            return first, rows

        stack.enter_context(described(k, tiles, staged))
        stream = _WeightStream(k.weights, units * k.parts, lane, k.machine, tiles.gemv_depth, count, staged is not None)
        stream.begin(rows_of(0)[1])
        if staged is not None:
            staged.fetch(thread, threads)
        norm = _NormAhead(k, thread, threads) if _NormAhead.fits(k, threads) else None
        k.machine.follow()
        addends = [None] * units
        if count == 1 and k.machine.stream is not None:  # at the end they would wait for one another, and all for them
            first = rows_of(0)[0]
            addends = [k.addends(T.bind(tirx.min(first + u, op.units - 1))) for u in range(units)]
        x = activations(k, thread, threads, norm)
        k.machine.divide()  # codes that are there already would be unpacked before there are registers for them
        multiply_items(k, stream, x, rows_of, count, lane, units, [{"addends": a} for a in addends])


def multiply_items(k: LinearKernel, stream, x, rows_of, count: int, lane, units: int, finishing: list[dict]) -> None:
    """A subgroup's share of each of the block's `count` items: dot products, then `k.finish` for each of its `units`,
    with the keywords that `finishing` has for it. rows_of(item): (first unit, rows)."""
    with T.serial(count) as item:
        first, rows = rows_of(item)
        following = None if count == 1 else (item + 1 < count, rows_of(item + 1)[1])
        dots = [x.factor * dot for dot in _row_dots(k, stream, x, rows, following)]
        with T.If(lane == 0), T.Then():
            for u in range(units):
                with T.If(first + u < k.op.units), T.Then():
                    k.finish(0, first + u, dots[u * k.parts : (u + 1) * k.parts], **finishing[u])


def _shares(k: LinearKernel, tiles: LinearTiles) -> tuple[int, int, int]:
    """(units a subgroup multiplies at once, times a block does that, blocks).

    No more blocks than the chip holds at once: each stages the activations for several items, and while it ends one the
    weights of the next are under way. Fewer rows at once where that shares the work out more evenly.
    """
    op, options, at_once = k.op, [], tiles.gemv_rows
    while at_once > k.parts and op.rows < at_once * tiles.gemv_fill:
        at_once //= 2
    steps = -(-k.weights.words // (k.machine.subgroup * k.weights.per_lane))
    while at_once >= k.parts:  # the first option is best unless another keeps more of the blocks busy
        if options and at_once * steps < tiles.gemv_depth:
            break  # too few loads in flight
        units = min(max(1, at_once // k.parts), op.units)
        items = -(-op.units // (tiles.gemv_subgroups * units))
        count = -(-items // tiles.gemv_blocks)
        busy = items / (count * min(items, tiles.gemv_blocks))
        options.append((busy, units, count, -(-items // count)))
        if count == 1:
            break
        at_once //= 2
    best = options[0]
    for option in options[1:]:
        if option[0] > best[0] + 0.05:
            best = option
    return best[1:]


def _activations(k: LinearKernel):
    """How the one-token form gets at its activations: from shared memory where that can hold them."""
    from .groups import GroupedActivations

    scheme, machine, kind = k.op.scheme, k.machine, _Activations
    if k.op.packed_in:
        return _PrepackedActivations
    if takes_halves(scheme) and machine.dot8 is not None:
        kind = _PackedActivations
    if scheme.dtype == "float16" and scheme.bits == 3 and machine.dot32 is not None and k.weights.per_lane == 4:
        kind = GroupedActivations
    if kind.bytes(k) + _REDUCTION_BYTES <= machine.shared_bytes:
        return kind
    from .unstaged import Unstaged

    return Unstaged


class _WeightStream:
    """Rows of a weight on their way to registers, `depth` loads per row ahead of their use.

    `begin` issues the first loads, before the activations are even staged, since weights wait for nobody. With several
    items the loads run on from the end of one into the next, for which depth has to divide the steps of a row.
    """

    def __init__(self, w: Rows, rows: int, lane, machine: Machine, loads: int, items: int, staged: bool):
        self.w, self.lane, self.span, self.machine = w, lane, machine.subgroup * w.per_lane, machine
        self.steps = -(-w.words // self.span)
        self.depth = min(max(1, loads // rows), self.steps)
        if items > 1:
            self.depth = next(d for d in range(self.depth, 0, -1) if self.steps % d == 0)
        dtype = w.scheme.float_storage if w.scheme.is_float else "uint32"
        self.slots = [[local((w.per_lane,), dtype) for _ in range(rows)] for _ in range(self.depth)]
        self.scales = None
        if not w.scheme.is_float and not staged:
            self.scales = [[local((w.lane_groups,), "float16") for _ in range(rows)] for _ in range(self.depth)]

    def begin(self, rows: list) -> None:
        for d in range(self.depth):
            self.fetch(d, rows, T.int32(d), True)

    def word(self, step):
        return step * self.span + self.lane * self.w.per_lane

    @contextlib.contextmanager
    def inside(self, word):
        """Guard for lanes that would read beyond the row."""
        with where(word < self.w.words, self.w.words % self.span == 0 and self.steps % self.depth == 0):
            yield

    def fetch(self, slot: int, rows: list, step, wanted) -> None:
        w, n = self.w, self.w.per_lane
        buffer = w.buffers["" if w.scheme.is_float else "codes"]
        with contextlib.ExitStack() as guard:
            if wanted is not True:
                guard.enter_context(T.If(wanted))
                guard.enter_context(T.Then())
            word = T.bind(self.word(step))
            guard.enter_context(self.inside(word))
            skip, at = w.place(word)
            for r, row in enumerate(rows):
                row = row + skip
                index, whole = (at, 0) if n == 1 else (tirx.Ramp(at, 1, n), tirx.Ramp(0, 1, n))
                stored = T.BufferLoad(buffer, [row, index])
                if self.machine.stream is not None and n == 4 and not w.scheme.is_float:
                    stored = self.machine.stream(buffer, [row, at], "uint32x4")
                T.buffer_store(self.slots[slot][r], stored, [whole])
                for g in range(w.lane_groups if self.scales is not None else 0):
                    group = tirx.floordiv(at * w.per_word, w.scheme.group) + g
                    scale = T.BufferLoad(w.buffers["scales"], [row, group])
                    if self.machine.stream is not None:
                        scale = self.machine.stream(w.buffers["scales"], [row, group], "float16")
                    T.buffer_store(self.scales[slot][r], scale, [g])

    def consume(self, rows: list, following, use) -> None:
        """use(word, stored words per row, scales of their groups per row) for every step of `rows`, fetching ahead;
        `following`: whether there is a next item, and its rows, or None."""
        with T.serial(-(-self.steps // self.depth)) as chunk:
            for d in range(self.depth):
                step = T.bind(chunk * self.depth + d)
                word = T.bind(self.word(step))
                with self.inside(word):
                    stored, scales = [], []
                    for r in range(len(rows)):
                        held = self.slots[d][r]
                        stored.append([T.bind(T.BufferLoad(held, [i])) for i in range(self.w.per_lane)])
                        if self.scales is not None:
                            held = [T.BufferLoad(self.scales[d][r], [g]) for g in range(self.w.lane_groups)]
                            scales.append([T.bind(tirx.Cast("float32", scale)) for scale in held])
                        elif not self.w.scheme.is_float:
                            scales.append([self.w.affine(rows[r], at)[0] for at in self.w.group_starts(word)])
                    self.fetch_ahead(d, T.bind(step + self.depth), rows, following)
                    use(word, stored, scales)
                self.machine.divide()

    def fetch_ahead(self, slot: int, step, rows: list, following) -> None:
        here = step < self.steps
        if following is None:
            self.fetch(slot, rows, step, here)
            return
        more, others = following
        chosen = [T.bind(tirx.Select(here, row, other)) for row, other in zip(rows, others, strict=True)]
        self.fetch(slot, chosen, T.bind(tirx.Select(here, step, step - self.steps)), tirx.Or(here, more))


class _NormAhead:
    """The norm's weights that a thread will need, in registers before the kernel in front has ended: every block reads
    all of them, and so only half as much is left to be read once the activations are there."""

    MOST = 32  # registers

    def __init__(self, k: LinearKernel, thread, threads: int):
        self.n, words = k.weights.per_word, k.weights.words
        self.turns = -(-words // threads)
        self.held = local((self.turns * self.n,))
        self.thread, self.threads, self.words = thread, threads, words
        for turn, word in self.each():
            for j in range(0, self.n, 4):
                loaded = k.machine.stream(k.norm, [word * self.n + j], "uint32x4")
                at = tirx.Ramp(turn * self.n + j, 1, 4)
                T.buffer_store(self.held, tirx.reinterpret("float32x4", loaded), [at])

    @classmethod
    def fits(cls, k: LinearKernel, threads: int) -> bool:
        w = k.weights
        if k.norm is None or k.machine.stream is None or w.per_word % 4 or w.padded != w.columns:
            return False
        return -(-w.words // threads) * w.per_word <= cls.MOST

    def each(self):
        """(turn, word) of this thread; what is emitted in the loop runs only where there is such a word."""
        for turn in range(self.turns):
            word = T.bind(turn * self.threads + self.thread)
            with where(word < self.words, (turn + 1) * self.threads <= self.words):
                yield turn, word

    def values(self, turn: int) -> list:
        return [T.BufferLoad(self.held, [turn * self.n + j]) for j in range(self.n)]


class _Staged:
    """The token's activations in shared memory, in the order of the packed words.

    `factor` multiplies every dot product: 1/rms, found in the same pass, and any scaling of the stored values.
    """

    def __init__(self, k: LinearKernel, thread, threads: int, norm: _NormAhead | None = None):
        self.k, self.w = k, k.weights
        squares = Register(T.float32(0))
        self.allocate()
        if norm is None:
            with strided(self.w.words, thread, threads) as word:
                self.stage(word, self.read(word, squares))
        else:
            for turn, word in norm.each():
                self.stage(word, self.read(word, squares, norm.values(turn)))
        if k.norm is None:
            barrier()
            self.factor = T.float32(1)
        else:
            whole = block_reduce(k.machine, squares.get(), lambda a, b: a + b, threads, thread)
            self.factor = k.inverse_rms(whole)

    def read(self, word, squares: Register, norm: list | None = None) -> list:
        """The activations of one word, zero beyond the columns; adds their squares (before the norm's weight). `norm`:
        the norm's weights if they are here already."""
        k, w = self.k, self.w
        n = w.per_word
        start = T.bind(word * n)
        width = next(v for v in (4, 2, 1) if n % v == 0 and k.op.columns % v == 0)
        values = []
        for j in range(0, n, width):
            chunk = local((width,))
            index = start + j if width == 1 else tirx.Ramp(start + j, 1, width)
            at = 0 if width == 1 else tirx.Ramp(0, 1, width)
            inside = start + j < k.op.columns
            for i in range(width):
                T.buffer_store(chunk, T.float32(0), [i])
            weight = local((width,)) if k.norm is not None and norm is None else None
            with contextlib.ExitStack() as guard:
                if w.padded != k.op.columns:
                    guard.enter_context(T.If(inside))
                    guard.enter_context(T.Then())
                T.buffer_store(chunk, T.BufferLoad(k.x, [0, index]), [at])
                if weight is not None:
                    T.buffer_store(weight, T.BufferLoad(k.norm, [index]), [at])
                if k.norm is not None:
                    for i in range(width):
                        value = T.bind(T.BufferLoad(chunk, [i]))
                        squares.add(value * value)
                        factor = T.BufferLoad(weight, [i]) if norm is None else norm[j + i]
                        T.buffer_store(chunk, value * factor, [i])
            values += [T.BufferLoad(chunk, [i]) for i in range(width)]
        return values


class _Activations(_Staged):
    """Any scheme: [element of word, word] in the scheme's float type, and the sum of each word's activations where
    weights have an offset. Lane l reads words n * l + v: those with equal v lie together, against bank conflicts."""

    @staticmethod
    def bytes(k: LinearKernel) -> int:
        """Of shared memory."""
        w, scheme = k.weights, k.op.scheme
        return w.padded * (2 if scheme.dtype == "float16" else 4) + 4 * w.words * scheme.asymmetric

    def allocate(self) -> None:
        scheme = self.k.op.scheme
        self.apart = 1 if scheme.is_float else self.w.per_lane
        self.x = shared((self.w.per_word, self.w.words), scheme.dtype)
        self.sums = shared((self.w.words,)) if scheme.asymmetric else None

    def place(self, word):
        return tirx.floormod(word, self.apart) * (self.w.words // self.apart) + tirx.floordiv(word, self.apart)

    def stage(self, word, values: list) -> None:
        total, place = Register(T.float32(0)), T.bind(self.place(word))
        for j, value in enumerate(values):
            stored = T.bind(tirx.Cast(self.k.op.scheme.dtype, value))
            T.buffer_store(self.x, stored, [j, place])
            if self.sums is not None:  # of what is multiplied: rounding must not act as an offset
                total.add(tirx.Cast("float32", stored))
        if self.sums is not None:
            T.buffer_store(self.sums, total.get(), [place])

    def word(self, at) -> tuple[list, object]:
        """The activations of the word at `at` in float32, and their sum where weights have an offset."""
        at = T.bind(self.place(at))
        values = [T.bind(tirx.Cast("float32", T.BufferLoad(self.x, [j, at]))) for j in range(self.w.per_word)]
        return values, None if self.sums is None else T.BufferLoad(self.sums, [at])

    def partial_dots(self, rows: list, stored: list, scales: list, word) -> list:
        """Per row the sum over `per_lane` words from `word` of weight * activation."""
        w, dots = self.w, []
        for g, first in enumerate(w.group_starts(word)):
            partial = [Register(T.float32(0)) for _ in rows]
            offset_sum = Register(T.float32(0)) if w.scheme.asymmetric else None
            for v in range(w.per_lane // w.lane_groups):
                at = first + v
                values, total = self.word(at)
                for r, row in enumerate(rows):
                    code_word = stored[r][g * w.per_lane // w.lane_groups + v]
                    for value, code in zip(values, w.values(code_word, row, at, w.scheme.zero or 0), strict=True):
                        partial[r].add(code * value)
                if offset_sum is not None:
                    offset_sum.add(total)
            if not scales:
                return [p.get() for p in partial]
            sums = [scale[g] * p.get() for scale, p in zip(scales, partial, strict=True)]
            if offset_sum is not None:
                offsets = [w.offset(row, first, scale[g]) for row, scale in zip(rows, scales, strict=True)]
                sums = [s + o * offset_sum.get() for s, o in zip(sums, offsets, strict=True)]
            dots.append(sums)
        return [reduce(add, each) for each in zip(*dots, strict=True)]


class _PackedActivations(_Staged):
    """Symmetric 4-bit codes with packed half arithmetic: eight float16 a word in the order that `dot8` wants.

    Values are stored divided by 16, so that the half-precision sum of eight products cannot overflow for activations
    below 30,000. Lane l reads word 4*l + v of its row: words with equal v lie together, which avoids bank conflicts.
    """

    @staticmethod
    def bytes(k: LinearKernel) -> int:
        return 2 * k.weights.padded

    def allocate(self) -> None:
        self.x = shared((4, self.w.words // 4, 8), "float16")

    def stage(self, word, values: list) -> None:
        slot = [tirx.floormod(word, 4), tirx.floordiv(word, 4)]
        packed = local((8,), "float16")
        for i, j in enumerate(PACKED_ORDER):
            T.buffer_store(packed, tirx.Cast("float16", values[j] * T.float32(1 / PACKED_SCALE)), [i])
        T.buffer_store(self.x, T.BufferLoad(packed, [tirx.Ramp(0, 1, 8)]), [*slot, tirx.Ramp(0, 1, 8)])

    def partial_dots(self, rows: list, stored: list, scales: list, word) -> list:
        group = T.bind(tirx.floordiv(word, 4))
        partial = [Register(T.float32(0)) for _ in rows]
        for v in range(4):
            x = T.bind(T.BufferLoad(self.x, [v, group, tirx.Ramp(0, 1, 8)]))
            for r in range(len(rows)):
                partial[r].add(self.k.machine.dot8(stored[r][v], x))
        return [s[0] * p.get() * T.float32(PACKED_SCALE) for s, p in zip(scales, partial, strict=True)]


class _PrepackedActivations(_PackedActivations):
    """Packed by the kernel that made them (see `packs`): they are only copied."""

    def __init__(self, k: LinearKernel, thread, threads: int, norm: None = None):
        self.k, self.w, self.factor = k, k.weights, T.float32(1)
        self.allocate()
        words, held = k.weights.words, []
        for first in range(0, words, threads):  # all loads are under way before the first is used
            word = T.bind(tirx.min(first + thread, words - 1))
            eight = local((8,), "float16")
            loaded = k.machine.stream(k.x, [0, word * 8], "float16x8")
            T.buffer_store(eight, loaded, [tirx.Ramp(0, 1, 8)])
            held.append((word, eight))
        for word, eight in held:
            to = [tirx.floordiv(word, words // 4), tirx.floormod(word, words // 4), tirx.Ramp(0, 1, 8)]
            T.buffer_store(self.x, T.BufferLoad(eight, [tirx.Ramp(0, 1, 8)]), to)
        barrier()


def _row_dots(k: LinearKernel, stream: _WeightStream, x: _Staged, rows: list, following) -> list:
    """Dot products of the rows with the staged activations; every lane has the results."""
    totals = [Register(T.float32(0)) for _ in rows]

    def use(word, stored: list, scales: list) -> None:
        for total, dot in zip(totals, x.partial_dots(rows, stored, scales, word), strict=True):
            total.add(dot)

    stream.consume(rows, following, use)
    return [subgroup_reduce(k.machine, t.get(), lambda a, b: a + b) for t in totals]


def _gemm(k: LinearKernel, tiles: LinearTiles) -> None:
    """A block computes gemm_tile tokens x gemm_tile units; 256 threads hold 4 x 4 outputs (per part) each."""
    op, w = k.op, k.weights
    tile, depth, threads, each = tiles.gemm_tile, tiles.gemm_k, 256, tiles.gemm_tile // 16
    with launch(bx=-(-op.units // tile), by=k.token_blocks(tile), tx=threads) as (block_n, block_m, thread):
        k.machine.follow()
        a = shared((depth, tile + 1))
        b = [shared((depth, tile + 1)) for _ in range(k.parts)]
        inverse = shared((tile,)) if k.norm is not None else None
        (token0, end), unit0 = k.token_range(block_m, tile), T.bind(block_n * tile)
        if inverse is not None:
            _token_norms(k, token0, tile, thread, inverse)
        row, column = T.bind(tirx.floordiv(thread, 16)), T.bind(tirx.floormod(thread, 16))
        acc = [Register(T.float32(0), count=each * each) for _ in range(k.parts)]
        with T.serial(k.steps(-(-w.padded // depth))) as step:
            k0 = T.bind(step * depth)
            with strided(tile * depth, thread, threads) as i:
                t, c = T.bind(tirx.floordiv(i, depth)), T.bind(tirx.floormod(i, depth))
                safe_t = k.source(token0 + t, end)
                safe_c = tirx.min(k0 + c, op.columns - 1)
                value = k.activation_at(safe_t, safe_c)
                if inverse is not None:
                    value = value * T.BufferLoad(inverse, [t])
                T.buffer_store(a, tirx.Select(k0 + c < op.columns, value, T.float32(0)), [c, t])
            _stage_weights(k, b, unit0, k0, tile, depth, thread, threads)
            barrier()
            with T.serial(depth) as c:
                left = [T.bind(T.BufferLoad(a, [c, row * each + i])) for i in range(each)]
                for p in range(k.parts):
                    for j in range(each):
                        right = T.bind(T.BufferLoad(b[p], [c, column * each + j]))
                        for i in range(each):
                            acc[p].add(left[i] * right, i * each + j)
            barrier()
        for i in range(each):
            for j in range(each):
                token, unit = token0 + row * each + i, unit0 + column * each + j
                with T.If(tirx.And(token < end, unit < op.units)), T.Then():
                    k.finish(token, unit, [acc[p].get(i * each + j) for p in range(k.parts)])


def _token_norms(k: LinearKernel, token0, tile: int, thread, inverse) -> None:
    """1/rms of the tile's tokens: one thread sums one token's columns (the activations are in cache)."""
    with T.If(thread < tile), T.Then():
        total = Register(T.float32(0))
        token = T.bind(tirx.min(token0 + thread, k.n - 1))
        with T.serial(k.op.columns) as i:
            value = T.bind(T.BufferLoad(k.x, [token, i]))
            total.add(value * value)
        T.buffer_store(inverse, k.inverse_rms(total.get()), [thread])
    barrier()


def _stage_weights(k: LinearKernel, b: list, unit0, k0, tile: int, depth: int, thread, threads: int) -> None:
    """Dequantise depth columns of `tile` rows (of each part) into shared memory, a word per thread at a time."""
    op, w = k.op, k.weights
    words = depth // w.per_word
    for p in range(k.parts):
        with strided(tile * words, thread, threads) as i:
            u, v = T.bind(tirx.floordiv(i, words)), T.bind(tirx.floormod(i, words))
            row = T.bind(k.weight_row(tirx.min(unit0 + u, op.units - 1), p))
            word = T.bind(tirx.min(tirx.floordiv(k0, w.per_word) + v, w.words - 1))
            part = "" if op.scheme.is_float else "codes"
            stored = T.bind(T.BufferLoad(w.buffers[part], [row, word]))
            affine = w.affine(row, word)
            for j, value in enumerate(w.values(stored, row, word)):
                if affine is not None:
                    value = affine[0] * value + affine[1]
                T.buffer_store(b[p], value, [v * w.per_word + j, u])


def linear(op: Linear, tiles: LinearTiles, machine: Machine, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32); x and y
    as op.packed_in and op.packed_out say."""

    def body() -> None:
        kernel = LinearKernel(op, machine)
        (_gemv if op.tokens == 1 else _gemm)(kernel, tiles)

    return prim_func(name, body)
