"""Routed MLPs on a Vulkan device against float64: one token and many, every scheme, any number of experts a token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from harness import error, unwritten
from moe_case import Case, records, spaces

from mlcrt.kernels.simt import Library
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.tiles import machine, tiles

VARIANT = Variant("s8")
LIBRARY = Library(tiles(VARIANT), "float16", machine(VARIANT))
NAME = "moe__v_s8_"


def module(op) -> tvm.IRModule:
    return tvm.IRModule({NAME: LIBRARY.build_moe(op, NAME).with_attr("global_symbol", NAME)})


@pytest.mark.parametrize(("record", "tokens"), [(0, 1), (1, 1), (2, 1), (0, None), (1, None), (3, None)])
def test_experts(run_kernel, record, tokens):
    """Among many tokens one whose logits are not numbers, which may harm no other (and read no expert there is not);
    or all choose the same experts, of equals the first."""
    op, n = replace(records()[record], tokens=tokens), tokens or 70
    router = np.zeros((n, op.experts), np.float32) if record == 3 else None
    inputs, expected = Case(op)(n, router)
    if record < 3 and n > 1:
        inputs[1][13], expected[13] = np.nan, 0
    y = run_kernel(module(op), inputs, [unwritten(n, op.hidden), *spaces(LIBRARY, op, n)])[0]
    if record < 3 and n > 1:
        assert np.isnan(y[13]).all()
        y[13] = 0
    assert error(y, expected) <= (1e-4 if op.gate_up.dtype == op.down.dtype == "float32" else 1e-2)
