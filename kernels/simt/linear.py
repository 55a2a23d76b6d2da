"""y = epilogue(prologue(x) @ W^T) with W dequantised on the fly, for GPUs.

One token: a subgroup takes a few rows at once; each lane loads 16 bytes of each row, and the activations, staged in
shared memory in the order of the packed words, serve all of them. More tokens: a block computes a tile of outputs from
tiles of activations and dequantised weights in shared memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Linear

from .activations import (
    Activations,
    NormAhead,
    PackedActivations,
    PrepackedActivations,
    Staged,
    store_packed,
    takes_halves,
)
from .common import (
    Machine,
    Register,
    barrier,
    block_reduce,
    launch,
    prim_func,
    resident,
    shared,
    strided,
    subgroup_reduce,
)
from .functions import activation
from .groups import GroupedActivations
from .staging import described, staged_groups, tiles_with_room
from .stream import WeightStream
from .unstaged import Unstaged
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
        stream = WeightStream(k.weights, units * k.parts, lane, k.machine, tiles.gemv_depth, count, staged is not None)
        stream.begin(rows_of(0)[1])
        if staged is not None:
            staged.fetch(thread, threads)
        norm = NormAhead(k, thread, threads) if NormAhead.fits(k, threads) else None
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
    scheme, machine, kind = k.op.scheme, k.machine, Activations
    if k.op.packed_in:
        return PrepackedActivations
    if takes_halves(scheme) and machine.dot8 is not None:
        kind = PackedActivations
    if scheme.dtype == "float16" and scheme.bits == 3 and machine.dot32 is not None and k.weights.per_lane == 4:
        kind = GroupedActivations
    if kind.bytes(k) + _REDUCTION_BYTES <= machine.shared_bytes:
        return kind
    return Unstaged


def _row_dots(k: LinearKernel, stream: WeightStream, x: Staged, rows: list, following) -> list:
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
