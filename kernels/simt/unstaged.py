"""Activations of one token read from device memory as they are needed, for rows that shared memory cannot hold."""

from __future__ import annotations

from functools import reduce
from operator import add

from tvm.script.ir_builder import tirx as T

from .activations import Activations
from .common import Register, barrier


class Unstaged(Activations):
    """Keeps nothing: every subgroup reads the token again, which caches serve. Same numbers as staging, in float32."""

    def __init__(self, k, thread, threads: int, norm=None):
        self.k, self.w = k, k.weights
        self.factor = T.float32(1)
        if k.norm is None:
            barrier()  # what the block may have fetched of the weight is there
        else:
            self.factor = k.token_inverse(0, thread, threads)

    def word(self, at) -> tuple[list, object]:
        values = [T.bind(v) for v in self.read(at, Register(T.float32(0)))]
        return values, T.bind(reduce(add, values)) if self.w.scheme.asymmetric else None

    @staticmethod
    def bytes(k) -> int:
        return 0
