"""y = epilogue(prologue(x) @ W^T) for many tokens, in 16 x 16 x 16 products of a wave.

Two kernels: `_prepare` normalises the activations and writes them as float16; the product stages both operands, weights
dequantised to float16, in shared memory. A block of 256 threads computes 128 tokens x 128 weight rows, a wave of 32
lanes 32 x 64 of them, one of 64 lanes 64 x 64. What a lane holds of a tile is the machine's (`Fragments`).
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.common import (
    Machine,
    barrier,
    launch,
    local,
    prim_func,
    shared,
    strided,
    where,
)
from mlcrt.kernels.simt.experts_half import Half
from mlcrt.kernels.simt.linear import LinearKernel

from .fragments import Fragments

TOKENS, ROWS, DEPTH = 128, 128, 32  # of a block: tokens, weight rows, columns of a step
WAVE_ROWS = 64
THREADS = 256
PITCH = DEPTH + 8  # float16 between rows in shared memory: eight rows of 16 bytes meet all banks once


def padded(columns: int) -> int:
    """Columns of prepared activations."""
    return -(-columns // DEPTH) * DEPTH


def prepared_shape(op: Linear, n) -> tuple:
    """Float32 workspace that holds the activations as float16."""
    return (n, padded(op.columns) // 2)


def prefill_linear(op: Linear, machine: Machine, fragments: Fragments, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    prepared)."""

    def body() -> None:
        kernel = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), prepared_shape(op, kernel.n), "float32")
        prepare(kernel, prepared, kernel.n)
        Product(kernel, fragments, prepared).emit()

    return prim_func(name, body)


def prepare(k: LinearKernel, prepared, n) -> None:
    """Per row of x, of which there are n: that, or RMSNorm(x), rounded to float16; zero beyond the columns."""
    op = k.op
    with launch(bx=n, tx=THREADS) as (token, thread):
        inverse = k.token_inverse(token, thread, THREADS)
        with strided(padded(op.columns) // 8, thread, THREADS) as i:
            values = local((8,), "float16")
            for j in range(8):
                at = i * 8 + j
                with where(at < op.columns, op.columns % 8 == 0 and padded(op.columns) == op.columns):
                    value = k.activation_at(token, at)
                    value = value if inverse is None else value * inverse
                    T.buffer_store(values, tirx.Cast("float16", value), [j])
                if padded(op.columns) != op.columns:
                    with T.If(at >= op.columns), T.Then():
                        T.buffer_store(values, T.float16(0), [j])
            whole = T.BufferLoad(values, [tirx.Ramp(0, 1, 8)])
            if str(prepared.ty.dtype) == "float16":
                T.buffer_store(prepared, whole, [token, tirx.Ramp(i * 8, 1, 8)])
            else:
                T.buffer_store(prepared, tirx.reinterpret("float32x4", whole), [token, tirx.Ramp(i * 4, 1, 4)])


def half(fragments: Fragments) -> Half:
    """The product for the experts of many tokens."""
    return Half(TOKENS, padded, lambda column: column, prepare, lambda k, rows: Product(k, fragments, rows).emit())


class Product:
    """The second kernel; `prepared` holds float16, as such or by pairs.

    With a gate, tiles of 16 rows alternate between the two parts, so that a lane has both.
    """

    def __init__(self, k: LinearKernel, fragments: Fragments, prepared):
        self.k, self.op, self.fragments, self.prepared = k, k.op, fragments, prepared
        self.block_units = ROWS // k.parts
        self.wave_tokens = TOKENS * ROWS * fragments.lanes // (THREADS * WAVE_ROWS)

    def emit(self) -> None:
        k, op = self.k, self.op
        blocks = -(-k.span // self.block_units)
        with launch(bx=blocks, by=k.token_blocks(TOKENS), tx=THREADS) as (block_n, block_m, thread):
            self.thread = thread
            (self.token0, self.end), self.unit0 = k.token_range(block_m, TOKENS), T.bind(block_n * self.block_units)
            lanes, waves_m = self.fragments.lanes, TOKENS // self.wave_tokens
            self.lane, wave = T.bind(tirx.floormod(thread, lanes)), T.bind(tirx.floordiv(thread, lanes))
            self.row, self.column = T.bind(tirx.floormod(self.lane, 16)), T.bind(self.fragments.column(self.lane))
            self.wave_m = T.bind(tirx.floormod(wave, waves_m) * self.wave_tokens)
            self.wave_n = T.bind(tirx.floordiv(wave, waves_m) * WAVE_ROWS)
            self.a, self.b = shared((TOKENS * PITCH,), "float16"), shared((ROWS * PITCH,), "float16")
            results = self.fragments.results
            self.sums = [[local((results,)) for _ in range(WAVE_ROWS // 16)] for _ in range(self.wave_tokens // 16)]
            for sums in (s for tiles in self.sums for s in tiles):
                for i in range(results):
                    T.buffer_store(sums, T.float32(0), [i])
            with T.serial(k.steps(padded(op.columns) // DEPTH)) as step:
                self.stage_tokens(step)
                self.stage_rows(step)
                barrier()
                for column in range(0, DEPTH, self.fragments.columns):
                    self.multiply(column)
                barrier()
            self.store()

    def stage_tokens(self, step) -> None:
        pieces = DEPTH // 8  # of 16 bytes
        with strided(TOKENS * pieces, self.thread, THREADS) as i:
            token, piece = T.bind(tirx.floordiv(i, pieces)), T.bind(tirx.floormod(i, pieces))
            source = T.bind(self.k.source(self.token0 + token, self.end))
            if str(self.prepared.ty.dtype) == "float16":
                held = T.BufferLoad(self.prepared, [source, tirx.Ramp(step * DEPTH + piece * 8, 1, 8)])
            else:
                held = T.BufferLoad(self.prepared, [source, tirx.Ramp(step * (DEPTH // 2) + piece * 4, 1, 4)])
                held = tirx.reinterpret("float16x8", held)
            T.buffer_store(self.a, held, [tirx.Ramp(token * PITCH + piece * 8, 1, 8)])

    def stage_rows(self, step) -> None:
        """Every thread dequantises 16 neighbouring columns of one row."""
        local_row, half = T.bind(tirx.floordiv(self.thread, 2)), T.bind(tirx.floormod(self.thread, 2))
        unit, part = self.unit_of(local_row)
        row = T.bind(self.k.weight_row(tirx.min(unit, self.op.units - 1), part))
        column = T.bind(step * DEPTH + half * 16)
        values = self.floats(row, column) if self.op.scheme.is_float else self.codes(row, column)
        held = local((16,), "float16")
        for i, value in enumerate(values):
            T.buffer_store(held, value, [i])
        for i in (0, 8):
            whole = T.BufferLoad(held, [tirx.Ramp(i, 1, 8)])
            T.buffer_store(self.b, whole, [tirx.Ramp(local_row * PITCH + half * 16 + i, 1, 8)])

    def floats(self, row, column) -> list:
        """Plain weights, zero beyond the columns."""
        op, buffer = self.op, self.k.weights.buffers[""]
        held = local((16,), op.scheme.float_storage)
        if op.columns % 16:
            for i in range(16):
                T.buffer_store(held, tirx.Cast(op.scheme.float_storage, T.float32(0)), [i])
                with T.If(column + i < op.columns), T.Then():
                    T.buffer_store(held, T.BufferLoad(buffer, [row, column + i]), [i])
        else:
            with where(column < op.columns, padded(op.columns) == op.columns):
                for i in (0, 8):
                    T.buffer_store(
                        held, T.BufferLoad(buffer, [row, tirx.Ramp(column + i, 1, 8)]), [tirx.Ramp(i, 1, 8)]
                    )  # fmt: skip
            if padded(op.columns) != op.columns:
                with T.If(column >= op.columns), T.Then():
                    for i in range(16):
                        T.buffer_store(held, tirx.Cast(op.scheme.float_storage, T.float32(0)), [i])
        return [tirx.Cast("float16", T.BufferLoad(held, [i])) for i in range(16)]

    def codes(self, row, column) -> list:
        """Dequantised weights; beyond the columns they meet activations of zero."""
        w = self.k.weights
        count = 16 // w.per_word
        first = T.bind(tirx.floordiv(column, w.per_word))
        held = local((count,), "uint32")
        index, whole = (first, 0) if count == 1 else (tirx.Ramp(first, 1, count), tirx.Ramp(0, 1, count))
        T.buffer_store(held, T.BufferLoad(w.buffers["codes"], [row, index]), [whole])
        scale, offset = w.affine(row, first)
        offset, values = T.bind(offset), []
        for i in range(count):
            stored = T.bind(T.BufferLoad(held, [i]))
            values += [tirx.Cast("float16", scale * v + offset) for v in w.values(stored, row, first + i)]
        return values

    def unit_of(self, local_row):
        """(unit, part) of a row of the block."""
        if self.k.parts == 1:
            return self.unit0 + local_row, 0
        tile = tirx.floordiv(local_row, 16)
        return self.unit0 + tirx.floordiv(tile, 2) * 16 + tirx.floormod(local_row, 16), tirx.floormod(tile, 2)

    def fragment(self, buffer, first, column: int):
        """What the lane holds of the rows from `first` and the columns from `column`."""
        count = self.fragments.held
        at = T.bind((first + self.row) * PITCH + column + self.column)
        held = local((count,), "float16")
        for i in range(0, count, 8):
            T.buffer_store(held, T.BufferLoad(buffer, [tirx.Ramp(at + i, 1, 8)]), [tirx.Ramp(i, 1, 8)])
        return T.BufferLoad(held, [tirx.Ramp(0, 1, count)])

    def multiply(self, column: int) -> None:
        tokens = [T.bind(self.fragment(self.a, self.wave_m + 16 * m, column)) for m in range(self.wave_tokens // 16)]
        whole = tirx.Ramp(0, 1, self.fragments.results)
        for j in range(WAVE_ROWS // 16):
            rows = T.bind(self.fragment(self.b, self.wave_n + 16 * j, column))
            for m, a in enumerate(tokens):
                sums = self.sums[m][j]
                T.buffer_store(sums, self.fragments.product(a, rows, T.BufferLoad(sums, [whole])), [whole])

    def store(self) -> None:
        k, parts = self.k, self.k.parts
        for m, tiles in enumerate(self.sums):
            for i in range(self.fragments.results):
                token = T.bind(self.token0 + self.wave_m + 16 * m + self.fragments.row(self.lane, i))
                with T.If(token < self.end), T.Then():
                    for j in range(0, WAVE_ROWS // 16, parts):
                        unit, _ = self.unit_of(self.wave_n + 16 * j + self.row)
                        unit = T.bind(unit)
                        with T.If(unit < k.span), T.Then():
                            k.finish(token, unit, [T.BufferLoad(tiles[j + p], [i]) for p in range(parts)])
