"""The fused linear as the ROCm target makes it for gfx1100, emulated: every scheme and fusion against float64."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ACTIVATIONS, error, label, pairwise, random_weight, unwritten

from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten

STORED = [s for s in SCHEMES.values() if s.layout == "NK"]  # KN weights are turned when they are loaded
EPS = 1e-5
TOLERANCE = 1e-4
LIBRARY = library(attributes("gfx1100"), "float16")

CASES = pairwise(
    scheme=STORED,
    rows=(1, 3, 34, 130),
    columns=(33, 96, 560, 1056),
    decode=(True, False),
    norm=(True, False),
    bias=(True, False),
    gate=(None, "silu", "gelu", "gelu_tanh"),
    residual=(True, False),
)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_linear(case):
    scheme, columns, gate = case["scheme"], case["columns"], case["gate"]
    rows = 2 * case["rows"] if gate else case["rows"]
    tokens = 1 if case["decode"] else None
    op = Linear(
        scheme, rows, columns, tokens, EPS if case["norm"] else None, case["bias"], gate, case["residual"]
    )  # fmt: skip
    kernel = Emulated(LIBRARY.build_linear(op, "linear"))
    draw = np.random.default_rng(rows * columns)
    parts, weights = random_weight(draw, scheme, rows, columns)
    for n in (1,) if tokens else (1, 37):
        x = draw.standard_normal((n, columns)).astype(np.float32) * np.float32(3)
        arguments, factor = [x, *parts.values()], 1.0
        if case["norm"]:
            arguments.append(draw.uniform(0.5, 1.5, columns).astype(np.float32))
            factor = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + EPS)
            x = x * arguments[-1]
        if tokens and scheme.dtype == "float16":
            x = x.astype(np.float16)  # as the kernel holds the activations of one token
        expected = factor * (x.astype(np.float64) @ weights.T)
        if case["bias"]:
            arguments.append(draw.standard_normal(rows).astype(np.float32))
            expected = expected + arguments[-1]
        if gate:
            expected = ACTIVATIONS[gate](expected[:, : rows // 2]) * expected[:, rows // 2 :]
        if case["residual"]:
            arguments.append(draw.standard_normal(expected.shape).astype(np.float32))
            expected = expected + arguments[-1]
        before = [a.copy() for a in arguments]
        y = unwritten(*expected.shape)
        kernel(*arguments, Unwritten(y))
        assert error(y, expected) <= TOLERANCE, f"{n} tokens"
        for given, after in zip(before, arguments, strict=True):
            np.testing.assert_array_equal(given, after)
