"""One-token linear layers of every scheme on a Vulkan device against float64, with and without float16 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from harness import random_weight

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt import Library
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.tiles import machine, tiles

COLUMNS, UNITS = 320, 40
CASES = [
    ("q4f16_1", "s8"), ("q4f16_1", "s8f"), ("q4f32_1", "s8"), ("q3f16_1", "s8f"), ("q8f16_1", "s8"), ("q0f16", "s8f"),
    ("q0f32", "s8"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tag"), CASES, ids=["-".join(case) for case in CASES])
def test_decode(run_kernel, scheme, tag):
    variant = Variant(tag)
    op = Linear(SCHEMES[scheme].row_major(), 2 * UNITS, COLUMNS, 1, norm_eps=1e-5, gate="silu", residual=True)
    name = f"linear__v_{tag}_"
    function = Library(tiles(variant), "float16", machine(variant)).build_linear(op, name)
    rng = np.random.default_rng(1)
    parts, weight = random_weight(rng, op.scheme, op.rows, COLUMNS)
    x, norm = (rng.standard_normal((1, COLUMNS)) * 3).astype(np.float32), rng.uniform(0.5, 1.5, COLUMNS)
    residual = rng.standard_normal((1, UNITS)).astype(np.float32)
    wide = x.astype(np.float64)
    sums = (wide * norm.astype(np.float32) / np.sqrt((wide**2).mean() + op.norm_eps)) @ weight.T
    expected = sums[:, UNITS:] * sums[:, :UNITS] / (1 + np.exp(-sums[:, :UNITS])) + residual
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    (got,) = run_kernel(module, [x, *parts.values(), norm.astype(np.float32), residual], [residual * np.nan])
    bound = 1e-4 if scheme.endswith(("f32", "f32_1")) else 2e-2
    assert np.abs(got - expected).max() <= bound * np.sqrt((expected**2).mean())
