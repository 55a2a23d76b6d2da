"""The cooperative-matrix kernels: their SPIR-V is valid, and with the matrix calls written out as loops (each lane
keeps its share of a piece) their staging, tiling and epilogues compute what NumPy computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
from device import validate
from harness import error, random_weight, unwritten
from matrix_loops import LANES, stand_in
from moe_case import Case, spaces

from mlcrt.kernels.records import Attention, Linear, Moe
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan import experts, flash, matrix
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.codegen import compile_kernels, lower
from mlcrt.targets.vulkan.matrix import MatrixTiles
from mlcrt.targets.vulkan.tiles import KindLibrary, machine, matrix_tiles

SMALL = MatrixTiles(32, 64, 32, 16, 32)
CASES = [
    ("q4f16_1", {"norm_eps": 1e-5, "gate": "silu"}, SMALL),
    ("q4f16_1", {"residual": True}, SMALL),
    ("q4f16_asym", {"bias": True, "norm_eps": 1e-6}, MatrixTiles(32, 64, 32, 16, 32, double=False)),
    ("q8f16_1", {"gate": "gelu_tanh"}, MatrixTiles(32, 64, 32, 16, 32, shape=(16, 8, 16))),
    ("q3f16_1", {}, MatrixTiles(32, 64, 32, 16, 32, double=False, shape=(8, 16, 16))),
    ("q0f16", {"bias": True, "residual": True}, MatrixTiles(128, 128, 64, 64, 64, double=False)),
]
_IDS = [f"{scheme}-{'-'.join(switches) or 'plain'}" for scheme, switches, _ in CASES]
TOKENS, UNITS, COLUMNS = 43, 80, 96


def build(scheme: str, switches: dict, tiles: MatrixTiles, variant: str):
    rows = 2 * UNITS if switches.get("gate") else UNITS
    op = Linear(SCHEMES[scheme].row_major(), rows, 3 * tiles.depth, None, **switches)
    assert matrix.suits(op)
    function = matrix.linear(op, tiles, machine(Variant(variant)))
    return op, tvm.IRModule({"linear": function.with_attr("global_symbol", "linear")})


@pytest.mark.parametrize(("scheme", "switches", "tiles"), CASES, ids=_IDS)
def test_valid(scheme, switches, tiles):
    shaders = compile_kernels(lower(build(scheme, switches, tiles, "s32m")[1]))
    prepare, product = sorted(shaders, key=lambda shader: shader.name)
    for shader in shaders:
        validate(shader)
    m, n, k = tiles.shape
    needed = {"cooperativeMatrix", "vulkanMemoryModel", f"matrix:{m}x{n}x{k}:f16:f32"}
    assert needed <= set(product.requirements) and not needed & set(prepare.requirements)
    assert product.workgroup_size == (32 * tiles.subgroups, 1, 1)
    assert product.subgroup and product.shared_bytes <= 49152


@pytest.mark.parametrize("variant", ["s16m", "s32m"])
def test_every_layer_has_tiles(variant):
    """That fit 48 KB of workgroup memory, and the threads, and the columns of the layer."""
    variant, scheme = Variant(variant), SCHEMES["q4f16_1"]
    for rows, columns in itertools.product((64, 576, 960, 2048, 3072, 6144, 128256), (32, 96, 576, 4096, 14336)):
        tiles = matrix_tiles(variant, Linear(scheme, rows, columns, None))
        assert tiles.divides(variant.lanes) and columns % tiles.depth == 0 and tiles.shape == variant.matrix
        tile = 4 * (tiles.tokens + tiles.rows) * tiles.pitch
        assert tile * (1 + tiles.double) <= 49152 and tiles.subgroups * variant.lanes <= 256


@pytest.fixture
def loops(monkeypatch):
    def sums(product):
        m, n, _ = product.tiles.shape
        return product.tiles.subgroup_tokens * product.tiles.subgroup_rows // (m * n)

    stand_in(monkeypatch, matrix, "_Product", sums, lambda p: p.tiles.subgroup_tokens // p.tiles.shape[0])


# a device without matrices compiles the last one's loops for long
@pytest.mark.parametrize(("scheme", "switches", "tiles"), CASES[:-1], ids=_IDS[:-1])
def test_against_numpy(vulkan, loops, run_kernel, scheme, switches, tiles):
    assert 3 * tiles.depth == COLUMNS
    op, module = build(scheme, switches, tiles, f"s{LANES}")
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
    outputs = [np.full((TOKENS, UNITS), np.nan, np.float32), np.zeros((TOKENS, COLUMNS // 2), np.uint32)]
    got, _ = run_kernel(module, arguments, outputs)
    assert not np.isnan(got).any()
    # float16 activations and weights; a gate multiplies two such sums
    assert np.abs(got - expected).max() <= (1e-2 if op.gate else 4e-3) * np.sqrt((expected**2).mean())


def test_attention_against_numpy(vulkan, monkeypatch, run_kernel):
    """70 tokens after 37 others: several steps, subgroups with few tokens, masks inside a step, two lanes to a row."""
    op, position, shape = Attention(4, 2, 48, None, "float16", 0.2, window=50, softcap=3.0), 37, (4, 16, 16)
    stand_in(monkeypatch, flash, "_Flash", lambda f: f.steps + 3, lambda f: f.steps + 1)
    function = flash.attention(op, shape, machine(Variant(f"s{LANES}")))
    tokens, blocks, rng = 70, 9, np.random.default_rng(3)
    q = rng.standard_normal((tokens, op.heads * op.head_dim)).astype(np.float32) * 3
    k, v = (rng.standard_normal((op.kv_heads, blocks * 16, op.head_dim)).astype(np.float16) for _ in range(2))
    k[:, position + tokens :] = np.nan  # nobody may look there
    v[:, position + tokens :] = np.nan
    caches = [cache.reshape(op.kv_heads, blocks, 16 * op.head_dim) for cache in (k, v)]
    outputs = [np.full_like(q, np.nan), np.zeros((tokens, op.heads, 1, op.head_dim + 2), np.float32)]
    module = tvm.IRModule({"attention": function.with_attr("global_symbol", "attention")})
    got, _ = run_kernel(module, [q, *caches, np.array([position], np.int32)], outputs)
    expected = np.empty((tokens, op.heads, op.head_dim))
    for t in range(tokens):
        first = 0 if op.window is None else max(0, position + t - op.window + 1)
        seen = slice(first, position + t + 1)
        for head in range(op.heads):
            query = q[t].reshape(op.heads, -1)[head].astype(np.float64)
            scores = k[head // op.group, seen].astype(np.float64) @ query * op.scale
            if op.softcap:
                scores = op.softcap * np.tanh(scores / op.softcap)
            weights = np.exp(scores - scores.max())
            expected[t, head] = weights @ v[head // op.group, seen].astype(np.float64) / weights.sum()
    assert np.abs(got - expected.reshape(tokens, -1)).max() <= 5e-3


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_attention_is_valid(head_dim):
    op = Attention(8, 2, head_dim, None, "float16", 0.1)
    assert flash.suits(op, 1)
    function = flash.attention(op, (16, 16, 16), machine(Variant("s32m")))
    module = tvm.IRModule({"attention": function.with_attr("global_symbol", "attention")})
    for shader in compile_kernels(lower(module)):
        validate(shader)
        assert shader.shared_bytes <= 49152


def test_experts_against_numpy(vulkan, monkeypatch, run_kernel):
    """Tiles of one expert's tokens, rows gathered; the choice needs the subgroups of the device at hand."""
    stand_in(monkeypatch, experts, "_Matrix", lambda _: 8, lambda _: 4, experts.LANES)
    scheme, name = SCHEMES["q4f16_1"], "moe__v_s8_"
    op = Moe(scheme, scheme, 64, 96, 3, 2, True, "silu", None, 1e-5, True)
    library = KindLibrary(Variant("s8"), "float16", True)
    products = KindLibrary(Variant("s32m"), "float16", True).expert_products(op)
    products.machine = library.machine
    monkeypatch.setattr(library, "expert_products", lambda _: products)
    module = tvm.IRModule({name: library.build_moe(op, name).with_attr("global_symbol", name)})
    inputs, expected = Case(op)(TOKENS)
    y = run_kernel(module, inputs, [unwritten(TOKENS, op.hidden), *spaces(library, op, TOKENS)])[0]
    assert error(y, expected) <= 1e-2
