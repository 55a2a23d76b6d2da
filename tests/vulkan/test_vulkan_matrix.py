"""The cooperative-matrix kernel: its SPIR-V is valid, and with the matrix calls written out as loops (each lane keeps
eight elements of a piece) its staging, tiling and epilogues compute what NumPy computes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from device import validate
from harness import error, random_weight, unwritten
from moe_case import Case, spaces
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear, Moe
from mlcrt.kernels.simt.common import local
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan import matrix
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.codegen import compile_kernels, lower
from mlcrt.targets.vulkan.tiles import MatrixLibrary, machine, tiles

CASES = [
    ("q4f16_1", {"norm_eps": 1e-5, "gate": "silu"}),
    ("q4f16_1", {"residual": True}),
    ("q4f16_asym", {"bias": True, "norm_eps": 1e-6}),
    ("q8f16_1", {"gate": "gelu_tanh"}),
    ("q3f16_1", {}),
    ("q0f16", {"bias": True, "residual": True}),
    ("q0f32", {"norm_eps": 1e-5}),
]
_IDS = [f"{scheme}-{'-'.join(switches) or 'plain'}" for scheme, switches in CASES]
TOKENS, UNITS, COLUMNS = 140, 144, 64


def build(scheme: str, switches: dict):
    rows = 2 * UNITS if switches.get("gate") else UNITS
    op = Linear(SCHEMES[scheme].row_major(), rows, COLUMNS, None, **switches)
    assert matrix.suits(op)
    function = matrix.linear(op, machine(Variant("s32m")))
    return op, tvm.IRModule({"linear": function.with_attr("global_symbol", "linear")})


@pytest.mark.parametrize(("scheme", "switches"), CASES, ids=_IDS)
def test_valid(scheme, switches):
    (shader,) = compile_kernels(lower(build(scheme, switches)[1]))
    validate(shader)
    assert {"cooperativeMatrix", "vulkanMemoryModel", matrix.SHAPE} <= set(shader.requirements)
    assert shader.workgroup_size == (256, 1, 1) and shader.subgroup and shader.shared_bytes <= 49152


class _Loops:
    """Stands in for the matrix calls: accumulators are eight registers a lane, products read workgroup memory."""

    def __init__(self):
        self.held = {}

    def __call__(self, name: str, *arguments) -> None:
        getattr(self, name.removeprefix("matrix_"))(*arguments)

    def place(self, element: int):
        """Row and column of a lane's element of a 16x16 piece."""
        at = tirx.floormod(self.thread, 32) * 8 + element
        return tirx.floordiv(at, 16), tirx.floormod(at, 16)

    def fill(self, number: int, value) -> None:
        if not self.held:
            self.accumulators = local((64,))
        for e in range(8):
            T.buffer_store(self.accumulators, value, [number * 8 + e])
        self.held["c"] = True

    def load_a(self, number: int, address, stride: int) -> None:
        self.held["a", number] = address.args[0]

    def load_b(self, number: int, address, stride: int) -> None:
        self.held["b", number] = address.args[0]

    def multiply_add(self, c: int, a: int, b: int) -> None:
        left, right = self.held["a", a], self.held["b", b]
        with T.serial(8) as e:
            row, column = self.place(e)
            with T.serial(16) as k:
                values = [
                    tirx.Cast("float32", T.BufferLoad(load.source, [load.indices[0] + line, load.indices[1] + k]))
                    for load, line in ((left, row), (right, column))
                ]
                total = T.BufferLoad(self.accumulators, [c * 8 + e]) + values[0] * values[1]
                T.buffer_store(self.accumulators, total, [c * 8 + e])

    def store(self, number: int, address, stride: int) -> None:
        load = address.args[0]
        with T.serial(8) as e:
            row, column = self.place(e)
            value = T.BufferLoad(self.accumulators, [number * 8 + e])
            T.buffer_store(load.source, value, [load.indices[0] + row, load.indices[1] + column])


@pytest.fixture
def loops(monkeypatch):
    stand_in = _Loops()
    monkeypatch.setattr(matrix, "_call", stand_in)
    prepare = matrix._Matrix.prepare

    def noting(self):
        stand_in.thread, stand_in.held = self.thread, {}
        prepare(self)

    monkeypatch.setattr(matrix._Matrix, "prepare", noting)
    return stand_in


@pytest.mark.parametrize(("scheme", "switches"), CASES[:2], ids=_IDS[:2])
def test_against_numpy(vulkan, loops, run_kernel, scheme, switches):
    op, module = build(scheme, switches)
    rng = np.random.default_rng(5)
    parts, weight = random_weight(rng, op.scheme, op.rows, COLUMNS)
    x = rng.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    arguments, expected = [x, *parts.values()], x.astype(np.float64)
    if op.norm_eps is not None:
        norm = rng.uniform(0.5, 1.5, COLUMNS).astype(np.float32)
        arguments.append(norm)
        expected = expected * norm / np.sqrt((expected**2).mean(1, keepdims=True) + op.norm_eps)
    expected = expected @ weight.T
    if op.bias:
        bias = rng.standard_normal(op.rows).astype(np.float32)
        arguments.append(bias)
        expected = expected + bias
    if op.gate:
        gate, up = expected[:, :UNITS], expected[:, UNITS:]
        inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        expected = up * (gate / (1 + np.exp(-gate)) if op.gate == "silu" else 0.5 * gate * (1 + np.tanh(inner)))
    if op.residual:
        residual = rng.standard_normal((TOKENS, UNITS)).astype(np.float32)
        arguments.append(residual)
        expected = expected + residual
    (got,) = run_kernel(module, arguments, [np.full((TOKENS, UNITS), np.nan, np.float32)])
    assert not np.isnan(got).any()
    # float16 activations and weights; a gate multiplies two such sums
    assert np.abs(got - expected).max() <= (1e-2 if op.gate else 4e-3) * np.sqrt((expected**2).mean())


def test_experts_against_numpy(vulkan, loops, run_kernel):
    """Tiles of one expert's tokens, rows gathered; the choice needs the subgroups of the device at hand."""
    scheme, variant = SCHEMES["q4f16_1"], Variant("s8")
    op = Moe(scheme, scheme, 64, 96, 3, 2, True, "silu", None, 1e-5, True)
    library = MatrixLibrary(tiles(variant), "float16", machine(variant))
    name = "moe__v_s8_"
    module = tvm.IRModule({name: library.build_moe(op, name).with_attr("global_symbol", name)})
    inputs, expected = Case(op)(TOKENS)
    y = run_kernel(module, inputs, [unwritten(TOKENS, op.hidden), *spaces(library, op, TOKENS)])[0]
    assert error(y, expected) <= 1e-2
