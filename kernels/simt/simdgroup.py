"""Prefill linear on Apple GPUs: 8x8 simdgroup matrices of half with float32 sums (Metal Shading Language, 6.7).

A block of four simdgroups computes 64 tokens x 64 weight rows, 32 x 32 each. Activations and dequantised weights pass
through threadgroup memory as 8x8 tiles that lie in one piece. Activations are stored divided by 16, so that they may
be as large as 10**6 before half precision overflows, and 1/rms multiplies the sums.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear

from .common import Machine, Register, barrier, launch, local, prim_func, shared, strided, subgroup_reduce
from .linear import LinearKernel

TILE, DEPTH, THREADS = 64, 32, 128  # outputs of a block in both directions, columns of a step, threads
_SCALE = 16.0


def fits(op: Linear) -> bool:
    """Whether `linear` can compute it: many tokens, activations that may be half, whole steps of columns."""
    return op.many_in_half and op.columns % DEPTH == 0


def linear(op: Linear, machine: Machine, name: str = "linear"):
    """PrimFunc with the arguments of linear.linear; tokens [n, K] f32 → y [n, units] f32."""
    return prim_func(name, lambda: _Matmul(LinearKernel(op, machine)).emit())


def product(k: LinearKernel) -> bool:
    """Emit a product if `fits`, and say so."""
    if fits(k.op):
        _Matmul(k).emit()
    return fits(k.op)


def _call(name: str, *arguments) -> None:
    T.evaluate(tirx.call_intrin("void", f"tirx.{name}", *arguments))


class _Matrices:
    """`count` 8x8 matrices of a simdgroup."""

    def __init__(self, count: int, dtype: str):
        self.data = T.alloc_buffer((count * 64,), dtype, scope="metal.simdgroup").data

    def fill(self, i: int, value) -> None:
        _call("make_filled_simdgroup_matrix", self.data, i, value, 8, 8)

    def load(self, i: int, buffer, offset, transpose: bool) -> None:
        _call("simdgroup_load", self.data, i, buffer.access_ptr("r", offset=offset, extent=64), 8, 8, 8, transpose)

    def store(self, i: int, buffer, offset, stride: int) -> None:
        _call("simdgroup_store", self.data, i, buffer.access_ptr("w", offset=offset), stride, 8, 8, False)

    def add_product(self, i: int, a: _Matrices, ai: int, b: _Matrices, bi: int) -> None:
        _call("simdgroup_multiply_accumulate", self.data, i, a.data, ai, b.data, bi, self.data, i)


def _tile_at(row, column):
    """Where element (row, column) of a staged [TILE, DEPTH] array lies."""
    tile = tirx.floordiv(column, 8) * (TILE // 8) + tirx.floordiv(row, 8)
    return tile * 64 + tirx.floormod(row, 8) * 8 + tirx.floormod(column, 8)


class _Matmul:
    def __init__(self, k: LinearKernel):
        self.k, self.op = k, k.op
        self.units = TILE // k.parts  # of a block

    def emit(self) -> None:
        k, op = self.k, self.op
        grid = {"bx": -(-op.units // self.units), "by": k.token_blocks(TILE)}
        with launch(**grid, tx=THREADS) as (block_n, block_m, self.thread):
            (self.token0, self.end), self.unit0 = k.token_range(block_m, TILE), T.bind(block_n * self.units)
            simdgroup = T.bind(tirx.floordiv(self.thread, 32))
            self.token_half, self.unit_half = T.bind(tirx.floormod(simdgroup, 2)), T.bind(tirx.floordiv(simdgroup, 2))
            self.a, self.b = shared((TILE * DEPTH,), "float16"), shared((TILE * DEPTH,), "float16")
            self.squares = Register(T.float32(0), count=TILE * DEPTH // 4 // THREADS)
            sums = _Matrices(16, "float32")
            left, right = _Matrices(4, "float16"), _Matrices(4, "float16")
            for i in range(16):
                sums.fill(i, T.float32(0))
            with T.serial(k.steps(op.columns // DEPTH)) as step:
                k0 = T.bind(step * DEPTH)
                self.stage_activations(k0)
                self.stage_weights(k0)
                barrier()
                for c in range(DEPTH // 8):
                    for i in range(4):
                        left.load(i, self.a, (c * 8 + self.token_half * 4 + i) * 64, False)
                        right.load(i, self.b, (c * 8 + self.unit_half * 4 + i) * 64, True)
                    for i in range(16):
                        sums.add_product(i, left, i // 4, right, i % 4)
                barrier()
            self.finish(sums)

    def stage_activations(self, k0) -> None:
        """Four columns a thread at a time; a thread meets the same tokens in every step and sums their squares."""
        k = self.k
        for s in range(TILE * DEPTH // 4 // THREADS):
            row = T.bind(tirx.floordiv(self.thread, DEPTH // 4) + s * (THREADS * 4 // DEPTH))
            column = T.bind(tirx.floormod(self.thread, DEPTH // 4) * 4)
            token = T.bind(k.source(self.token0 + row, self.end))
            whole, from_k = tirx.Ramp(0, 1, 4), tirx.Ramp(k0 + column, 1, 4)
            values, halves = local((4,)), local((4,), "float16")
            T.buffer_store(values, T.BufferLoad(k.x, [token, from_k]), [whole])
            if k.norm is not None:
                weight = local((4,))
                T.buffer_store(weight, T.BufferLoad(k.norm, [from_k]), [whole])
            for i in range(4):
                value = T.BufferLoad(values, [i])
                if k.norm is not None:
                    self.squares.add(value * value, s)
                    value = value * T.BufferLoad(weight, [i])
                T.buffer_store(halves, tirx.Cast("float16", value * T.float32(1 / _SCALE)), [i])
            at = tirx.Ramp(_tile_at(row, column), 1, 4)
            T.buffer_store(self.a, T.BufferLoad(halves, [whole]), [at])

    def stage_weights(self, k0) -> None:
        """Rows of part 0, then of part 1, dequantised; a thread takes a word, or four plain floats, at a time."""
        w, op = self.k.weights, self.op
        n = 4 if w.scheme.is_float else w.per_word
        with strided(TILE * DEPTH // n, self.thread, THREADS) as i:
            local_row, column = T.bind(tirx.floordiv(i, DEPTH // n)), T.bind(tirx.floormod(i, DEPTH // n) * n)
            unit = tirx.min(self.unit0 + tirx.floormod(local_row, self.units), op.units - 1)
            row = T.bind(self.k.weight_row(unit, tirx.floordiv(local_row, self.units)))
            halves = local((n,), "float16")
            if w.scheme.is_float:
                at = tirx.Ramp(k0 + column, 1, n)
                T.buffer_store(halves, T.BufferLoad(w.buffers[""], [row, at]), [tirx.Ramp(0, 1, n)])
            else:
                word = T.bind(tirx.floordiv(k0 + column, n))
                stored = T.bind(T.BufferLoad(w.buffers["codes"], [row, word]))
                scale, offset = w.affine(row, word)
                offset = T.bind(offset)
                for j, code in enumerate(w.values(stored, row, word)):
                    T.buffer_store(halves, tirx.Cast("float16", scale * code + offset), [j])
            for j in range(0, n, 4):
                at = tirx.Ramp(_tile_at(local_row, column + j), 1, 4)
                T.buffer_store(self.b, T.BufferLoad(halves, [tirx.Ramp(j, 1, 4)]), [at])

    def finish(self, sums: _Matrices) -> None:
        """Sums go through threadgroup memory, 32 tokens at a time, to threads that each finish some outputs."""
        k, op, half = self.k, self.op, TILE // 2
        factors = None
        if k.norm is not None:
            factors = shared((TILE,))
            for s in range(TILE * DEPTH // 4 // THREADS):
                row = tirx.floordiv(self.thread, DEPTH // 4) + s * (THREADS * 4 // DEPTH)
                total = subgroup_reduce(k.machine, self.squares.get(s), lambda a, b: a + b, DEPTH // 4)
                T.buffer_store(factors, k.inverse_rms(total) * T.float32(_SCALE), [row])
        out = shared((half * TILE,))
        for part in range(2):
            with T.If(self.token_half == part), T.Then():
                for i in range(16):
                    sums.store(i, out, (i // 4) * 8 * TILE + self.unit_half * 32 + (i % 4) * 8, TILE)
            barrier()
            with strided(half * self.units, self.thread, THREADS) as i:
                t, u = T.bind(tirx.floordiv(i, self.units)), T.bind(tirx.floormod(i, self.units))
                token, unit = T.bind(self.token0 + part * half + t), T.bind(self.unit0 + u)
                with T.If(tirx.And(token < self.end, unit < op.units)), T.Then():
                    factor = T.float32(_SCALE) if factors is None else T.BufferLoad(factors, [part * half + t])
                    dots = [T.BufferLoad(out, [t * TILE + p * self.units + u]) * factor for p in range(k.parts)]
                    k.finish(token, unit, dots)
            barrier()
