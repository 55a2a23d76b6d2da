"""Routed MLPs as the ROCm target makes them for gfx1100, emulated, against float64."""

from __future__ import annotations

from dataclasses import replace

from harness import error, unwritten
from moe_case import Case, records, spaces

from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten

LIBRARY = library(attributes("gfx1100"), "float16")


def run(op, n):
    """(result, float64 result, the case, the kernels' reports) for n tokens."""
    made = Case(op)
    inputs, expected = made(n)
    y = unwritten(n, op.hidden)
    kernel = Emulated(LIBRARY.build_moe(op, "moe"))
    return y, expected, made, kernel(*inputs, Unwritten(y), *map(Unwritten, spaces(LIBRARY, op, n)))


def test_many_tokens_by_wmma():
    op = replace(records()[0], tokens=None)
    y, expected, _, reports = run(op, 21)
    assert error(y, expected) <= 1e-2
    assert [bool(report.classes.get("WMMA")) for report in reports] == [False, False, False, True, True, False]


def test_one_token_reads_the_weights_of_its_experts_alone():
    """Of six experts three: their codes once, in loads of 16 bytes, their scales, and little beside."""
    op = replace(records()[0], down=records()[0].gate_up, hidden=256, intermediate=128)
    y, expected, made, reports = run(op, 1)
    assert error(y, expected) <= 1e-2
    assert len(reports) == 2
    tokens = (2 * op.hidden * 4, op.top_k * op.intermediate * 4)  # x and the norm's weight; the inner activations
    for report, parts, staged in zip(reports, (made.up_parts, made.down_parts), tokens, strict=True):
        codes, scales = (parts[part].nbytes * op.top_k // op.experts for part in ("codes", "scales"))
        staged *= report.workgroups
        assert report.traffic["global", "load", 16].bytes == codes + staged
        logits_and_residual = report.bytes("global", "load") - staged - codes - scales
        assert 0 < logits_and_residual < (codes + scales) // op.top_k // 4
