"""Kernels of batched steps: every token as if it were alone, to the bit, and against NumPy."""

from __future__ import annotations

import dataclasses

import harness
import numpy as np
import pytest
from harness import build, call, error, label, machine, pairwise, random_weight, unwritten
from linear_case import FUSIONS, record
from test_kernel_attention import BLOCKS, history, reference
from test_kernel_linear import STORED, TOLERANCE

from mlcrt.kernels.arguments import BLOCK
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simd.attention import attention, rope_append
from mlcrt.kernels.simd.choose import choose
from mlcrt.kernels.simd.elementwise import rotary_tables
from mlcrt.kernels.simd.linear import linear

LINEAR = pairwise(
    scheme=STORED,
    rows=(1, 3, 34),
    columns=(33, 96, 576),
    level=harness.LEVELS,
    **FUSIONS,
)[:16]


@pytest.mark.parametrize("case", LINEAR, ids=label)
def test_a_token_does_not_notice_the_others(case):
    scheme, columns = case["scheme"], case["columns"]
    single = record(case | {"residual": case["residual"] and not case["gate"]}, case["rows"], 1)
    rows = single.rows
    tiles = machine(case["level"])[1].linear
    one = build(linear(single, tiles), case["level"])
    many = build(linear(dataclasses.replace(single, tokens=None, alike=True), tiles), case["level"])
    draw = np.random.default_rng(rows * columns)
    parts, _ = random_weight(draw, scheme, rows, columns)
    shared = [*parts.values()]
    shared += [draw.uniform(0.5, 1.5, columns).astype(np.float32)] if case["norm"] else []
    shared += [draw.standard_normal(rows).astype(np.float32)] if case["bias"] else []
    for n in (1, 2, 3, 5, 6, 7, 11, 17):
        x = draw.standard_normal((n, columns)).astype(np.float32) * np.float32(3)
        extra = [draw.standard_normal((n, single.units)).astype(np.float32)] if single.residual else []
        y = call(many, x, *shared, *extra, unwritten(n, single.units))[-1]
        for t in range(n):
            alone = call(one, x[t : t + 1], *shared, *(e[t : t + 1] for e in extra), unwritten(1, single.units))[-1]
            np.testing.assert_array_equal(y[t : t + 1], alone)


PAGED = pairwise(
    head_dim=(16, 80, 256),
    group=(1, 3, 5),
    kv_heads=(1, 3),
    window=(None, 5, 40),
    softcap=(None, 3.0),
    kv=("float16", "float32"),
    level=harness.LEVELS,
)[:14]


@pytest.mark.parametrize("case", PAGED, ids=label)
def test_paged_attention_and_append(case):
    """Three sequences with blocks in any order, against attention over each one's history laid out straight; and the
    same bits as the contiguous kernel for one token gives."""
    kv = case["kv"] if machine(case["level"])[0].native_f16 else "float32"
    heads = case["kv_heads"] * case["group"]
    op = Attention(
        heads, case["kv_heads"], case["head_dim"], None, kv, 0.4, case["window"], case["softcap"], paged=True
    )
    tiles = machine(case["level"])[1].attention
    kernel = build(attention(op, tiles), case["level"])
    one = build(attention(dataclasses.replace(op, tokens=1, paged=False), tiles), case["level"])
    draw = np.random.default_rng(case["head_dim"])
    histories = [history(draw, op) for _ in range(3)]
    order = draw.permutation(3 * BLOCKS).reshape(3, BLOCKS).astype(np.int32)
    pool = []
    for which in (0, 1):
        caches = [h[2][which] for h in histories]
        whole = np.zeros((op.kv_heads, 3 * BLOCKS, caches[0].shape[2]), caches[0].dtype)
        for blocks, cache in zip(order, caches, strict=True):
            whole[:, blocks] = cache
        pool.append(whole)
    positions = np.array([0, 90, 17, 16, 31, 127], np.int32)
    sequences = np.array([2, 0, 1, 1, 0, 2], np.int32)
    q = draw.standard_normal((6, heads * op.head_dim)).astype(np.float32)
    out = call(kernel, q, *pool, positions, sequences, order, unwritten(*q.shape))[-1]
    for t, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        k, v, caches = histories[sequence]
        expected = reference(op, q[t].reshape(1, heads, -1).astype(np.float64), k, v, int(position))
        assert error(out[t : t + 1], expected.reshape(1, -1)) <= TOLERANCE
        alone = call(one, q[t : t + 1], *caches, positions[t : t + 1], unwritten(1, q.shape[1]))[-1]
        np.testing.assert_array_equal(out[t : t + 1], alone)


def test_appending_to_blocks_anywhere():
    op = Attention(4, 2, 16, None, "float32", 1.0, rotary_dim=8, paged=True)
    tiles = machine("native")[1].attention
    paged = build(rope_append(op, tiles), "native")
    plain = build(rope_append(dataclasses.replace(op, tokens=1, paged=False), tiles), "native")
    tables = build(rotary_tables(4, None, 1.5, True), "native")
    draw = np.random.default_rng(1)
    order = draw.permutation(2 * BLOCKS).reshape(2, BLOCKS).astype(np.int32)
    pool = [draw.standard_normal((2, 2 * BLOCKS, 16 * BLOCK)).astype(np.float32) for _ in range(2)]
    positions, sequences = np.array([15, 100, 16], np.int32), np.array([0, 1, 0], np.int32)
    qkv = draw.standard_normal((3, 8 * 16)).astype(np.float32)
    frequencies = draw.uniform(0, 1, 4).astype(np.float32)
    cos, sin = call(tables, frequencies, positions, unwritten(3, 4), unwritten(3, 4))[-2:]
    np.testing.assert_allclose(cos, 1.5 * np.cos(positions[:, None] * frequencies), rtol=1e-5, atol=1e-5)
    *_, k, v, q = call(paged, qkv, cos, sin, positions, sequences, order, *pool, unwritten(3, 64))
    expected_k, expected_v = (p.copy() for p in pool)
    for t, (position, blocks) in enumerate(zip(positions, order[sequences], strict=True)):
        straight = [expected_k[:, blocks], expected_v[:, blocks]]
        row = slice(t, t + 1)
        *_, new_k, new_v, new_q = call(
            plain, qkv[row], cos[row], sin[row], positions[row], *straight, unwritten(1, 64)
        )
        expected_k[:, blocks], expected_v[:, blocks] = new_k, new_v
        np.testing.assert_array_equal(q[row], new_q)
        assert position in (15, 16, 100)
    np.testing.assert_array_equal(k, expected_k)
    np.testing.assert_array_equal(v, expected_v)


@pytest.mark.parametrize("vocab", [1, 31, 32, 503, 1000])
@pytest.mark.parametrize("level", harness.LEVELS)
def test_choose(vocab, level):
    kernel = build(choose(vocab, machine(level)[1].linear.lanes), level)
    draw = np.random.default_rng(vocab)
    logits = np.round(draw.standard_normal((4, vocab)) * 3).astype(np.float32)  # with equals
    bits = draw.random((2, vocab)) < 0.3
    bits[:, draw.integers(vocab)] = True
    masks = np.packbits(np.pad(bits, [(0, 0), (0, -vocab % 32)]), axis=1, bitorder="little").view(np.int32)
    mask = np.array([1, -1, 0, -1], np.int32)
    tokens = draw.integers(0, vocab, 5).astype(np.int32)
    biases = draw.standard_normal(5).astype(np.float32)
    starts = np.array([0, 2, 2, 5, 5], np.int32)
    after, *_, chosen, best = call(
        kernel, logits, masks, mask, starts, tokens, biases, np.full(4, -7, np.int32), unwritten(4)
    )
    expected = logits.copy()
    for row in range(4):
        for i in range(starts[row], starts[row + 1]):
            expected[row, tokens[i]] += biases[i]
        if mask[row] >= 0:
            expected[row, ~bits[mask[row]]] = -np.inf
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(chosen, expected.argmax(axis=1))
    np.testing.assert_array_equal(best, expected.max(axis=1))
