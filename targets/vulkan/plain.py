"""Prefill's linear layers without matrices, in a library that also holds kernels with them.

The host calls the same kernels for every variant: the one with matrices needs the activations prepared by a kernel of
its own, so this one has that kernel too.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.common import Machine, launch, prim_func, strided
from mlcrt.kernels.simt.linear import LinearKernel, LinearTiles, _gemm

from .matrix import prepared_shape

_THREADS = 256


def linear(op: Linear, tiles: LinearTiles, machine: Machine, name: str = "linear"):
    """PrimFunc with the arguments of matrix.linear."""

    def body() -> None:
        k = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), prepared_shape(op, k.n), "float32")
        _prepare(k, prepared)
        k.x, k.norm = prepared, None
        _gemm(k, tiles)

    return prim_func(name, body)


def _prepare(k: LinearKernel, prepared) -> None:
    """Per token x, or RMSNorm(x)."""
    with launch(bx=k.n, tx=_THREADS) as (token, thread):
        factor = T.float32(1)
        if k.norm is not None:
            factor = k.token_inverse(token, thread, _THREADS)
        with strided(k.op.columns // 4, thread, _THREADS) as i:
            for j in range(4):
                at = T.bind(i * 4 + j)
                value = k.activation_at(token, at)
                T.buffer_store(prepared, value if k.norm is None else value * factor, [token, at])
