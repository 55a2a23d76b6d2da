"""Products with many tokens on tensor cores, weights dequantised on their way from shared memory to the fragments.

Two kernels: `prepare` normalises the activations and writes them as float16 in the order of the packed codes; the
product then streams both operands through shared memory with asynchronous copies. A block computes 128 tokens x 128
weight rows: with four warps of 64 x 64, two blocks to a multiprocessor, or, where tokens and rows are too few for so
many blocks, with eight warps of 64 x 32.

Order: 32 neighbouring columns are two steps of the contraction. Lane column c holds columns 8c .. 8c+7 of them, which
of a 4-bit weight is one word, as the pairs (0,4) (1,5) | (2,6) (3,7) that unpacking two codes at once gives.

A lane's part of an A fragment has to come into four neighbouring registers, or the compiler moves it there for every
product. So tokens t and t + 8 of a tile of 16 share a row of `prepared`, pair by pair: of every 16 bytes the first and
third pair belong to t, the second and fourth to t + 8.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.common import (
    Machine,
    Register,
    barrier,
    block_reduce,
    launch,
    local,
    prim_func,
    resident,
    strided,
    unrolled,
)
from mlcrt.kernels.simt.linear import LinearKernel

from .unit import MatrixUnit

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
DEPTH = 64  # columns of a stage
GROUP = 32  # columns that one scale and one pair of steps cover
TOKENS, ROWS, WARP_TOKENS = 128, 128, 64  # of a block, of a warp
PREPARE_THREADS = 256


@dataclass(frozen=True)
class PrefillTiles:
    """stages: copies in flight, of 20.5 KB each; few: up to so many blocks, each has eight warps."""

    stages: int = 4
    few: int = 198


def covers(op: Linear) -> bool:
    """Any number of tokens in half precision; schemes that compute in float32 keep their plain kernels."""
    return op.tokens is None and op.scheme.dtype == "float16"


def _padded(op: Linear) -> int:
    return -(-op.columns // DEPTH) * DEPTH


def prepared_shape(op: Linear, n) -> tuple:
    """Workspace: the activations as float16, two tokens a row; rows for whole tiles of 16 tokens."""
    return (tirx.floordiv(n + 15, 16) * 8, 2 * _padded(op))


def _packed(op: Linear) -> bool:
    """Whether codes and scales can be copied as they lie and unpacked two at a time."""
    s = op.scheme
    return s.bits == 4 and s.zero == 8 and s.group == GROUP and op.columns % DEPTH == 0


def prefill_linear(op: Linear, tiles: PrefillTiles, machine: Machine, unit: MatrixUnit, name: str):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    prepared f16, see prepared_shape)."""

    def body() -> None:
        kernel = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), prepared_shape(op, kernel.n), "float16")
        _prepare(kernel, prepared)
        columns = -(-op.rows // ROWS)
        if columns > tiles.few:
            _Product(kernel, tiles, unit, prepared, 64).emit()
            return
        with T.If(tirx.floordiv(kernel.n + TOKENS - 1, TOKENS) * columns <= tiles.few):
            with T.Then():
                _Product(kernel, tiles, unit, prepared, 32).emit()
            with T.Else():
                _Product(kernel, tiles, unit, prepared, 64).emit()

    return prim_func(name, body)


def _prepare(k: LinearKernel, prepared) -> None:
    """Per token: x, or RMSNorm(x), rounded to float16 and ordered; zero beyond the columns. What lies in the places of
    tokens beyond the last may be anything: it only reaches their own results."""
    op = k.op
    with launch(bx=k.n, tx=PREPARE_THREADS) as (token, thread):
        k.machine.follow()
        inverse = None
        if k.norm is not None:
            squares = Register(T.float32(0))
            with strided(op.columns, thread, PREPARE_THREADS) as i:
                value = T.bind(T.BufferLoad(k.x, [token, i]))
                squares.add(value * value)
            inverse = k.inverse_rms(block_reduce(k.machine, squares.get(), lambda a, b: a + b, PREPARE_THREADS, thread))
        with strided(_padded(op) // 8, thread, PREPARE_THREADS) as i:
            values = local((8,))
            for j in range(8):
                T.buffer_store(values, T.float32(0), [j])
                with T.If(i * 8 + j < op.columns), T.Then():
                    T.buffer_store(values, k.activation_at(token, i * 8 + j), [j])
            ordered = local((8,), "float16")
            for place, j in enumerate(ORDER):
                value = T.BufferLoad(values, [j])
                T.buffer_store(ordered, tirx.Cast("float16", value if inverse is None else value * inverse), [place])
            row = T.bind(tirx.floordiv(token, 16) * 8 + tirx.floormod(token, 8))
            start = T.bind(i * 16 + tirx.floordiv(tirx.floormod(token, 16), 8) * 2)
            for pair in range(4):
                held = T.BufferLoad(ordered, [tirx.Ramp(2 * pair, 1, 2)])
                T.buffer_store(prepared, held, [row, tirx.Ramp(start + 4 * pair, 1, 2)])


class _Product:
    """The second kernel. Shared memory per stage: tokens x 64 float16, rows x 64 codes, rows x 2 scales.

    16-byte units are exchanged within a row so that the eight lanes of a shared-memory transaction meet different
    banks: activations by the parity of their row, codes by bit 2 of the row.
    """

    def __init__(self, k: LinearKernel, tiles: PrefillTiles, unit: MatrixUnit, prepared, warp_rows: int):
        self.k, self.op, self.unit, self.prepared = k, k.op, unit, prepared
        self.stages = tiles.stages
        self.packed = _packed(k.op)
        self.steps = _padded(k.op) // DEPTH
        self.warp_rows = warp_rows
        self.threads = TOKENS // WARP_TOKENS * ROWS // self.warp_rows * 32
        self.block_units = ROWS // k.parts

    def emit(self) -> None:
        k, op = self.k, self.op
        grid_m = tirx.floordiv(k.n + TOKENS - 1, TOKENS)
        grid = {"bx": grid_m, "by": -(-op.units // self.block_units), "tx": self.threads}
        with launch(**grid) as (block_m, block_n, thread), resident(256 // self.threads):
            k.machine.follow()
            self.thread = thread
            self.token0, self.unit0 = T.bind(block_m * TOKENS), T.bind(block_n * self.block_units)
            self.locate()
            self.a = T.alloc_buffer((self.stages, TOKENS // 2, 2 * DEPTH), "float16", scope="shared.dyn")
            if self.packed:
                self.codes = T.alloc_buffer((self.stages, ROWS, DEPTH // 8), "uint32", scope="shared.dyn")
                self.scales = T.alloc_buffer((self.stages, ROWS, DEPTH // GROUP), "float16", scope="shared.dyn")
            count = WARP_TOKENS // 16 * self.warp_rows // 8 * 4
            self.sums = local((count,))
            for i in range(count):
                T.buffer_store(self.sums, T.float32(0), [i])
            for stage in range(self.stages - 1):
                if stage < self.steps:
                    self.fetch(stage, T.int32(stage))
                self.unit.commit()
            with T.serial(self.steps) as step:
                self.unit.wait(self.stages - 2)
                barrier()
                ahead = T.bind(step + (self.stages - 1))
                with T.If(ahead < self.steps), T.Then():
                    self.fetch(T.bind(tirx.floormod(ahead, self.stages)), ahead)
                self.unit.commit()
                slot = T.bind(tirx.floormod(step, self.stages))
                with T.If(self.left >= WARP_TOKENS):  # branches between the products would keep them from overlapping
                    with T.Then():
                        self.multiply(slot, step, False)
                    with T.Else():
                        self.multiply(slot, step, True)
            self.store()

    def locate(self) -> None:
        """Where this thread's lane and warp stand in the block."""
        lane, warp = T.bind(tirx.floormod(self.thread, 32)), T.bind(tirx.floordiv(self.thread, 32))
        self.row, self.column = T.bind(tirx.floordiv(lane, 4)), T.bind(tirx.floormod(lane, 4))
        self.warp_m = T.bind(tirx.floordiv(warp, ROWS // self.warp_rows) * WARP_TOKENS)
        self.warp_n = T.bind(tirx.floormod(warp, ROWS // self.warp_rows) * self.warp_rows)
        self.left = T.bind(self.k.n - self.token0 - self.warp_m)  # tokens from this warp's first on

    def unit_of(self, local_row):
        """(unit, part) of a row of the block: with two parts, tiles of eight rows alternate between them."""
        if self.k.parts == 1:
            return self.unit0 + local_row, 0
        tile = tirx.floordiv(local_row, 8)
        unit = self.unit0 + tirx.floordiv(tile, 2) * 8 + tirx.floormod(local_row, 8)
        return unit, tirx.floormod(tile, 2)

    def weight_row(self, local_row):
        unit, part = self.unit_of(local_row)
        return T.bind(tirx.min(unit, self.op.units - 1) + part * self.op.units)

    def fetch(self, slot, step) -> None:
        """Start the copies of one stage."""
        pieces, last = DEPTH // 4, tirx.floordiv(self.k.n + 15, 16) * 8 - 1
        for i in range(TOKENS // 2 * pieces // self.threads):
            at = T.bind(self.thread + i * self.threads)
            row, piece = T.bind(tirx.floordiv(at, pieces)), T.bind(tirx.floormod(at, pieces))
            source = [T.bind(tirx.min(tirx.floordiv(self.token0, 2) + row, last)), step * (2 * DEPTH) + piece * 8]
            self.unit.copy(self.a, [slot, row, self.spread_token(row, piece) * 8], self.prepared, source, 16)
        if not self.packed:
            return
        buffers = self.k.weights.buffers
        for i in range(2 * ROWS // self.threads):  # two pieces of 16 bytes a row
            at = self.thread + i * self.threads
            local_row, piece = T.bind(tirx.floordiv(at, 2)), T.bind(tirx.floormod(at, 2))
            source = [self.weight_row(local_row), step * (DEPTH // 8) + piece * 4]
            place = self.spread_row(local_row, piece)
            self.unit.copy(self.codes, [slot, local_row, place * 4], buffers["codes"], source, 16)
        with T.If(self.thread < ROWS), T.Then():
            source = [self.weight_row(self.thread), step * (DEPTH // GROUP)]
            self.unit.copy(self.scales, [slot, self.thread, 0], buffers["scales"], source, 4)

    @staticmethod
    def spread_token(row, piece):
        return tirx.bitwise_xor(piece, tirx.floormod(row, 2))

    @staticmethod
    def spread_row(row, piece):
        return tirx.bitwise_xor(piece, tirx.floormod(tirx.floordiv(row, 4), 2))

    def multiply(self, slot, step, partial: bool) -> None:
        """The columns of the stage in `slot`; `partial`: leave out tiles of 16 tokens that are all beyond the last."""
        with unrolled(DEPTH // GROUP) as chunk:
            self.multiply_chunk(slot, step, chunk, partial)

    def multiply_chunk(self, slot, step, chunk, partial: bool) -> None:
        """Two contraction steps: 32 columns."""
        tiles_m, tiles_n = WARP_TOKENS // 16, self.warp_rows // 8
        a = local((tiles_m, 2, 4), "uint32")
        with unrolled(tiles_m) as m, unrolled(2) as half:
            row = T.bind(tirx.floordiv(self.warp_m, 2) + m * 8 + self.row)
            place = T.bind(self.spread_token(self.row, (chunk * 4 + self.column) * 2 + half) * 8)
            words = tirx.reinterpret("uint32x4", T.BufferLoad(self.a, [slot, row, tirx.Ramp(place, 1, 8)]))
            T.buffer_store(a, words, [m, half, tirx.Ramp(0, 1, 4)])
        with unrolled(tiles_n) as tile:
            b = local((4,), "uint32")
            local_row = T.bind(self.warp_n + tile * 8 + self.row)
            if self.packed:
                place = self.spread_row(local_row, chunk) * 4 + self.column
                word = T.BufferLoad(self.codes, [slot, local_row, place])
                self.unit.scaled_codes(b, word, T.BufferLoad(self.scales, [slot, local_row, chunk]))
            else:
                self.dequantize(b, local_row, step * DEPTH + chunk * GROUP)
            with unrolled(tiles_m) as m, contextlib.ExitStack() as guard:
                if partial:
                    guard.enter_context(T.If(m * 16 < self.left))
                    guard.enter_context(T.Then())
                for half in range(2):
                    fragment = [T.BufferLoad(a, [m, half, i]) for i in range(4)]
                    right = [T.BufferLoad(b, [2 * half + i]) for i in range(2)]
                    self.unit.mma(self.sums, 4 * (m * tiles_n + tile), fragment, right)

    def dequantize(self, b, local_row, column) -> None:
        """The eight elements from `column` + 8 * lane column of a row, of any scheme, straight from device memory."""
        w = self.k.weights
        row, first = self.weight_row(local_row), T.bind(column + self.column * 8)
        values, per_word = [], w.per_word
        for start in range(0, 8, min(per_word, 8)):
            word = T.bind(tirx.min(tirx.floordiv(first + start, per_word), w.words - 1))
            stored = T.bind(T.BufferLoad(w.buffers["" if w.scheme.is_float else "codes"], [row, word]))
            affine, found = w.affine(row, word), [T.bind(v) for v in w.values(stored, row, word)]
            if affine is not None:
                found = [T.bind(affine[0] * v + affine[1]) for v in found]
            if per_word > 8:  # the word holds more than this lane's eight
                upper = tirx.floormod(first, per_word) >= 8
                found = [tirx.Select(upper, h, v) for v, h in zip(found[:8], found[8:16], strict=True)]
            values += found
        for i in range(4):
            packed = self.unit.pack(values[ORDER[2 * i]], values[ORDER[2 * i + 1]])
            T.buffer_store(b, packed, [i])

    def store(self) -> None:
        """Epilogue from the registers; gate and up stand in neighbouring tiles of the same lane."""
        k, parts, tiles_n = self.k, self.k.parts, self.warp_rows // 8
        for m in range(WARP_TOKENS // 16):
            for half in range(2):
                token = T.bind(self.token0 + self.warp_m + m * 16 + half * 8 + self.row)
                with T.If(token < k.n), T.Then():
                    for tile in range(0, tiles_n, parts):
                        for i in range(2):
                            unit, _ = self.unit_of(self.warp_n + tile * 8 + 2 * self.column + i)
                            sums = [
                                T.BufferLoad(self.sums, [4 * (m * tiles_n + tile + p) + 2 * half + i])
                                for p in range(parts)
                            ]
                            with T.If(unit < k.op.units), T.Then():
                                k.finish(token, unit, sums)
