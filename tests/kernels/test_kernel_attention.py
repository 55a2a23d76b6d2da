"""Attention and the rotary embedding with KV append against float64: shapes, positions around block borders, levels.

Cache layout under test: K [kv_heads, blocks, head_dim, 16], V [kv_heads, blocks, 16, head_dim].
"""

from __future__ import annotations

import harness
import numpy as np
import pytest
from harness import build, call, error, label, machine, pairwise, unwritten

from mlcrt.kernels.arguments import BLOCK, kv_shapes
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simd.attention import attention, rope_append

TOLERANCE = 2e-4
POSITIONS = (0, 1, 14, 15, 16, 17, 31, 32, 47, 70)
TOKENS = (37, 2, 5, 1, 16, 3, 1, 37, 2, 5)  # of the calls at those positions
BLOCKS = 8

CASES = pairwise(
    head_dim=(16, 64, 80, 96, 128, 256),
    group=(1, 2, 3, 4, 5, 6, 7, 8),
    kv_heads=(1, 3),
    window=(None, 1, 5, 16, 40),
    softcap=(None, 3.0),
    kv=("float16", "float32"),
    decode=(True, False),
    level=harness.LEVELS,
)


def operation(case: dict, **more) -> Attention:
    if case["kv"] == "float16" and not machine(case["level"])[0].native_f16:
        case["kv"] = "float32"  # as CpuArch.kv_dtype does
    return Attention(
        case["kv_heads"] * case.get("group", 1), case["kv_heads"], case["head_dim"], 1 if case["decode"] else None,
        case["kv"], **more,
    )  # fmt: skip


def history(draw, op: Attention):
    """K and V [kv_heads, positions, head_dim] as the cache's type holds them, and the two caches."""
    k_shape, v_shape = kv_shapes(op.kv_heads, op.head_dim, BLOCKS)
    plain = (op.kv_heads, BLOCKS, BLOCK, op.head_dim)
    k, v = (draw.standard_normal(plain).astype(op.kv_dtype) for _ in range(2))
    caches = np.ascontiguousarray(k.swapaxes(2, 3)).reshape(k_shape), v.reshape(v_shape)
    k, v = (a.reshape(op.kv_heads, -1, op.head_dim).astype(np.float64) for a in (k, v))
    return k, v, caches


def reference(op: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int) -> np.ndarray:
    """Softmax attention of [n, heads, head_dim] queries over what each may see."""
    k, v = (np.repeat(a[:, : position + len(q)], op.group, axis=0) for a in (k, v))
    score = np.einsum("thd,hpd->thp", q, k, optimize=True) * op.scale
    if op.softcap:
        score = op.softcap * np.tanh(score / op.softcap)
    back = position + np.arange(len(q))[:, None] - np.arange(position + len(q))
    hidden = (back < 0) | (back >= (op.window or np.inf))
    score = np.where(hidden[:, None], -np.inf, score)
    p = np.exp(score - score.max(axis=2, keepdims=True))
    return np.einsum("thp,hpd->thd", p / p.sum(axis=2, keepdims=True), v, optimize=True)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_attention(case):
    op = operation(case, scale=0.4, window=case["window"], softcap=case["softcap"])
    kernel = build(attention(op, machine(case["level"])[1].attention), case["level"])
    draw = np.random.default_rng(op.head_dim)
    k, v, caches = history(draw, op)
    for position, n in zip(POSITIONS, (1,) * 10 if case["decode"] else TOKENS, strict=True):
        k_cache, v_cache = stale(op, caches, position + n)
        q = draw.standard_normal((n, op.heads, op.head_dim)).astype(np.float32)
        arguments = [q.reshape(n, -1), k_cache, v_cache, np.array([position], np.int32)]
        *inputs, out = call(kernel, *arguments, unwritten(n, op.heads * op.head_dim))
        expected = reference(op, q.astype(np.float64), k, v, position).reshape(n, -1)
        assert error(out, expected) <= TOLERANCE, f"{n} tokens at {position}"
        for given, after in zip(arguments, inputs, strict=True):
            np.testing.assert_array_equal(given, after)


def stale(op: Attention, caches, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the caches with huge numbers from position `end` on, as a longer text that was rolled back leaves."""
    k, v = (c.copy() for c in caches)
    k_plain = k.reshape(op.kv_heads, BLOCKS, op.head_dim, BLOCK).transpose(0, 1, 3, 2)
    v_plain = v.reshape(op.kv_heads, BLOCKS, BLOCK, op.head_dim)
    later = np.arange(BLOCKS * BLOCK).reshape(BLOCKS, BLOCK) >= end
    k_plain[:, later], v_plain[:, later] = 6e4, -6e4
    return k, v


def test_attention_survives_large_scores():
    """Scores of ±1e4 neither overflow nor wash out: the softmax is one-hot."""
    op = Attention(2, 1, 64, None, "float32", scale=1.0)
    kernel = build(attention(op, machine("native")[1].attention), "native")
    k, v, _ = history(np.random.default_rng(0), op)
    k = k * 1e3
    caches = (
        np.ascontiguousarray(k.reshape(1, BLOCKS, BLOCK, 64).swapaxes(2, 3), np.float32).reshape(1, BLOCKS, -1),
        v.reshape(1, BLOCKS, -1).astype(np.float32),
    )
    q = np.random.default_rng(1).standard_normal((3, 2, 64)).astype(np.float32)
    out = call(kernel, q.reshape(3, -1), *caches, np.array([90], np.int32), unwritten(3, 128))[-1]
    expected = reference(op, q.astype(np.float64), k.astype(np.float32).astype(np.float64), v, 90)
    assert error(out, expected.reshape(3, -1)) <= TOLERANCE


ROPE = pairwise(
    head_dim=(16, 64, 80, 96, 128, 256),
    group=(1, 3, 8),
    kv_heads=(1, 3),
    partial=(1.0, 0.5, 0.25),
    norm=(True, False),
    kv=("float16", "float32"),
    decode=(True, False),
    level=harness.LEVELS,
)


@pytest.mark.parametrize("case", ROPE, ids=label)
def test_rope_append(case):
    dim, eps = case["head_dim"], 1e-6 if case["norm"] else None
    half = int(dim * case["partial"]) // 2
    op = operation(case, scale=1.0, rotary_dim=2 * half, norm_eps=eps)
    kernel = build(rope_append(op, machine(case["level"])[1].attention), case["level"])
    draw = np.random.default_rng(dim)
    for position, n in [(15, 1), (16, 1)] if case["decode"] else [(0, 1), (13, 37)]:
        k, v, caches = history(draw, op)
        qkv = draw.standard_normal((n, op.heads + 2 * op.kv_heads, dim)).astype(np.float32)
        angle = draw.uniform(-3, 3, (n, half))
        tables = [np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]
        norms = [draw.uniform(0.5, 1.5, dim).astype(np.float32) for _ in range(2)] if eps else []
        arguments = [qkv.reshape(n, -1), *tables, np.array([position], np.int32), *norms, *caches]
        *_, k_after, v_after, q = call(kernel, *arguments, unwritten(n, op.heads * dim))
        wide = qkv.astype(np.float64)
        new_q, new_k, new_v = np.split(wide, [op.heads, op.heads + op.kv_heads], axis=1)
        if eps:
            new_q, new_k = (
                x / np.sqrt((x**2).mean(axis=2, keepdims=True) + eps) * w
                for x, w in zip((new_q, new_k), norms, strict=True)
            )
        new_q, new_k = (rotated(x, half, *tables) for x in (new_q, new_k))
        assert error(q, new_q.reshape(n, -1)) <= TOLERANCE
        k[:, position : position + n], v[:, position : position + n] = new_k.swapaxes(0, 1), new_v.swapaxes(0, 1)
        stored = k_after.reshape(op.kv_heads, BLOCKS, dim, BLOCK).swapaxes(2, 3).reshape(k.shape)
        bound = {"rtol": 1e-3, "atol": 1e-3} if op.kv_dtype == "float16" else {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(stored.astype(np.float64), k, **bound)
        np.testing.assert_array_equal(v_after.reshape(v.shape), v.astype(op.kv_dtype))
        untouched = np.r_[0:position, position + n : BLOCKS * BLOCK]
        np.testing.assert_array_equal(stored[:, untouched], k[:, untouched].astype(op.kv_dtype))


def rotated(x: np.ndarray, half: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """[n, heads, head_dim] with dimension i and i + half turned by the angle of the tables [n, half]."""
    out, (c, s) = x.copy(), (t[:, None].astype(np.float64) for t in (cos, sin))
    low, high = x[..., :half], x[..., half : 2 * half]
    out[..., :half], out[..., half : 2 * half] = low * c - high * s, high * c + low * s
    return out
