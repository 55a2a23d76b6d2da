"""Experts of many tokens with cooperative matrices (VK_KHR_cooperative_matrix, 16x16x16, float16 summed in float32).

A block of 8 subgroups of 32 computes 128 entries x 128 weight rows, 32 columns at a time: every thread fetches half a
row of activations, which are float32 and lie anywhere, and half a row of codes ahead, writes them to workgroup memory
as float16, and each subgroup multiplies 64 entries by 32 rows.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simt.common import Register, barrier, launch, local, shared
from mlcrt.kernels.simt.linear import LinearKernel

TOKENS, ROWS, DEPTH, THREADS, LANES = 128, 128, 32, 256, 32
SHAPE = (16, 16, 16)
_PITCH = DEPTH + 8  # halves from row to row of a tile; the last eight are against bank conflicts
_HALF = DEPTH // 2  # columns a thread stages
_SCALE = 16.0  # activations are divided by it, so that float16 holds values up to a million


def suits(op: Linear | Moe) -> bool:
    """Whether the kernel serves this layer, or one of the experts' products: whole steps of columns."""
    if isinstance(op, Moe):
        shapes = ((op.hidden, op.intermediate), (op.intermediate, op.hidden))
    else:
        shapes = ((op.columns, op.units),)
    return op.tokens is None and any(columns % DEPTH == 0 and units % 16 == 0 for columns, units in shapes)


def product(k: LinearKernel) -> bool:
    """Emit a product if it `suits`, and say so."""
    if suits(k.op):
        _Matrix(k).emit()
    return suits(k.op)


def _call(name: str, *arguments) -> None:
    T.evaluate(tirx.call_extern("int32", name, *arguments))


class _Matrix:
    def __init__(self, k: LinearKernel):
        self.k, self.op = k, k.op
        self.units = ROWS // k.parts

    def emit(self) -> None:
        k, op = self.k, self.op
        grid = {"bx": -(-op.units // self.units), "by": k.token_blocks(TOKENS)}
        with launch(**grid, tx=THREADS) as (block_n, block_m, thread):
            self.thread = thread
            # flat, since TVM takes columns that nobody names out of an array with rows
            self.a, self.b = shared((TOKENS * _PITCH,), "float16"), shared((ROWS * _PITCH,), "float16")
            (self.token0, self.end), self.unit0 = k.token_range(block_m, TOKENS), T.bind(block_n * self.units)
            self.w = k.weights
            self.line = T.bind(tirx.floordiv(thread, 2))  # of both tiles
            self.half = T.bind(tirx.floormod(thread, 2) * _HALF)
            self.token = T.bind(k.source(self.token0 + self.line, self.end))
            self.row = T.bind(self.weight_row(self.line))
            self.squares = Register(T.float32(0)) if k.norm is not None else None
            self.prepare()
            subgroup = T.bind(tirx.floordiv(thread, 32))
            self.first_token = T.bind(tirx.floordiv(subgroup, 4) * 64)
            self.first_row = T.bind(tirx.floormod(subgroup, 4) * 32)
            for i in range(8):
                _call("matrix_fill", i, T.float32(0))
            self.fetch(T.int32(0))
            with T.serial(k.steps(op.columns // DEPTH)) as step:
                barrier()
                self.stage(step)
                barrier()
                with T.If(step + 1 < op.columns // DEPTH), T.Then():
                    self.fetch(step + 1)
                self.multiply()
            self.finish(subgroup)

    def weight_row(self, line):
        """The row of the weight in a line of the tile: 16 units of one part, then the same of the other."""
        if self.k.parts == 1:
            return self.k.weight_row(tirx.min(self.unit0 + line, self.op.units - 1), 0)
        unit = self.unit0 + tirx.floordiv(line, 32) * 16 + tirx.floormod(line, 16)
        part = tirx.floordiv(tirx.floormod(line, 32), 16)
        return self.k.weight_row(tirx.min(unit, self.op.units - 1), part)

    def prepare(self) -> None:
        """Registers for what is on its way."""
        w = self.w
        self.x = local((_HALF,))
        self.norm = local((_HALF,)) if self.k.norm is not None else None
        self.words = _HALF // w.per_word
        dtype = w.scheme.float_storage if w.scheme.is_float else "uint32"
        self.codes = local((self.words,), dtype)

    def fetch(self, step) -> None:
        start = T.bind(step * DEPTH + self.half)
        for target, source, index in (
            (self.x, self.k.x, [self.token]),
            *([(self.norm, self.k.norm, [])] if self.norm is not None else []),
        ):
            for j in range(0, _HALF, 4):
                value = T.BufferLoad(source, [*index, tirx.Ramp(start + j, 1, 4)])
                T.buffer_store(target, value, [tirx.Ramp(j, 1, 4)])
        w, wide = self.w, 16 // (2 if self.codes.dtype == "float16" else 4)
        part = w.buffers["" if w.scheme.is_float else "codes"]
        word = T.bind(tirx.floordiv(start, w.per_word))
        for j in range(0, self.words, wide):
            count = min(wide, self.words - j)
            index, at = (word + j, j) if count == 1 else (tirx.Ramp(word + j, 1, count), tirx.Ramp(j, 1, count))
            T.buffer_store(self.codes, T.BufferLoad(part, [self.row, index]), [at])

    def stage(self, step) -> None:
        for j in range(0, _HALF, 4):
            packed = local((4,), "float16")
            for i in range(4):
                value = T.bind(T.BufferLoad(self.x, [j + i]))
                if self.squares is not None:
                    self.squares.add(value * value)
                    value = value * T.BufferLoad(self.norm, [j + i])
                T.buffer_store(packed, tirx.Cast("float16", value * T.float32(1 / _SCALE)), [i])
            self.put(self.a, packed, j)
        w = self.w
        word = T.bind(tirx.floordiv(step * DEPTH + self.half, w.per_word))
        affine = w.affine(self.row, word)
        values = []
        for v in range(self.words):
            values += w.values(T.bind(T.BufferLoad(self.codes, [v])), self.row, word + v)
        if affine is not None:
            values = [affine[0] * value + affine[1] for value in values]
        for j in range(0, _HALF, 4):
            packed = local((4,), "float16")
            for i in range(4):
                T.buffer_store(packed, tirx.Cast("float16", values[j + i]), [i])
            self.put(self.b, packed, j)

    def put(self, tile, packed, j: int) -> None:
        at = self.line * _PITCH + self.half + j
        T.buffer_store(tile, T.BufferLoad(packed, [tirx.Ramp(0, 1, 4)]), [tirx.Ramp(at, 1, 4)])

    def multiply(self) -> None:
        for depth in range(0, DEPTH, 16):
            for i in range(4):
                _call("matrix_load_a", i, T.address_of(self.a[(self.first_token + 16 * i) * _PITCH + depth]), _PITCH)
            for j in range(2):
                _call("matrix_load_b", j, T.address_of(self.b[(self.first_row + 16 * j) * _PITCH + depth]), _PITCH)
            for i in range(4):
                for j in range(2):
                    _call("matrix_multiply_add", 2 * i + j, i, j)

    def finish(self, subgroup) -> None:
        """Accumulators → workgroup memory → the layer's epilogue: half of the subgroups, 16 tokens each at a time."""
        k = self.k
        lane = T.bind(tirx.floormod(self.thread, 32))
        out = shared((4 * 16, 32))
        inverse = None
        if self.squares is not None:
            halves, inverse = shared((THREADS,)), shared((TOKENS,))
            T.buffer_store(halves, self.squares.get(), [self.thread])
            barrier()
            with T.If(self.thread < TOKENS), T.Then():
                total = T.BufferLoad(halves, [self.thread * 2]) + T.BufferLoad(halves, [self.thread * 2 + 1])
                T.buffer_store(inverse, k.inverse_rms(total), [self.thread])
        place = T.bind(tirx.floormod(subgroup, 4) * 16)
        for i in range(4):
            for turn in range(2):
                mine = tirx.floordiv(subgroup, 4) == turn
                barrier()
                with T.If(mine), T.Then():
                    for j in range(2):
                        _call("matrix_store", 2 * i + j, T.address_of(out[place, 16 * j]), 32)
                barrier()
                with T.If(mine), T.Then():
                    self.epilogue(out, place, lane, i, inverse)

    def epilogue(self, out, place, lane, i: int, inverse) -> None:
        """Bias, gate, residual and store of 16 tokens x 32 rows."""
        k, per_unit = self.k, 32 // self.k.parts
        with T.serial(16 * per_unit // 32) as step:
            index = T.bind(step * 32 + lane)
            t, u = T.bind(tirx.floordiv(index, per_unit)), T.bind(tirx.floormod(index, per_unit))
            tile_token = T.bind(self.first_token + 16 * i + t)
            token = T.bind(self.token0 + tile_token)
            unit = T.bind(self.unit0 + tirx.floordiv(self.first_row, k.parts) + u)
            factor = T.float32(_SCALE)
            if inverse is not None:
                factor = T.bind(T.BufferLoad(inverse, [tile_token]) * T.float32(_SCALE))
            with T.If(tirx.And(token < self.end, unit < self.op.units)), T.Then():
                sums = [factor * T.BufferLoad(out, [place + t, u + 16 * p]) for p in range(k.parts)]
                k.finish(token, unit, sums)
