"""Compile one kernel for a CPU level and run it on guarded buffers; random weights packed without the project's packer.

A guarded buffer lies in a larger one filled with 0xFF bytes: NaN as a float, the largest code as an integer. A kernel
that reads outside and uses it yields NaN; one that writes outside is caught by `Guarded.check`.
"""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.simd import Library
from mlcrt.quant.scheme import Scheme
from mlcrt.targets.cpu import attributes, missing_features
from mlcrt.targets.cpu.tiles import tiles

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "native")
_GUARD = 256  # bytes on either side


@functools.lru_cache
def machine(level: str):
    """(CpuArch, Tiles) of a level; skips, saying why, where this machine lacks it."""
    arch = attributes(level)
    missing = missing_features(list(arch.features))
    if missing:
        pytest.skip(f"this machine is not {level}: it lacks {', '.join(missing)}")
    return arch, tiles(arch)


def build(function, level: str):
    """The PrimFunc as a callable, compiled as the pipeline does it."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):
        return tvm.compile(module, target=tvm.target.Target(machine(level)[0].tvm_target()))["kernel"]


class Guarded:
    """A copy of `array` with guards; `values` is a numpy view of it, `tensor` the kernel's argument."""

    def __init__(self, array: np.ndarray):
        size = array.nbytes
        self._raw = np.full(size + 2 * _GUARD + 64, 0xFF, np.uint8)
        self._start = _GUARD + (-(self._raw.ctypes.data + _GUARD)) % 64
        self._stop = self._start + size
        self.values = self._raw[self._start : self._stop].view(array.dtype).reshape(array.shape)
        self.values[...] = array
        self.tensor = tvm.runtime.from_dlpack(self.values)

    def check(self) -> None:
        assert (self._raw[: self._start] == 0xFF).all() and (self._raw[self._stop :] == 0xFF).all(), "wrote outside"


def unwritten(*shape: int) -> np.ndarray:
    """Float32 that no kernel may leave behind."""
    return np.full(shape, np.nan, np.float32)


@functools.lru_cache
def _poison():
    """A kernel whose workspaces are full of NaN when it returns them to TVM's pool, which hands them out again."""
    size = 1 << 18
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name("kernel")
        out, value = T.arg("out", T.Buffer((3,), "float32")), T.arg("value", T.Buffer((1,), "float32"))
        spaces = [T.alloc_buffer((size,), "float32", scope="global") for _ in range(3)]
        with T.serial(size) as i:
            for space in spaces:
                T.buffer_store(space, T.BufferLoad(value, [0]), [i])
        for j, space in enumerate(spaces):
            T.buffer_store(out, T.BufferLoad(space, [size - 1]), [j])
    kernel = tvm.compile(tvm.IRModule({"kernel": builder.get().with_attr("global_symbol", "kernel")}), target="llvm")
    arguments = [tvm.runtime.tensor(np.full(n, np.nan, np.float32)) for n in (3, 1)]
    return lambda: kernel["kernel"](*arguments)


def call(kernel, *arrays: np.ndarray) -> list[np.ndarray]:
    """Run the kernel on copies of the arrays, its workspaces full of NaN; all of them afterwards."""
    _poison()()
    buffers = [Guarded(a) for a in arrays]
    kernel(*(b.tensor for b in buffers))
    for buffer in buffers:
        buffer.check()
    return [b.values for b in buffers]


def random_weight(draw: np.random.Generator, scheme: Scheme, rows: int, columns: int, experts: int | None = None):
    """(stored parts in NK order, the float64 weights [experts, rows, columns] they mean)."""
    if experts is not None:
        made = [random_weight(draw, scheme, rows, columns) for _ in range(experts)]
        return {k: np.stack([p[k] for p, _ in made]) for k in made[0][0]}, np.stack([w for _, w in made])
    if scheme.is_float:
        values = draw.standard_normal((rows, columns)).astype(scheme.float_storage)
        return {"": values}, values.astype(np.float64)
    groups = -(-columns // 32)
    codes = draw.integers(0, 1 << scheme.bits, (rows, groups * 32))
    scales = (draw.uniform(-0.1, 0.1, (rows, groups))).astype(np.float16)
    parts = {"codes": words(codes, scheme.bits)}
    if scheme.bits == 3:
        parts = {"codes": words(codes & 3, 2), "high": words(codes >> 2, 1)}
    parts["scales"] = scales
    wide = np.repeat(scales.astype(np.float64), 32, axis=1)
    if scheme.asymmetric:
        parts["mins"] = draw.uniform(-0.5, 0.5, (rows, groups)).astype(np.float16)
        weights = wide * codes + np.repeat(parts["mins"].astype(np.float64), 32, axis=1)
    else:
        weights = wide * (codes - scheme.zero)
    return parts, weights[:, :columns]


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Integers [rows, n] below 2**bits → uint32 [rows, n*bits/32], lowest bits first."""
    plane = (codes[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(plane.astype(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little").view("<u4")


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation, in units of the expected values' root mean square (at least 0.05); NaN anywhere fails."""
    assert got.shape == expected.shape
    assert not np.isnan(got).any(), "NaN in the result: something was not written, or read from outside"
    return float(np.abs(got - expected).max() / max(0.05, np.sqrt((expected.astype(np.float64) ** 2).mean())))


def pairwise(**factors) -> list[dict]:
    """Few cases in which every pair of values of two factors occurs; the same ones every time."""
    names = list(factors)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(factors[names[a]]))
        for j in range(len(factors[names[b]]))
    }
    chance, cases = random.Random(0), []

    def covered(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(range(len(names)), 2)} & pairs

    while pairs:
        a, i, b, j = min(pairs)
        tries = []
        for _ in range(40):
            case = [chance.randrange(len(factors[n])) for n in names]
            case[a], case[b] = i, j
            tries.append(case)
        best = max(tries, key=lambda case: len(covered(case)))
        pairs -= covered(best)
        cases.append({n: factors[n][k] for n, k in zip(names, best, strict=True)})
    return cases


def label(case: dict) -> str:
    return "-".join(str(getattr(v, "name", v)) for v in case.values())


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf, otypes=[float])(x / np.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}
