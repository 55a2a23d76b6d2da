"""Every Metal kernel, executed on the CPU from its MSL, against float64: all schemes, shapes at borders, both orders.

All kernels are compiled together: `make` names what a test wants, `kernel` gives it.
"""

from __future__ import annotations

from dataclasses import replace

import drawing
import msl
import numpy as np
import pytest
from batch_case import check_attention, check_choose, check_linear
from harness import ACTIVATIONS, Guarded, error, pairwise, random_weight, unwritten
from moe_case import Case, records, spaces
from test_kernel_attention import reference, rotated

from mlcrt.kernels.arguments import BLOCK
from mlcrt.kernels.records import Attention, Embed, Linear
from mlcrt.kernels.simt import draw
from mlcrt.kernels.simt.choose import scratch as choose_scratch
from mlcrt.quant.scheme import SCHEMES
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.targets import metal

EPS, BLOCKS = 1e-5, 8
STORED = [s for s in SCHEMES.values() if s.layout == "NK"]
LIBRARY = {kv: metal.library(metal.attributes(), kv) for kv in ("float16", "float32")}
BUILT: dict = {}


def make(name: str, build) -> str:
    """Remember a kernel to be compiled with the others; its name."""
    BUILT.setdefault(name, build)
    return name


@pytest.fixture(scope="module")
def run():
    """run(name, *arrays) → the arrays after the kernel, which gave the same bits whichever thread went first."""
    functions, kernels, reverse = msl.functions({name: build() for name, build in BUILT.items()})
    assert msl.check(list(kernels.values())) == []
    assert max(k.threadgroup_bytes for k in kernels.values()) <= 32768

    def call(name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        results = []
        for order in (0, 1):
            reverse(order)
            buffers = [Guarded(a) for a in arrays]
            functions[name](*(b.tensor for b in buffers))
            for buffer in buffers:
                buffer.check()
            results.append([b.values for b in buffers])
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)
        return results[0]

    return call


def linear_case(case: dict) -> dict:
    rows = 2 * case["rows"] if case["gate"] else case["rows"]
    op = Linear(
        case["scheme"], rows, case["columns"], 1 if case["decode"] else None, EPS if case["norm"] else None,
        case["bias"], case["gate"], case["residual"],
    )  # fmt: skip
    name = make(f"linear{len(BUILT)}", lambda: LIBRARY["float16"].build_linear(op, "linear"))
    return {"op": op, "name": name}


LINEAR = pairwise(
    scheme=STORED,
    rows=(1, 34, 130),
    columns=(33, 96, 560),
    decode=(True, False),
    norm=(True, False),
    bias=(True, False),
    gate=(None, "silu", "gelu", "gelu_tanh"),
    residual=(True, False),
)
# longer than threadgroup memory: activations come from device memory
LONG = [
    dict(scheme=SCHEMES[s], rows=5, columns=c, decode=True, norm=n, bias=False, gate=None, residual=True)
    for s, c, n in (("q0f32", 8448, True), ("q4f16_1", 14336, True), ("q3f16_1", 13824, False))
]


# whole steps of columns: simdgroup matrices
MATRIX = [
    dict(scheme=s, rows=70, columns=96, decode=False, norm=n, bias=b, gate=g, residual=not b)
    for s, n, b, g in zip(
        [s for s in STORED if s.dtype == "float16"], (True, False) * 3, (False, True, True) * 2,
        ("silu", None, "gelu", None, None), strict=False,
    )
]  # fmt: skip


@pytest.mark.parametrize("case", [{**c, **linear_case(c)} for c in [*LINEAR, *LONG, *MATRIX]], ids=lambda c: c["name"])
def test_linear(case, run):
    op, gate = case["op"], case["gate"]
    draw = np.random.default_rng(op.rows * op.columns)
    parts, weights = random_weight(draw, op.scheme, op.rows, op.columns)
    for n in (1,) if case["decode"] else (2, 70):
        x = draw.standard_normal((n, op.columns)).astype(np.float32)
        arguments, expected = [x, *parts.values()], x.astype(np.float64)
        if case["norm"]:
            arguments.append(draw.uniform(0.5, 1.5, op.columns).astype(np.float32))
            expected = expected / np.sqrt((expected**2).mean(axis=1, keepdims=True) + EPS) * arguments[-1]
        expected = expected @ weights.T
        if case["bias"]:
            arguments.append(draw.standard_normal(op.rows).astype(np.float32))
            expected = expected + arguments[-1]
        scale = np.sqrt((expected**2).mean()) ** (2 if gate else 1)  # a product's rounding grows with both factors
        if gate:
            expected = ACTIVATIONS[gate](expected[:, : op.units]) * expected[:, op.units :]
        if case["residual"]:
            arguments.append(draw.standard_normal(expected.shape).astype(np.float32))
            expected = expected + arguments[-1]
        y = run(case["name"], *arguments, unwritten(*expected.shape))[-1]
        # half-precision activations: 2**-11 relative, each
        tolerance = 5e-3 if op.scheme.dtype == "float16" else 1e-4
        assert not np.isnan(y).any()
        assert np.abs(y - expected).max() <= tolerance * max(scale, 0.05), f"{n} tokens"


MOE = [replace(op, tokens=tokens) for op in (records()[0], records()[3]) for tokens in (1, None)]


def moe_name(op) -> str:
    return make(f"moe{len(BUILT)}", lambda: LIBRARY["float16"].build_moe(op, "moe"))


@pytest.mark.parametrize(("op", "name"), [(op, moe_name(op)) for op in MOE], ids=[f"moe{i}" for i in range(len(MOE))])
def test_experts(op, name, run):
    n = op.tokens or 23
    inputs, expected = Case(op)(n)
    y = run(name, *inputs, unwritten(n, op.hidden), *spaces(LIBRARY["float16"], op, n))[len(inputs)]
    assert error(y, expected) <= (1e-2 if op.gate_up.dtype == "float16" else 1e-4)


EMBED = pairwise(scheme=STORED, hidden=(33, 96, 560), scale=(1.0, 8.5), decode=(True, False))


def embed_name(case: dict) -> str:
    op = Embed(case["scheme"], 7, case["hidden"], 1 if case["decode"] else None, case["scale"])
    return make(f"embed{len(BUILT)}", lambda: LIBRARY["float16"].build_embed(op))


@pytest.mark.parametrize(("case", "name"), [(c, embed_name(c)) for c in EMBED], ids=str)
def test_embed(case, name, run):
    parts, weights = random_weight(np.random.default_rng(case["hidden"]), case["scheme"], 7, case["hidden"])
    for tokens in ([0], [6]) if case["decode"] else ([6], [0, 6, 3, 3, 1]):
        out = run(name, *parts.values(), np.array(tokens, np.int32), unwritten(len(tokens), case["hidden"]))[-1]
        np.testing.assert_allclose(out, weights[tokens] * case["scale"], rtol=1e-5, atol=1e-5)


ROTARY = [(8, 1, 1.0), (40, None, 1.3), (33, None, 0.7)]
for half, tokens, factor in ROTARY:
    make(f"rotary{half}", lambda a=(half, tokens, factor): LIBRARY["float16"].build_rotary_tables(*a, False))


@pytest.mark.parametrize(("half", "tokens", "factor"), ROTARY)
def test_rotary_tables(half, tokens, factor, run):
    inv_freq = (1e4 ** (-np.arange(half) / half)).astype(np.float32)
    for position in (0, 127, 131070):
        n = tokens or 5
        tables = [unwritten(n, half) for _ in range(2)]
        *_, cos, sin = run(f"rotary{half}", inv_freq, np.array([position], np.int32), *tables)
        angle = (np.arange(position, position + n, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
        np.testing.assert_allclose(cos, np.cos(angle) * factor, atol=3e-7 * factor)
        np.testing.assert_allclose(sin, np.sin(angle) * factor, atol=3e-7 * factor)


for width, tokens, cap in ((503, 1, 2.5), (33, None, 50.0)):
    make(f"softcap{width}", lambda a=(width, tokens, cap): LIBRARY["float16"].build_softcap(*a))


@pytest.mark.parametrize(("width", "n", "cap"), [(503, 1, 2.5), (33, 5, 50.0)])
def test_softcap(width, n, cap, run):
    x = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32) * np.float32(2 * cap)
    x[0, :4] = 0, 1e-6, 1e4 * cap, -1e30
    y = run(f"softcap{width}", x, unwritten(n, width))[-1]
    assert error(y, cap * np.tanh(x.astype(np.float64) / cap)) <= 1e-5


VOCABULARIES = (1, 64, 503, 32003)
for vocab in VOCABULARIES:
    for count in (1, None):
        make(f"finish{vocab}_{count}", lambda a=(vocab, count): LIBRARY["float16"].build_finish_step(*a))


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_finish_step(vocab, run):
    draw, state = np.random.default_rng(vocab), [np.array([-1], np.int32), np.array([41], np.int32)]
    rows = [draw.standard_normal(vocab), np.zeros(vocab), -1e30 * np.ones(vocab)]  # of equals the first counts
    for at in {0, vocab // 2, vocab - 1}:
        tied = draw.standard_normal(vocab)
        tied[[at, vocab - 1]] = 9
        rows.append(tied)
    spaces = [unwritten(*shape) for shape in LIBRARY["float16"].finish_scratch()]
    for row in rows:
        logits = row.astype(np.float32)[None]
        for count, between, n in ((1, [], 1), (None, [np.zeros(6, np.int32)], 6)):
            got = run(f"finish{vocab}_{count}", logits, *between, unwritten(1, vocab), *state, *spaces)
            out, token, position = got[1 + len(between) :][:3]
            np.testing.assert_array_equal(out, logits)
            assert token[0] == logits[0].argmax()
            assert position[0] == 41 + n


DRAWS = ((40, 7, 256), (5003, 40, 512))
for vocab, _, threads in DRAWS:
    make(f"draw{vocab}", lambda v=vocab, t=threads: draw.draw(v, LIBRARY["float16"].machine, t))


@pytest.mark.parametrize(("vocab", "top_k", "threads"), DRAWS)
def test_draw(vocab, top_k, threads, run):
    row = (np.random.default_rng(vocab).standard_normal(vocab) * 4).astype(np.float32)
    for params in (SamplingParams(seed=1), SamplingParams(seed=2, top_k=top_k, min_p=0.01)):
        assert drawing.check(lambda *a: run(f"draw{vocab}", *a), row, params, drawn=3)


ATTENTION = pairwise(
    head_dim=(32, 80, 128),
    group=(1, 2, 3),
    kv_heads=(1, 3),
    window=(None, 1, 40),
    softcap=(None, 3.0),
    kv=("float16", "float32"),
    decode=(True, False),
) + [dict(head_dim=256, group=2, kv_heads=1, window=None, softcap=3.0, kv="float16", decode=True)]


def attention_case(case: dict) -> dict:
    op = Attention(
        case["kv_heads"] * case["group"], case["kv_heads"], case["head_dim"], 1 if case["decode"] else None,
        case["kv"], 0.4, case["window"], case["softcap"],
    )  # fmt: skip
    return {"op": op, "name": make(f"attention{len(BUILT)}", lambda: LIBRARY[op.kv_dtype].build_attention(op, "a"))}


def history(draw, op: Attention):
    """K and V [kv_heads, positions, head_dim] in float64, and the two caches."""
    shape = LIBRARY[op.kv_dtype].kv_shapes(op.kv_heads, op.head_dim, BLOCKS)[0]
    k, v = (draw.standard_normal((op.kv_heads, BLOCKS * BLOCK, op.head_dim)).astype(op.kv_dtype) for _ in range(2))
    return k.astype(np.float64), v.astype(np.float64), (k.reshape(shape), v.reshape(shape))


def stale(op: Attention, caches, end: int) -> list[np.ndarray]:
    """Copies of the caches with huge numbers from position `end` on, as a longer text that was rolled back leaves."""
    copies = [c.copy() for c in caches]
    for copy, value in zip(copies, (6e4, -6e4), strict=True):
        copy.reshape(op.kv_heads, -1, op.head_dim)[:, end:] = value
    return copies


@pytest.mark.parametrize("case", [{**c, **attention_case(c)} for c in ATTENTION], ids=lambda c: c["name"])
def test_attention(case, run):
    op, library = case["op"], LIBRARY[case["kv"]]
    draw = np.random.default_rng(op.head_dim)
    k, v, caches = history(draw, op)
    for position, n in ((0, 1), (16, 1), (70, 1)) if case["decode"] else ((0, 19), (31, 2), (90, 20)):
        q = draw.standard_normal((n, op.heads, op.head_dim)).astype(np.float32)
        arguments = [q.reshape(n, -1), *stale(op, caches, position + n), np.array([position], np.int32)]
        spaces = [unwritten(*map(int, shape)) for shape in library.attention_scratch(op, n)]
        *inputs, out = run(case["name"], *arguments, unwritten(n, op.heads * op.head_dim), *spaces)[:5]
        expected = reference(op, q.astype(np.float64), k, v, position).reshape(n, -1)
        assert error(out, expected) <= 2e-3, f"{n} tokens at {position}"
        for given, after in zip(arguments, inputs, strict=True):
            np.testing.assert_array_equal(given, after)


ROPE = pairwise(
    head_dim=(16, 80, 256), group=(1, 3), kv_heads=(1, 3), partial=(1.0, 0.25), norm=(True, False),
    kv=("float16", "float32"), decode=(True, False),
)  # fmt: skip


def rope_case(case: dict) -> dict:
    half = int(case["head_dim"] * case["partial"]) // 2
    op = Attention(
        case["kv_heads"] * case["group"], case["kv_heads"], case["head_dim"], 1 if case["decode"] else None,
        case["kv"], 1.0, rotary_dim=2 * half, norm_eps=EPS if case["norm"] else None,
    )  # fmt: skip
    return {"op": op, "name": make(f"rope{len(BUILT)}", lambda: LIBRARY[op.kv_dtype].build_rope_append(op))}


@pytest.mark.parametrize("case", [{**c, **rope_case(c)} for c in ROPE], ids=lambda c: c["name"])
def test_rope_append(case, run):
    op = case["op"]
    dim, half = op.head_dim, op.rotary_dim // 2
    draw = np.random.default_rng(dim)
    for position, n in [(15, 1), (16, 1)] if case["decode"] else [(0, 1), (13, 37)]:
        k, v, caches = history(draw, op)
        qkv = draw.standard_normal((n, op.heads + 2 * op.kv_heads, dim)).astype(np.float32)
        angle = draw.uniform(-3, 3, (n, half))
        tables = [np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]
        norms = [draw.uniform(0.5, 1.5, dim).astype(np.float32) for _ in range(2)] if case["norm"] else []
        arguments = [qkv.reshape(n, -1), *tables, np.array([position], np.int32), *norms, *caches]
        *_, k_after, v_after, q = run(case["name"], *arguments, unwritten(n, op.heads * dim))
        new_q, new_k, new_v = np.split(qkv.astype(np.float64), [op.heads, op.heads + op.kv_heads], axis=1)
        if norms:
            new_q, new_k = (
                x / np.sqrt((x**2).mean(axis=2, keepdims=True) + EPS) * w
                for x, w in zip((new_q, new_k), norms, strict=True)
            )
        new_q, new_k = (rotated(x, half, *tables) for x in (new_q, new_k))
        assert error(q, new_q.reshape(n, -1)) <= 1e-4
        span = slice(position, position + n)
        k[:, span], v[:, span] = new_k.swapaxes(0, 1), new_v.swapaxes(0, 1)
        close = 1e-3 if op.kv_dtype == "float16" else 1e-5
        np.testing.assert_allclose(k_after.reshape(k.shape).astype(np.float64), k, rtol=close, atol=close)
        np.testing.assert_array_equal(v_after.reshape(v.shape), v.astype(op.kv_dtype))


# kernels of batched steps: see tests/kernels/batch_case.py
TOGETHER = [
    (make(f"together_{s}", lambda op=op: LIBRARY["float16"].build_alike(op, "linear")), op)
    for s in ("q4f16_1", "q8f16_1")
    for op in [Linear(SCHEMES[s], 40, 96, None, EPS, True, "silu", False, alike=True)]
]
PAGED = Attention(6, 2, 32, None, "float16", 0.4, 40, None, paged=True, alike=True)
make("paged", lambda: LIBRARY["float16"].build_attention(PAGED, "attention"))
make("choose", lambda: LIBRARY["float16"].build_choose(300))


@pytest.mark.parametrize(("name", "op"), TOGETHER, ids=lambda v: v if isinstance(v, str) else "")
def test_a_token_does_not_notice_the_others(name, op, run):
    check_linear(lambda *arrays: run(name, *arrays), op, LIBRARY["float16"], 2e-2, [[4], [9, 3, 1]])


def test_paged_attention(run):
    check_attention(lambda *arrays: run("paged", *arrays), PAGED, LIBRARY["float16"])


def test_choosing_with_masks_and_biases(run):
    check_choose(lambda *arrays: run("choose", *arrays), 300, choose_scratch(5))
