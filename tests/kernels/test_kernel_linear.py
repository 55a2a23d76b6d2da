"""The fused linear and the routed MLP against float64, for every scheme, level and fusion on awkward shapes."""

from __future__ import annotations

import harness
import numpy as np
import pytest
from harness import build, call, error, label, machine, pairwise, random_weight, unwritten
from linear_case import complete, record
from moe_case import Case

from mlcrt.kernels.records import Moe
from mlcrt.kernels.simd.linear import linear
from mlcrt.kernels.simd.moe import moe
from mlcrt.quant.scheme import SCHEMES

TOLERANCE = 2e-4
STORED = [s for s in SCHEMES.values() if s.layout == "NK"]  # KN weights are turned when they are loaded

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
    op = record(case, case["rows"], 1 if case["decode"] else None)
    kernel = build(linear(op, machine(case["level"])[1].linear), case["level"])
    draw = np.random.default_rng(op.rows * op.columns)
    parts, weights = random_weight(draw, op.scheme, op.rows, op.columns)
    for n in (1,) if case["decode"] else (1, 2, 5, 37):
        x = draw.standard_normal((n, op.columns)).astype(np.float32) * np.float32(3)
        arguments, expected = complete(op, draw, x, parts, weights)
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
