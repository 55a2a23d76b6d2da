"""Products with many tokens on tensor cores, weights dequantised on their way from shared memory to the fragments.

Two kernels: `prepare` normalises the activations and writes them as float16 in the order of the packed codes; the
product then streams both operands through shared memory with asynchronous copies. A block computes 128 tokens x 128
weight rows: with four warps of 64 x 64, two blocks to a multiprocessor, or, where tokens and rows are too few for so
many blocks, with eight warps of 64 x 32.

Order: 32 neighbouring columns are two steps of the contraction. Lane column c holds columns 8c .. 8c+7 of them, which
of a 4-bit weight is one word, as the pairs (0,4) (1,5) | (2,6) (3,7) that unpacking two codes at once gives.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
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
from mlcrt.kernels.simt.experts_half import Half
from mlcrt.kernels.simt.linear import LinearKernel

from .unit import MatrixUnit

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
DEPTH = 64  # columns of a stage
GROUP = 32  # columns that one scale and one pair of steps cover
WARP_TOKENS = 64  # of a warp
PREPARE_THREADS = 256


@dataclass(frozen=True)
class PrefillTiles:
    """tokens, rows: of a block; stages: copies in flight, of 20.5 KB each; few: up to so many blocks, each has eight
    warps."""

    tokens: int = 128
    rows: int = 128
    stages: int = 4
    few: int = 198


def padded(columns: int) -> int:
    """Columns of prepared activations."""
    return -(-columns // DEPTH) * DEPTH


def place(column):
    """Where a column stands in a prepared row."""
    eight, at = tirx.floordiv(column, 8), tirx.floormod(column, 8)
    return eight * 8 + tirx.floormod(at, 4) * 2 + tirx.floordiv(at, 4)


def prepared_shape(op: Linear, n) -> tuple:
    """Workspace: the activations as float16."""
    return (n, padded(op.columns))


def _packed(op: Linear) -> bool:
    """Whether codes and scales can be copied as they lie and unpacked two at a time."""
    s = op.scheme
    return s.bits == 4 and s.zero == 8 and s.group == GROUP and op.columns % DEPTH == 0


def prefill_linear(op: Linear, tiles: PrefillTiles, machine: Machine, unit: MatrixUnit, name: str):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    prepared [n, padded K] f16)."""

    def body() -> None:
        kernel = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), prepared_shape(op, kernel.n), "float16")
        prepare(kernel, prepared, kernel.n)
        columns, cases = -(-op.rows // tiles.rows), [(None, Product(kernel, tiles, unit, prepared, 128).emit)]
        if columns <= tiles.few:
            blocks = tirx.floordiv(kernel.n + tiles.tokens - 1, tiles.tokens) * columns
            cases.insert(0, (blocks <= tiles.few, Product(kernel, tiles, unit, prepared, 256).emit))
        first_of(cases)

    return prim_func(name, body)


def prepare(k: LinearKernel, prepared, n, store=None) -> None:
    """Per row of x, of which there are n: that, or RMSNorm(x), rounded to float16 and ordered; zero beyond the
    columns. store(ordered, token, i): what to do with the columns 8i .. 8i+7, ordered by ORDER."""
    op = k.op
    with launch(bx=n, tx=PREPARE_THREADS) as (token, thread):
        k.machine.follow()
        inverse = k.token_inverse(token, thread, PREPARE_THREADS)
        with strided(padded(op.columns) // 8, thread, PREPARE_THREADS) as i:
            values = local((8,))
            for j in range(8):
                T.buffer_store(values, T.float32(0), [j])
                with T.If(i * 8 + j < op.columns), T.Then():
                    T.buffer_store(values, k.activation_at(token, i * 8 + j), [j])
            ordered = local((8,), "float16")
            for place, j in enumerate(ORDER):
                value = T.BufferLoad(values, [j])
                T.buffer_store(ordered, tirx.Cast("float16", value if inverse is None else value * inverse), [place])
            if store is not None:
                store(ordered, token, i)
            else:
                whole = T.BufferLoad(ordered, [tirx.Ramp(0, 1, 8)])
                T.buffer_store(prepared, whole, [token, tirx.Ramp(T.bind(i * 8), 1, 8)])


def half(tiles: PrefillTiles, unit: MatrixUnit) -> Half:
    """The product for the experts of many tokens."""

    def product(k: LinearKernel, prepared) -> None:
        Product(k, tiles, unit, prepared, 128).emit()

    return Half(tiles.tokens, padded, place, prepare, product)


class Product:
    """The second kernel. Shared memory per stage: tokens x 64 float16, rows x 64 codes, rows x 2 scales.

    16-byte units are exchanged within a row so that the eight lanes of a shared-memory transaction meet different
    banks: activations by the parity of the token, codes by bit 2 of the row.
    """

    def __init__(self, k: LinearKernel, tiles, unit: MatrixUnit, prepared, threads: int):
        self.k, self.op, self.unit, self.prepared = k, k.op, unit, prepared
        self.tokens, self.rows = tiles.tokens, tiles.rows
        self.stages, self.threads = tiles.stages, threads
        self.packed = _packed(k.op)
        self.steps = padded(k.op.columns) // DEPTH
        self.warp_rows = self.rows * self.tokens // WARP_TOKENS * 32 // threads
        self.block_units = self.rows // k.parts

    def emit(self) -> None:
        k = self.k
        grid = {"bx": k.token_blocks(self.tokens), "by": -(-k.span // self.block_units), "tx": self.threads}
        with launch(**grid) as (block_m, block_n, thread), resident(256 // self.threads):
            k.machine.follow()
            self.thread = thread
            self.token0, self.end = k.token_range(block_m, self.tokens)
            self.unit0 = T.bind(block_n * self.block_units)
            steps = k.steps(self.steps)
            self.gather()
            self.locate()
            self.allocate()
            count = WARP_TOKENS // 16 * self.warp_rows // 8 * 4
            self.sums = local((count,))
            for i in range(count):
                T.buffer_store(self.sums, T.float32(0), [i])
            for stage in range(self.stages - 1):
                if stage < self.steps:
                    with where(stage < steps):
                        self.fetch(stage, T.int32(stage))
                self.unit.commit()
            with T.serial(steps) as step:
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

    def allocate(self) -> None:
        """The stages in shared memory."""
        self.a = T.alloc_buffer((self.stages, self.tokens, DEPTH), "float16", scope="shared.dyn")
        if self.packed:
            self.codes = T.alloc_buffer((self.stages, self.rows, DEPTH // 8), "uint32", scope="shared.dyn")
            self.scales = T.alloc_buffer((self.stages, self.rows, DEPTH // GROUP), "float16", scope="shared.dyn")

    def locate(self) -> None:
        """Where this thread's lane and warp stand in the block."""
        lane, warp = T.bind(tirx.floormod(self.thread, 32)), T.bind(tirx.floordiv(self.thread, 32))
        self.row, self.column = T.bind(tirx.floordiv(lane, 4)), T.bind(tirx.floormod(lane, 4))
        self.warp_m = T.bind(tirx.floordiv(warp, self.rows // self.warp_rows) * WARP_TOKENS)
        self.warp_n = T.bind(tirx.floormod(warp, self.rows // self.warp_rows) * self.warp_rows)
        self.left = T.bind(self.end - self.token0 - self.warp_m)  # tokens from this warp's first on

    def gather(self) -> None:
        """Which rows the tokens are, where they are not neighbours."""
        self.sources = None
        if self.k.gathers:
            # not beside what asynchronous copies fill: TVM does not see them, and would give both the same place
            self.sources = shared((self.tokens,), "int32")
            with strided(self.tokens, self.thread, self.threads) as i:
                T.buffer_store(self.sources, self.k.source(self.token0 + i, self.end), [i])
            barrier()

    def source(self, token):
        if self.sources is not None:
            return T.BufferLoad(self.sources, [token])
        return self.k.source(self.token0 + token, self.end)

    def unit_of(self, local_row):
        """(unit, part) of a row of the block: with two parts, tiles of eight rows alternate between them."""
        if self.k.parts == 1:
            return self.unit0 + local_row, 0
        tile = tirx.floordiv(local_row, 8)
        unit = self.unit0 + tirx.floordiv(tile, 2) * 8 + tirx.floormod(local_row, 8)
        return unit, tirx.floormod(tile, 2)

    def weight_row(self, local_row):
        unit, part = self.unit_of(local_row)
        return T.bind(self.k.weight_row(tirx.min(unit, self.op.units - 1), part))

    def fetch(self, slot, step) -> None:
        """Start the copies of one stage."""
        for i in range(self.tokens * (DEPTH // 8) // self.threads):
            at = T.bind(self.thread + i * self.threads)
            token, piece = T.bind(tirx.floordiv(at, DEPTH // 8)), T.bind(tirx.floormod(at, DEPTH // 8))
            source = T.bind(self.source(token))
            place = self.spread_token(token, piece)
            self.unit.copy(self.a, [slot, token, place * 8], self.prepared, [source, step * DEPTH + piece * 8], 16)
        if not self.packed:
            return
        buffers = self.k.weights.buffers
        for i in range(2 * self.rows // self.threads):  # two pieces of 16 bytes a row
            at = self.thread + i * self.threads
            local_row, piece = T.bind(tirx.floordiv(at, 2)), T.bind(tirx.floormod(at, 2))
            source = [self.weight_row(local_row), step * (DEPTH // 8) + piece * 4]
            place = self.spread_row(local_row, piece)
            self.unit.copy(self.codes, [slot, local_row, place * 4], buffers["codes"], source, 16)
        with T.If(self.thread < self.rows), T.Then():
            source = [self.weight_row(self.thread), step * (DEPTH // GROUP)]
            self.unit.copy(self.scales, [slot, self.thread, 0], buffers["scales"], source, 4)

    @staticmethod
    def spread_token(token, piece):
        return tirx.bitwise_xor(piece, tirx.floormod(token, 2) * 4)

    @staticmethod
    def spread_row(row, piece):
        return tirx.bitwise_xor(piece, tirx.floormod(tirx.floordiv(row, 4), 2))

    def multiply(self, slot, step, partial: bool) -> None:
        """The columns of the stage in `slot`; `partial`: leave out tiles of 16 tokens that are all beyond the last."""
        for chunk in range(DEPTH // GROUP):
            self.multiply_chunk(slot, step, chunk, partial)

    def multiply_chunk(self, slot, step, chunk: int, partial: bool) -> None:
        """Two contraction steps: 32 columns."""
        tiles_m, tiles_n = WARP_TOKENS // 16, self.warp_rows // 8
        a = [[local((4,), "uint32") for _ in range(2)] for _ in range(tiles_m)]
        for m in range(tiles_m):
            for half in range(2):
                token = T.bind(self.warp_m + m * 16 + half * 8 + self.row)
                place = T.bind(self.spread_token(token, chunk * 4 + self.column) * 8)
                words = tirx.reinterpret("uint32x4", T.BufferLoad(self.a, [slot, token, tirx.Ramp(place, 1, 8)]))
                T.buffer_store(a[m][half], words, [tirx.Ramp(0, 1, 4)])
        for tile in range(tiles_n):
            b = local((4,), "uint32")
            local_row = T.bind(self.warp_n + tile * 8 + self.row)
            if self.packed:
                place = self.spread_row(local_row, chunk) * 4 + self.column
                word = T.BufferLoad(self.codes, [slot, local_row, place])
                self.unit.scaled_codes(b, word, T.BufferLoad(self.scales, [slot, local_row, chunk]))
            else:
                self.dequantize(b, local_row, step * DEPTH + chunk * GROUP)
            for m in range(tiles_m):
                with contextlib.ExitStack() as guard:
                    if partial:
                        guard.enter_context(T.If(m * 16 < self.left))
                        guard.enter_context(T.Then())
                    for half in range(2):
                        low, high = 2 * half, 2 * half + 1
                        fragment = [
                            T.BufferLoad(a[m][0], [low]), T.BufferLoad(a[m][1], [low]),
                            T.BufferLoad(a[m][0], [high]), T.BufferLoad(a[m][1], [high]),
                        ]  # fmt: skip
                        right = [T.BufferLoad(b, [low]), T.BufferLoad(b, [high])]
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
                with T.If(token < self.end), T.Then():
                    for tile in range(0, tiles_n, parts):
                        for i in range(2):
                            unit, _ = self.unit_of(self.warp_n + tile * 8 + 2 * self.column + i)
                            sums = [
                                T.BufferLoad(self.sums, [4 * (m * tiles_n + tile + p) + 2 * half + i])
                                for p in range(parts)
                            ]
                            with T.If(unit < k.span), T.Then():
                                k.finish(token, unit, sums)
