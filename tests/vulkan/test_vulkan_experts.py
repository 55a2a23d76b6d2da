"""Routed MLPs on a Vulkan device against float64: one token and many, every scheme, any number of experts a token."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from harness import error, unwritten
from moe_case import Case

from mlcrt.kernels import Space
from mlcrt.kernels.records import Moe
from mlcrt.kernels.simt import Library
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.tiles import machine, tiles

#      gate_up      down         hidden, intermediate, experts, top_k   normalize norm residual
CASES = [
    ("q4f16_1", "q4f16_1", (320, 72, 6, 3), True, True, True),
    ("q4f16_1", "q8f16_1", (64, 40, 4, 4), False, False, True),
    ("q4f32_1", "q3f16_1", (96, 33, 12, 8), True, True, False),
    ("q8f16_1", "q4f32_1", (33, 96, 5, 1), False, True, True),
    ("q3f16_1", "q4f16_asym", (64, 80, 3, 2), True, False, False),
    ("q4f16_asym", "q0f16", (96, 64, 7, 5), False, True, True),
    ("q0f32", "q0f32", (40, 36, 130, 6), True, True, True),
]


@pytest.mark.parametrize("tokens", [1, None], ids=["one", "many"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_experts(run_kernel, case, tokens):
    up, down, (hidden, intermediate, experts, top_k), normalize, norm, residual = case
    op = Moe(
        SCHEMES[up], SCHEMES[down], hidden, intermediate, experts, top_k, normalize, "silu", tokens,
        1e-5 if norm else None, residual,
    )  # fmt: skip
    variant = Variant("s8")
    library = Library(tiles(variant), "float16", machine(variant))
    name = "moe__v_s8_"
    module = tvm.IRModule({name: library.build_moe(op, name).with_attr("global_symbol", name)})
    made = Case(op)
    for n in (1,) if tokens else (1, 45):
        inputs, expected = made(n)
        spaces = [np.full(s.shape, -1).astype(s.dtype) * np.asarray(np.nan if s.dtype == "float32" else 1, s.dtype)
                  for s in map(Space.of, library.moe_scratch(op, n))]  # fmt: skip
        y = run_kernel(module, inputs, [unwritten(n, hidden), *spaces])[0]
        bound = 1e-4 if all(SCHEMES[s].dtype == "float32" for s in (up, down)) else 1e-2
        assert error(y, expected) <= bound, f"{n} tokens"
