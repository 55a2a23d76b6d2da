"""Products on the tile registers of AMX: against float64, and every token as if it were alone, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from harness import build, call, error, label, machine, pairwise, random_weight, unwritten
from linear_case import FUSIONS, complete, record
from test_kernel_linear import STORED

from mlcrt.errors import UsageError
from mlcrt.kernels.amx import AmxLibrary, AmxTiles
from mlcrt.kernels.amx.linear import linear
from mlcrt.kernels.amx.weights import serves
from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.cpu import architecture
from mlcrt.targets.cpu.architecture import AMX, attributes
from mlcrt.targets.cpu.tiles import library, tiles

TOLERANCE = 1e-4  # two bfloat16 keep 16 bits of a float32
COUNTS = (1, 2, 3, 5, 8, 11, 16, 17, 37)  # tokens: every size of a tile, full and not, and several tiles

LINEAR = pairwise(
    scheme=[s for s in STORED if serves(s)],
    units=(16, 17, 34, 503),
    columns=(33, 96, 300, 576, 1536),
    **FUSIONS,
)[:16]


@pytest.mark.parametrize("case", LINEAR, ids=label)
def test_linear(case):
    op = record(case, case["units"], None)
    kernel = build(linear(op, machine(AMX)[1].linear, AmxTiles()), AMX)
    draw = np.random.default_rng(op.rows * op.columns)
    parts, weights = random_weight(draw, op.scheme, op.rows, op.columns)
    x = draw.standard_normal((max(COUNTS), op.columns)).astype(np.float32) * np.float32(3)
    arguments, expected = complete(op, draw, x, parts, weights)
    *inputs, together = call(kernel, *arguments, unwritten(*expected.shape))
    assert error(together, expected) <= TOLERANCE
    for given, after in zip(arguments, inputs, strict=True):
        np.testing.assert_array_equal(given, after)
    shared, residual = (arguments[1:-1], arguments[-1:]) if op.residual else (arguments[1:], [])
    for n in COUNTS:
        y = call(kernel, x[:n], *shared, *(r[:n] for r in residual), unwritten(n, op.units))[-1]
        np.testing.assert_array_equal(y, together[:n])


def test_large_and_small_activations():
    """Every float32 has two bfloat16 that are near to it: nothing overflows, and small ones count beside large ones."""
    op = Linear(SCHEMES["q4f16_1"], 16, 64, None)
    kernel = build(linear(op, machine(AMX)[1].linear, AmxTiles()), AMX)
    draw = np.random.default_rng(0)
    parts, weights = random_weight(draw, op.scheme, 16, 64)
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        x = (draw.standard_normal((3, 64)) * scale).astype(np.float32)
        y = call(kernel, x, *parts.values(), unwritten(3, 16))[-1]
        expected = x.astype(np.float64) @ weights.T
        assert np.abs(y - expected).max() <= TOLERANCE * np.sqrt((expected**2).mean())
    x = np.zeros((2, 64), np.float32)
    x[1, 5] = np.inf
    y = call(kernel, x, *parts.values(), unwritten(2, 16) * 0 + 1)[-1]
    assert (y[0] == 0).all() and not np.isfinite(y[1]).any()


def test_machines_without_amx_compile_for_it():
    """Which instructions come out does not depend on the machine."""
    made = library(attributes(AMX), "float16")
    assert isinstance(made, AmxLibrary)
    for op, wanted in (
        (Linear(SCHEMES["q4f16_1"], 16, 64, None, alike=True), True), (Linear(SCHEMES["q4f16_1"], 64, 64, 1), False),
        (Linear(SCHEMES["q0f16"], 64, 64, None), False), (Linear(SCHEMES["q4f16_1"], 8, 64, None), False),
    ):  # fmt: skip
        function = made.build_linear(op, "kernel").with_attr("global_symbol", "kernel")
        with tvm.transform.PassContext(opt_level=3, disabled_pass=list(made.skipped_passes)):
            code = tvm.compile(tvm.IRModule({"kernel": function}), target=attributes(AMX).tvm_target())
        assert ("tdpbf16ps" in code.mod.inspect_source("asm")) is wanted, op


def test_a_process_that_may_not_use_amx(monkeypatch):
    """It gets the level below, and a library for AMX is not for it."""
    monkeypatch.setattr(architecture, "tile_registers", lambda: False)
    architecture.host_flags.cache_clear()
    try:
        assert not attributes("").amx and not attributes("native").amx
        assert "amx_tile" in architecture.missing_features(list(attributes(AMX).features))
    finally:
        monkeypatch.undo()
        architecture.host_flags.cache_clear()
    with pytest.raises(UsageError, match="is for Linux: choose x86-64-v4 for"):
        attributes(f"{AMX}-windows")


def test_tiles_of_registers_are_those_of_the_level_below():
    assert tiles(attributes(AMX)) == tiles(attributes("x86-64-v4"))
