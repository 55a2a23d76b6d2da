"""The fused linear as the ROCm target makes it for gfx1100, emulated: every scheme and fusion against float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from harness import ACTIVATIONS, error, label, pairwise, random_weight, unwritten

from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.architecture import CHIPS
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten

STORED = [s for s in SCHEMES.values() if s.layout == "NK"]  # KN weights are turned when they are loaded
EPS = 1e-5
TOLERANCE = 1e-4
ROUNDED = 5e-4  # where float16 operands are made of computed values, which now and then fall on the other side
LIBRARY = library(attributes("gfx1100"), "float16")
GREEDY = library(attributes("gfx1100"), "float16")  # as many rows at once as where there are many
GREEDY.tiles = dataclasses.replace(GREEDY.tiles, linear=dataclasses.replace(GREEDY.tiles.linear, gemv_fill=1))

CASES = pairwise(
    scheme=STORED,
    rows=(1, 3, 34, 66),
    columns=(33, 288, 1088),  # 2, 9 and 34 groups
    decode=(True, False),
    norm=(True, False),
    bias=(True, False),
    gate=(None, "silu", "gelu", "gelu_tanh"),
    residual=(True, False),
)


def products(scheme, tokens, x, factor, weights) -> np.ndarray:
    """x * factor @ weights^T with operands rounded as the kernels hold them."""
    if scheme.dtype == "float16":
        if tokens:  # the factor is that of the sums
            return factor * (x.astype(np.float16).astype(np.float64) @ weights.T)
        x, factor = (x * np.asarray(factor, np.float32)).astype(np.float16), 1.0
        weights = weights.astype(np.float32).astype(np.float16).astype(np.float64)
    return factor * (x.astype(np.float64) @ weights.T)


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
    for n in (1,) if tokens else (37,):
        x = draw.standard_normal((n, columns)).astype(np.float32) * np.float32(3)
        arguments, factor = [x, *parts.values()], 1.0
        if case["norm"]:
            arguments.append(draw.uniform(0.5, 1.5, columns).astype(np.float32))
            factor = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + EPS)
            x = x * arguments[-1]
        expected = products(scheme, tokens, x, factor, weights)
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
        spaces = [Unwritten(unwritten(*map(int, shape))) for shape in LIBRARY.linear_scratch(op, n)]
        kernel(*arguments, Unwritten(y), *spaces)
        assert error(y, expected) <= (ROUNDED if spaces else TOLERANCE), f"{n} tokens"
        for given, after in zip(before, arguments, strict=True):
            np.testing.assert_array_equal(given, after)


@pytest.mark.parametrize("dot2", [True, False])
def test_matrix_products_without_wmma(dot2, monkeypatch):
    """What chips of 32 lanes without WMMA run: the same fragments through dot products or fused multiply-adds."""
    monkeypatch.setitem(CHIPS, "gfx1100", dataclasses.replace(CHIPS["gfx1100"], matrix=None, dot2=dot2))
    op = Linear(SCHEMES["q4f16_1"], 130, 96, None)
    kernel = Emulated(LIBRARY.build_linear(op, "linear"))
    assert "v_wmma" not in kernel.text
    draw = np.random.default_rng(0)
    parts, weights = random_weight(draw, op.scheme, 130, 96)
    x, y = draw.standard_normal((19, 96)).astype(np.float32), unwritten(19, 130)
    spaces = [Unwritten(unwritten(*map(int, shape))) for shape in LIBRARY.linear_scratch(op, 19)]
    kernel(x, *parts.values(), Unwritten(y), *spaces)
    assert error(y, products(op.scheme, None, x, 1.0, weights)) <= ROUNDED


def test_half_precision_prefill_multiplies_by_wmma():
    """As many matrix instructions as the padded shape has 16 x 16 x 16 products, and LDS reads without conflicts."""
    op = Linear(SCHEMES["q4f16_1"], 256, 128, None)
    kernel = Emulated(LIBRARY.build_linear(op, "linear"))
    draw = np.random.default_rng(0)
    parts, _ = random_weight(draw, op.scheme, 256, 128)
    x, y = draw.standard_normal((128, 128)).astype(np.float32), unwritten(128, 256)
    spaces = [Unwritten(unwritten(*map(int, shape))) for shape in LIBRARY.linear_scratch(op, 128)]
    report = kernel(x, *parts.values(), Unwritten(y), *spaces)[-1]
    assert report.classes["WMMA"] == 8 * 16 * 8
    assert all(
        t.conflict_cycles == 0 for (space, what, _), t in report.traffic.items() if (space, what) == ("lds", "load")
    )


@pytest.mark.parametrize(
    ("scheme", "columns"),
    [
        ("q0f32", 1024), ("q0f16", 4096), ("q8f16_1", 4096), ("q4f16_1", 1024), ("q3f16_1", 4096), ("q4f32_1", 11008),
        ("q3f16_1", 11008), ("q4f16_asym", 11008),
    ],
)  # fmt: skip
def test_weights_of_one_token_come_in_16_byte_loads(scheme, columns):
    """At least 95 % of the weight's bytes, each once; and the lines that 128-bit loads touch are used whole. Rows of
    11008 leave LDS little room for scales beside the activations."""
    scheme = SCHEMES[scheme]
    op = Linear(scheme, 64, columns, 1)
    kernel = Emulated(GREEDY.build_linear(op, "linear"))
    draw = np.random.default_rng(0)
    parts, _ = random_weight(draw, scheme, 64, columns)
    x, y = draw.standard_normal((1, columns)).astype(np.float32), unwritten(1, 64)
    (report,) = kernel(x, *parts.values(), Unwritten(y))
    stored = sum(part.nbytes for part in parts.values())
    activations = report.workgroups * x.nbytes
    wide = report.traffic["global", "load", 16]
    assert report.bytes("global", "load") == stored + activations
    narrow = stored + activations - wide.bytes - (activations if scheme.is_float else 0)  # which are read one by one
    assert narrow <= 0.05 * stored
    # a lane reads the activations of a word, 32 bytes for 4-bit codes, by loads of 16
    assert 64 * wide.lines64 <= stored + max(2, scheme.per_word // 4) * activations
    assert report.scratch_bytes == 0
