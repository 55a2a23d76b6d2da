"""Activations of one token read from device memory as they are needed, for rows that shared memory cannot hold."""

from __future__ import annotations

from functools import reduce
from operator import add

from tvm.script.ir_builder import tirx as T

from .common import Register, block_reduce, strided
from .linear import _Activations


class Unstaged(_Activations):
    """Keeps nothing: every subgroup reads the token again, which caches serve. Same numbers as staging, in float32."""

    def __init__(self, k, thread, threads: int, norm=None):
        self.k, self.w = k, k.weights
        self.factor = T.float32(1)
        if k.norm is not None:
            squares = Register(T.float32(0))
            with strided(k.op.columns, thread, threads) as i:
                value = T.bind(T.BufferLoad(k.x, [0, i]))
                squares.add(value * value)
            whole = block_reduce(k.machine, squares.get(), lambda a, b: a + b, threads, thread)
            self.factor = k.inverse_rms(whole)

    def word(self, at) -> tuple[list, object]:
        values = [T.bind(v) for v in self.read(at, Register(T.float32(0)))]
        return values, None if self.w.scheme.is_float else T.bind(reduce(add, values))
