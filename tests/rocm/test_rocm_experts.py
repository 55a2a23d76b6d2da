"""Routed MLPs as the ROCm target makes them for gfx1100, emulated, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm
from harness import error, unwritten
from moe_case import Case, records, spaces

from mlcrt.kernels.records import Moe
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import assembly, attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten
from mlcrt.targets.rocm.inspection import rows

LIBRARY = library(attributes("gfx1100"), "float16")


def run(op, n):
    """(result, float64 result, the case, the kernels' reports) for n tokens."""
    made = Case(op)
    inputs, expected = made(n)
    y = unwritten(n, op.hidden)
    kernel = Emulated(LIBRARY.build_moe(op, "moe"))
    return y, expected, made, kernel(*inputs, Unwritten(y), *map(Unwritten, spaces(LIBRARY, op, n)))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("op", records(), ids=lambda op: f"{op.gate_up.name}-{op.down.name}")
def test_every_scheme(op, tokens):
    y, expected, _, _ = run(replace(op, tokens=1 if tokens == 1 else None), tokens)
    half = "float16" in (op.gate_up.dtype, op.down.dtype)
    assert error(y, expected) <= (1e-2 if half else 1e-5)


def test_many_tokens_by_wmma():
    op = replace(records()[0], tokens=None)
    y, expected, _, reports = run(op, 21)
    assert error(y, expected) <= 1e-2
    assert [bool(report.classes.get("WMMA")) for report in reports] == [False, False, False, True, True, False]


def test_one_token_reads_the_weights_of_its_experts_alone():
    """Of six experts three: their codes and scales once, in loads of 16 bytes, and little beside."""
    op = replace(records()[0], down=records()[0].gate_up, hidden=256, intermediate=128)
    y, expected, made, reports = run(op, 1)
    assert error(y, expected) <= 1e-2
    assert len(reports) == 2
    tokens = (2 * op.hidden * 4, op.top_k * op.intermediate * 4)  # x and the norm's weight; the inner activations
    for report, parts, staged in zip(reports, (made.up_parts, made.down_parts), tokens, strict=True):
        codes, scales = (parts[part].nbytes * op.top_k // op.experts for part in ("codes", "scales"))
        staged *= report.workgroups
        assert report.traffic["global", "load", 16].bytes == codes + scales + staged
        logits_and_residual = report.bytes("global", "load") - staged - codes - scales
        assert 0 < logits_and_residual < (codes + scales) // op.top_k // 4


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [("q4f16_asym", (2048, 768, 128, 8)), ("q3f16_1", (6144, 16384, 8, 2))],
)  # of Qwen3-30B-A3B and Mixtral-8x22B
def test_the_check_of_the_machine_code_sees_experts(scheme, shape):
    """All bytes of the weights 16 at a time, no registers in memory: else compiling would be refused."""
    op = Moe(SCHEMES[scheme], SCHEMES[scheme], *shape, True, "silu", 1, 1e-5, True)
    function = LIBRARY.build_moe(op, "moe").with_attr("global_symbol", "moe")
    found = rows(tvm.compile(function, assembly.target("gfx1100")).mod, pytest.fail)
    assert [row["128-bit weights"] for row in found] == ["100 %", "100 %"]
