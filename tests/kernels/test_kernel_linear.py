"""The fused linear and the routed MLP against float64, for every scheme, level and fusion on awkward shapes."""

from __future__ import annotations

import harness
import numpy as np
import pytest
from harness import ACTIVATIONS, build, call, error, label, machine, pairwise, random_weight, unwritten
from moe_case import Case

from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simd.linear import linear
from mlcrt.kernels.simd.moe import moe
from mlcrt.quant.scheme import SCHEMES

TOLERANCE = 2e-4
STORED = [s for s in SCHEMES.values() if s.layout == "NK"]  # KN weights are turned when they are loaded
EPS = 1e-5

LINEAR = pairwise(
    scheme=STORED,
    rows=(1, 2, 3, 34, 503),
    columns=(33, 72, 96, 560, 576, 1536),
    level=harness.LEVELS,
    decode=(True, False),
    norm=(True, False),
    bias=(True, False),
    gate=(None, "silu", "gelu", "gelu_tanh"),
    residual=(True, False),
)


def test_the_cases_cover_what_they_should():
    for first, second in (("scheme", "level"), ("scheme", "columns"), ("rows", "gate"), ("level", "columns")):
        seen = {(str(c[first]), str(c[second])) for c in LINEAR}
        assert len(seen) == len({a for a, _ in seen}) * len({b for _, b in seen})


@pytest.mark.parametrize("case", LINEAR, ids=label)
def test_linear(case):
    scheme, columns, gate = case["scheme"], case["columns"], case["gate"]
    rows = 2 * case["rows"] if gate else case["rows"]
    op = Linear(
        scheme, rows, columns, 1 if case["decode"] else None, EPS if case["norm"] else None, case["bias"], gate,
        case["residual"],
    )  # fmt: skip
    kernel = build(linear(op, machine(case["level"])[1].linear), case["level"])
    draw = np.random.default_rng(rows * columns)
    parts, weights = random_weight(draw, scheme, rows, columns)
    for n in (1,) if case["decode"] else (1, 2, 5, 37):
        x = draw.standard_normal((n, columns)).astype(np.float32) * np.float32(3)
        arguments, expected = [x, *parts.values()], x.astype(np.float64)
        if case["norm"]:
            arguments.append(draw.uniform(0.5, 1.5, columns).astype(np.float32))
            expected = expected / np.sqrt((expected**2).mean(axis=1, keepdims=True) + EPS) * arguments[-1]
        expected = expected @ weights.T
        if case["bias"]:
            arguments.append(draw.standard_normal(rows).astype(np.float32))
            expected = expected + arguments[-1]
        if gate:
            expected = ACTIVATIONS[gate](expected[:, : rows // 2]) * expected[:, rows // 2 :]
        if case["residual"]:
            arguments.append(draw.standard_normal(expected.shape).astype(np.float32))
            expected = expected + arguments[-1]
        *inputs, y = call(kernel, *arguments, unwritten(*expected.shape))
        assert error(y, expected) <= TOLERANCE, f"{n} tokens"
        for given, after in zip(arguments, inputs, strict=True):
            np.testing.assert_array_equal(given, after)


MOE = pairwise(
    gate_up=STORED,
    down=STORED,
    level=harness.LEVELS[:3],
    shape=((96, 72, 5, 2), (33, 40, 4, 4), (80, 72, 6, 3), (64, 32, 8, 1)),
    normalize=(True, False),
    activation=("silu", "gelu_tanh", "gelu"),
    decode=(True, False),
)[:24]


@pytest.mark.parametrize("case", MOE, ids=label)
def test_moe(case):
    hidden, intermediate, experts, top_k = case["shape"]
    op = Moe(
        case["gate_up"], case["down"], hidden, intermediate, experts, top_k, case["normalize"], case["activation"],
        1 if case["decode"] else None,
    )  # fmt: skip
    kernel = build(moe(op, machine(case["level"])[1].linear), case["level"])
    made = Case(op, hidden)
    for n in (1,) if case["decode"] else (1, 5):
        arguments, expected = made(n)
        y = call(kernel, *arguments, unwritten(n, hidden))[-1]
        assert error(y, expected) <= TOLERANCE, f"{n} tokens"


def test_moe_takes_the_first_of_equal_experts():
    scheme = SCHEMES["q0f32"]
    kernel = build(moe(Moe(scheme, scheme, 8, 4, 3, 1, True, "silu", 1), machine("native")[1].linear), "native")
    x, up, down = np.ones((1, 8), np.float32), np.ones((3, 8, 8), np.float32), np.zeros((3, 8, 4), np.float32)
    down += np.arange(3, dtype=np.float32)[:, None, None]
    y = call(kernel, x, np.full((1, 3), 0.5, np.float32), up, down, unwritten(1, 8))[-1]
    np.testing.assert_array_equal(y, 0)
