"""Independent tokens times a 4-bit weight on tensor cores: the rows of the weight are those of A, the tokens columns of
B, so that a product of 16 x 16 weights serves eight tokens, and each token's sums run in the same order whatever others
stand beside it.

Lane (row, column) loads 16 bytes of a weight row, four words of one group; four lanes cover 128 columns, a step of the
contraction. The warps of a block share out its rows and the steps, and their sums meet in shared memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space
from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.activations import PACKED_SCALE, takes_halves
from mlcrt.kernels.simt.alike import Order, prepare
from mlcrt.kernels.simt.common import (
    Machine,
    barrier,
    first_of,
    launch,
    local,
    prim_func,
    resident,
    shared,
    strided,
    where,
)
from mlcrt.kernels.simt.linear import LinearKernel

from .unit import MatrixUnit

WARP_ROWS = 32  # of a warp
CHIP = 132  # multiprocessors of the largest chip
WARPS = 8  # of a block; twice as many where there is at most one block for each multiprocessor
JOINED = 256  # tokens times warps whose sums meet in shared memory at once
WORDS = 16  # of a row in a step
LEVELS = ((1, 2), (2, 4))  # tiles of eight tokens, after the first, that are computed or skipped together
MANY = 2 * CHIP * WARP_ROWS  # rows that fill the chip with blocks of twice as many rows


@dataclass(frozen=True)
class Tile:
    """tokens: of a block; depth: steps whose weights are in registers or under way; resident: blocks of WARPS warps
    that share a multiprocessor. None of them changes the order of a token's sums."""

    tokens: int
    depth: int
    resident: int


TILES = (Tile(8, 1, 3), Tile(16, 1, 2), Tile(32, 2, 2))  # each for up to so many tokens, the last for any number


def covers(op: Linear) -> bool:
    """Symmetric 4-bit codes in half precision; other schemes use simt's kernel."""
    return op.alike and takes_halves(op.scheme) and op.scheme.group == 32


def scratch(op: Linear, n) -> list[Space]:
    """Workspaces of `linear`: the ordered activations."""
    return [Space((n, -(-op.columns // 32) * 32), "float16")]


def linear(op: Linear, machine: Machine, unit: MatrixUnit, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    workspace of `scratch`)."""

    def body() -> None:
        k = LinearKernel(op, machine)
        (space,) = scratch(op, k.n)
        x = T.match_buffer(T.arg("ordered", T.handle()), space.shape, space.dtype)
        order = Order.of(op.scheme, k.weights.words, k.weights.per_lane, machine.vector)
        prepare(k, order, True, x)
        first_of(
            (None if tile is TILES[-1] else k.n <= tile.tokens, _Product(k, unit, order, x, tile).emit)
            for tile in TILES
        )

    return prim_func(name, body)


class _Product:
    def __init__(self, k: LinearKernel, unit: MatrixUnit, order: Order, x, tile: Tile):
        self.k, self.op, self.w, self.unit, self.order, self.x = k, k.op, k.weights, unit, order, x
        self.tile, self.depth, self.levels = tile.tokens, tile.depth, [at for at in LEVELS if 8 * at[1] <= tile.tokens]
        self.rows = WARP_ROWS * (2 if k.op.rows >= MANY else 1)  # of a block
        self.warps = 2 * WARPS if k.op.rows <= CHIP * WARP_ROWS else WARPS
        self.resident = max(1, tile.resident * WARPS // self.warps)
        self.shares = self.warps * WARP_ROWS // self.rows  # warps among which a row's steps are shared out
        self.units = self.rows // k.parts
        self.steps = -(-self.w.words // WORDS)
        self.partial = self.w.words % WORDS != 0

    def emit(self) -> None:
        k, op = self.k, self.op
        blocks = {"bx": -(-op.units // self.units), "by": tirx.floordiv(k.n + (self.tile - 1), self.tile)}
        with launch(**blocks, tx=32 * self.warps) as (block, tile, thread), resident(self.resident):
            self.thread = thread
            lane, warp = T.bind(tirx.floormod(thread, 32)), T.bind(tirx.floordiv(thread, 32))
            self.row, self.column = T.bind(tirx.floordiv(lane, 4)), T.bind(tirx.floormod(lane, 4))
            self.share = T.bind(tirx.floormod(warp, self.shares))
            self.first = T.bind(tirx.floordiv(warp, self.shares) * WARP_ROWS)
            self.unit0, self.token0 = T.bind(block * self.units), T.bind(tile * self.tile)
            self.codes = [local((WARP_ROWS // 8, 4), "uint32") for _ in range(self.depth)]
            self.scales = [local((WARP_ROWS // 8,), "float16") for _ in range(self.depth)]
            self.sums = local((self.tile // 8 * WARP_ROWS // 16 * 4,))
            for i in range(self.tile // 8 * WARP_ROWS // 16 * 4):
                T.buffer_store(self.sums, T.float32(0), [i])
            self.weight_rows = [T.bind(self.weight_row(self.first + 8 * i + self.row)) for i in range(WARP_ROWS // 8)]
            for d in range(self.depth):
                self.fetch(d, T.bind(self.share + d * self.shares))
            k.machine.follow()
            self.left = T.bind(k.n - self.token0)
            tokens = [tirx.min(self.token0 + 8 * i + self.row, k.n - 1) for i in range(self.tile // 8)]
            self.tokens = [T.bind(t) for t in tokens]
            with T.serial(-(-self.steps // (self.shares * self.depth))) as turn:
                for d in range(self.depth):
                    step = T.bind((turn * self.depth + d) * self.shares + self.share)
                    with T.If(step < self.steps), T.Then():
                        self.multiply(d, step)
            self.finish()

    def weight_row(self, local_row):
        """The block's rows are those of its units of part 0, then of part 1."""
        unit = tirx.min(self.unit0 + tirx.floormod(local_row, self.units), self.op.units - 1)
        return unit + tirx.floordiv(local_row, self.units) * self.op.units

    @contextlib.contextmanager
    def inside(self, step, otherwise=None):
        """Guard for lanes beyond the last word of a row."""
        if not self.partial:
            yield
            return
        with T.If(step * WORDS + self.column * 4 < self.w.words):
            with T.Then():
                yield
            if otherwise is not None:
                with T.Else():
                    otherwise()

    def fetch(self, slot: int, step) -> None:
        """Issue the loads of a step's weights, if there is such a step."""
        codes, scales, whole = self.codes[slot], self.scales[slot], tirx.Ramp(0, 1, 4)
        buffers, stream = self.w.buffers, self.k.machine.stream

        def nothing() -> None:
            for i in range(len(self.weight_rows)):
                T.buffer_store(scales, T.float16(0), [i])
                for j in range(4):
                    T.buffer_store(codes, T.uint32(0), [i, j])

        with T.If(step < self.steps), T.Then(), self.inside(step, nothing):
            group = T.bind(step * (WORDS // 4) + self.column)
            for i, row in enumerate(self.weight_rows):
                if stream is None:
                    held = T.BufferLoad(buffers["codes"], [row, tirx.Ramp(group * 4, 1, 4)])
                    scale = T.BufferLoad(buffers["scales"], [row, group])
                else:
                    held = stream(buffers["codes"], [row, group * 4], "uint32x4")
                    scale = stream(buffers["scales"], [row, group], "float16")
                T.buffer_store(codes, held, [i, whole])
                T.buffer_store(scales, scale, [i])

    def multiply(self, slot: int, step) -> None:
        """The step in a slot times the tokens; then the slot is free for its successor. Few weights at a time are
        unpacked, and the first tile's activations are under way meanwhile, so that all fits the registers."""
        rows, run = WARP_ROWS // 8, T.bind(step * (WORDS // 4) + self.column)
        first = local((16,), "uint32")
        self.activations(first, 0, step, run, range(4))
        for j in range(4):
            weights = [local((4,), "uint32") for _ in range(rows)]
            for i, out in enumerate(weights):
                word, scale = T.BufferLoad(self.codes[slot], [i, j]), T.BufferLoad(self.scales[slot], [i])
                self.unit.scaled_codes(out, word, scale)
            self.products(0, weights, [T.BufferLoad(first, [4 * j + i]) for i in range(4)])
            for low, high in self.levels:
                with T.If(self.left > 8 * low), T.Then():
                    x = [local((4,), "uint32") for _ in range(low, high)]
                    for held, tile in zip(x, range(low, high), strict=True):
                        self.activations(held, tile, step, run, [j])
                    for held, tile in zip(x, range(low, high), strict=True):
                        self.products(tile, weights, [T.BufferLoad(held, [i]) for i in range(4)])
        self.fetch(slot, T.bind(step + self.depth * self.shares))

    def products(self, tile: int, weights: list, x: list) -> None:
        """Two contraction steps of the warp's rows with a tile of eight tokens."""
        mats = WARP_ROWS // 16
        for m in range(mats):
            for pair in (0, 2):
                a = [T.BufferLoad(w, [pair + i]) for i in range(2) for w in weights[2 * m : 2 * m + 2]]
                self.unit.mma(self.sums, 4 * (tile * mats + m), a, x[pair : pair + 2])

    def activations(self, x, tile: int, step, run, words) -> None:
        """x becomes this lane's eight elements of a tile's token for each of its `words`: pairs of float16 in the order
        of the codes."""

        def nothing() -> None:
            for i in range(4 * len(words)):
                T.buffer_store(x, T.uint32(0), [i])

        with self.inside(step, nothing):
            for i, j in enumerate(words):
                start = T.bind((run + j * self.order.runs) * 8)
                held = T.BufferLoad(self.x, [self.tokens[tile], tirx.Ramp(start, 1, 8)])
                T.buffer_store(x, tirx.reinterpret("uint32x4", held), [tirx.Ramp(4 * i, 1, 4)])

    def finish(self) -> None:
        """Join the warps that shared out the steps; a thread ends some results."""
        at_once = min(self.tile, JOINED // self.warps)
        joined = shared((self.shares * at_once * (self.rows + 4),))
        for first in range(0, self.tile, at_once):
            with where(self.left > first, always=first == 0):
                if first:
                    barrier()
                self.gather(joined, first, at_once)
                barrier()
                self.end(joined, first, at_once)

    def place(self, share, token, row, at_once: int):
        """Where a warp's sum stands among those that are joined at once."""
        return (share * at_once + token) * (self.rows + 4) + row

    def gather(self, joined, first: int, at_once: int) -> None:
        """This warp's sums of `at_once` tokens from `first` on."""
        mats = WARP_ROWS // 16
        for tile in range(first // 8, (first + at_once) // 8):
            with T.If(self.left > 8 * tile), T.Then():
                for m in range(mats):
                    for i in range(4):
                        token = 8 * tile - first + 2 * self.column + i % 2
                        row = self.first + 16 * m + 8 * (i // 2) + self.row
                        place = self.place(self.share, token, row, at_once)
                        T.buffer_store(joined, T.BufferLoad(self.sums, [4 * (tile * mats + m) + i]), [place])

    def end(self, joined, first: int, at_once: int) -> None:
        """The results of these tokens."""
        count = T.bind(tirx.min(self.left - first, at_once) * self.units)
        with strided(count, self.thread, 32 * self.warps) as item:
            token, local_unit = T.bind(tirx.floordiv(item, self.units)), T.bind(tirx.floormod(item, self.units))
            with T.If(self.unit0 + local_unit < self.op.units), T.Then():
                totals = []
                for p in range(self.k.parts):
                    total = T.float32(0)
                    for share in range(self.shares):
                        place = self.place(share, token, p * self.units + local_unit, at_once)
                        total = T.bind(total + T.BufferLoad(joined, [place]))
                    totals.append(total * T.float32(PACKED_SCALE))
                self.k.finish(self.token0 + first + token, self.unit0 + local_unit, totals)
