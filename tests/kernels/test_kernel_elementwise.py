"""The small kernels of a step against numpy: embedding, rotary tables, soft cap, the end of a step, and functions."""

from __future__ import annotations

import math

import harness
import numpy as np
import pytest
from harness import build, call, error, label, machine, pairwise, random_weight, unwritten
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.simd import functions
from mlcrt.kernels.simd.elementwise import Embed, embed, finish_step, rotary_tables, softcap
from mlcrt.kernels.simd.vector import load, store, to_float
from mlcrt.quant.scheme import SCHEMES

STORED = [s for s in SCHEMES.values() if s.layout == "NK"]
CASES = pairwise(scheme=STORED, level=harness.LEVELS, hidden=(33, 72, 96, 560), scale=(1.0, 8.5), decode=(True, False))


@pytest.mark.parametrize("case", CASES, ids=label)
def test_embed(case):
    vocab, hidden = 7, case["hidden"]
    op = Embed(case["scheme"], vocab, hidden, 1 if case["decode"] else None, case["scale"])
    kernel = build(embed(op, machine(case["level"])[0].native_f16), case["level"])
    parts, weights = random_weight(np.random.default_rng(hidden), case["scheme"], vocab, hidden)
    for tokens in ([0], [6]) if case["decode"] else ([6], [0, 6, 3, 3, 1]):
        out = call(kernel, *parts.values(), np.array(tokens, np.int32), unwritten(len(tokens), hidden))[-1]
        np.testing.assert_allclose(out, weights[tokens] * case["scale"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", harness.LEVELS)
@pytest.mark.parametrize(("half", "tokens", "factor"), [(8, 1, 1.0), (40, None, 1.3), (33, None, 0.7)])
def test_rotary_tables(half, tokens, factor, level):
    machine(level)
    kernel = build(rotary_tables(half, tokens, factor), level)
    inv_freq = (1e4 ** (-np.arange(half) / half)).astype(np.float32)
    for position in (0, 1, 127, 8191, 131070):
        n = tokens or 5
        *_, cos, sin = call(kernel, inv_freq, np.array([position], np.int32), *[unwritten(n, half) for _ in range(2)])
        # the angle is a float32 product in transformers too: only cosine and sine are ours to get right
        angle = (np.arange(position, position + n, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
        np.testing.assert_allclose(cos, np.cos(angle) * factor, atol=2e-7 * factor + 1e-7)
        np.testing.assert_allclose(sin, np.sin(angle) * factor, atol=2e-7 * factor + 1e-7)


@pytest.mark.parametrize("level", harness.LEVELS)
@pytest.mark.parametrize(("width", "tokens", "cap"), [(503, 1, 2.5), (96, None, 30.0), (33, None, 50.0)])
def test_softcap(width, tokens, cap, level):
    kernel = build(softcap(width, tokens, cap, machine(level)[0].lanes), level)
    for n in (1,) if tokens else (1, 5):
        x = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32) * np.float32(2 * cap)
        x[0, :6] = 0, 1e-6, -1e-6, 1e-3 * cap, 1e4 * cap, -1e30
        y = call(kernel, x, unwritten(n, width))[-1]
        expected = cap * np.tanh(x.astype(np.float64) / cap)
        assert error(y, expected) <= 1e-5
        np.testing.assert_allclose(y[0, :4], expected[0, :4], rtol=2e-6)  # relative: no digits lost near zero


@pytest.mark.parametrize("level", harness.LEVELS)
@pytest.mark.parametrize("vocab", [1, 15, 64, 503, 32003])
def test_finish_step(vocab, level):
    lanes = machine(level)[0].lanes
    draw, state = np.random.default_rng(vocab), [np.array([-1], np.int32), np.array([41], np.int32)]
    one, many = (build(finish_step(vocab, count, lanes), level) for count in (1, None))
    rows = [draw.standard_normal(vocab) for _ in range(3)]
    rows += [np.zeros(vocab), -1e30 * np.ones(vocab)]  # all equal: the first counts
    for at in {0, vocab // 2, vocab - 1}:
        tied = draw.standard_normal(vocab)
        tied[[at, vocab - 1]] = 9
        rows.append(tied)
    for row in rows:
        logits = row.astype(np.float32)[None]
        for kernel, between, n in ((one, [], 1), (many, [np.zeros(6, np.int32)], 6)):
            given, *_, out, token, position = call(kernel, logits, *between, unwritten(1, vocab), *state)
            np.testing.assert_array_equal(out, logits)
            np.testing.assert_array_equal(given, logits)
            assert token[0] == logits[0].argmax()
            assert position[0] == 41 + n


def pointwise(function, lanes: int, dtype: str = "float32"):
    """PrimFunc(x [64·k] dtype, y f32): y = function(vector of x)."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name("kernel")
        n = T.int32()
        x_handle, y_handle = T.arg("x", T.handle()), T.arg("y", T.handle())
        x, y = T.match_buffer(x_handle, (n,), dtype), T.match_buffer(y_handle, (n,), "float32")
        with T.serial(n // lanes) as i:
            store(y, function(load(x, [], i * lanes, lanes)), [], i * lanes, lanes)
    return builder.get()


DENSE = np.concatenate([np.linspace(-20, 20, 4096), np.geomspace(1e-8, 80, 512), -np.geomspace(1e-8, 80, 512)])
SCALAR_ERF = np.vectorize(math.erf, otypes=[float])


@pytest.mark.parametrize("level", harness.LEVELS[:3])
@pytest.mark.parametrize(
    ("name", "expected", "rtol", "atol"),
    [
        ("exp", np.exp, 3e-7, 1e-37),
        ("tanh", np.tanh, 1e-5, 0),
        ("erf", SCALAR_ERF, 0, 5e-7),
        ("silu", harness.silu, 1e-6, 1e-30),
        ("gelu", harness.gelu, 1e-6, 4e-6),
        ("gelu_tanh", harness.gelu_tanh, 1e-6, 4e-6),
    ],
)
def test_functions(name, expected, rtol, atol, level):
    lanes = machine(level)[0].lanes
    whole = getattr(functions, name, None) or (lambda v, n: functions.activation(name, v, n))
    x = DENSE.astype(np.float32)
    y = call(build(pointwise(lambda v: whole(v, lanes), lanes), level), x, unwritten(len(x)))[-1]
    np.testing.assert_allclose(y, expected(x.astype(np.float64)), rtol=rtol, atol=atol)


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v2", "x86-64-v3"])
def test_every_finite_half_converts_exactly(level):
    """With hardware conversion, and by integer arithmetic where the level has none; subnormals and -0 included."""
    lanes, native = machine(level)[0].lanes, machine(level)[0].native_f16
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    kernel = build(pointwise(lambda v: to_float(v, lanes, native), lanes, "float16"), level)
    y = call(kernel, halves, unwritten(len(halves)))[-1]
    np.testing.assert_array_equal(y.view(np.uint32), halves.astype(np.float32).view(np.uint32))
