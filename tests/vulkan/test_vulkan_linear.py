"""One-token linear layers of every scheme on a Vulkan device against float64, with and without float16 arithmetic, and
what kernels ask of any device."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from device import validate
from harness import random_weight

from mlcrt.kernels.records import Attention, Linear
from mlcrt.kernels.simt import Library
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.codegen import compile_kernels, lower
from mlcrt.targets.vulkan.tiles import KindLibrary, machine, tiles

UNITS = 40
# the last two: activations that do not fit workgroup memory, of Qwen2.5-7B and Llama-3-8B
CASES = [
    ("q4f16_1", "s8", 320), ("q4f16_1", "s8f", 320), ("q4f32_1", "s8", 320), ("q3f16_1", "s8f", 320),
    ("q8f16_1", "s8", 320), ("q0f16", "s8f", 320), ("q0f32", "s8", 320), ("q4f16_1", "s8", 18944),
    ("q4f32_1", "s8", 14336),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tag", "columns"), CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_decode(run_kernel, scheme, tag, columns):
    variant = Variant(tag)
    op = Linear(SCHEMES[scheme].row_major(), 2 * UNITS, columns, 1, norm_eps=1e-5, gate="silu", residual=True)
    name = f"linear__v_{tag}_"
    function = Library(tiles(variant), "float16", machine(variant)).build_linear(op, name)
    rng = np.random.default_rng(1)
    parts, weight = random_weight(rng, op.scheme, op.rows, columns)
    x, norm = (rng.standard_normal((1, columns)) * 3).astype(np.float32), rng.uniform(0.5, 1.5, columns)
    residual = rng.standard_normal((1, UNITS)).astype(np.float32)
    wide = x.astype(np.float64)
    sums = (wide * norm.astype(np.float32) / np.sqrt((wide**2).mean() + op.norm_eps)) @ weight.T
    expected = sums[:, UNITS:] * sums[:, :UNITS] / (1 + np.exp(-sums[:, :UNITS])) + residual
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    (got,) = run_kernel(module, [x, *parts.values(), norm.astype(np.float32), residual], [residual * np.nan])
    bound = 1e-4 if scheme.endswith(("f32", "f32_1")) else 2e-2
    assert np.abs(got - expected).max() <= bound * np.sqrt((expected**2).mean())


@pytest.mark.parametrize(("tag", "most"), [("s16f", 32), ("s32", 48), ("s64", 32)])
def test_workgroup_memory_is_what_devices_have(tag, most):
    """Not more KiB than drivers of that subgroup size offer at least, however long a row or large a head."""
    kernels = KindLibrary(Variant(tag), "float16", True)
    row = Linear(SCHEMES["q4f32_1"].row_major(), 16, 14336, 1, residual=True)
    heads = Attention(32, 4, 256, 1, "float32", 0.1)
    for function in (kernels.build_linear(row, "kernel"), kernels.build_attention(heads, "kernel")):
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        for shader in compile_kernels(lower(module)):
            validate(shader)
            assert shader.shared_bytes <= most << 10
