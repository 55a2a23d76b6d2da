"""Attention and the rotary embedding with KV append as the ROCm target makes them for gfx1100, emulated."""

from __future__ import annotations

import numpy as np
import pytest
from harness import error, label, pairwise, unwritten
from test_kernel_attention import reference

from mlcrt.kernels.arguments import BLOCK, kv_shapes
from mlcrt.kernels.records import Attention
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten

TOLERANCE = 1e-4
BLOCKS = 12
LIBRARY = library(attributes("gfx1100"), "float16")

CASES = pairwise(
    head_dim=(64, 80, 96, 128, 256),
    group=(1, 2, 7),
    kv_heads=(1, 3),
    window=(None, 1, 40),
    softcap=(None, 3.0),
    kv=("float16", "float32"),
    decode=(True, False),
)


def operation(case: dict, **more) -> Attention:
    tokens = 1 if case["decode"] else None
    return Attention(
        case["kv_heads"] * case["group"], case["kv_heads"], case["head_dim"], tokens, case["kv"], **more
    )  # fmt: skip


def history(draw, op: Attention, end: int):
    """float64 K and V [kv_heads, positions, head_dim]; caches that hold them up to `end` and huge numbers beyond."""
    plain = draw.standard_normal((2, op.kv_heads, BLOCKS * BLOCK, op.head_dim)).astype(op.kv_dtype)
    k, v = plain.astype(np.float64)
    plain[0, :, end:], plain[1, :, end:] = 6e4, -6e4  # as a longer text that was rolled back leaves them
    return k, v, [p.reshape(s) for p, s in zip(plain, kv_shapes(op.kv_heads, op.head_dim, BLOCKS), strict=True)]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_attention(case):
    op = operation(case, scale=0.4, window=case["window"], softcap=case["softcap"])
    kernel = Emulated(LIBRARY.build_attention(op, "attention"))
    draw = np.random.default_rng(op.head_dim)
    for position, n in ((0, 1), (16, 1), (170, 1)) if case["decode"] else ((0, 18), (47, 2)):
        k, v, caches = history(draw, op, position + n)
        q = draw.standard_normal((n, op.heads, op.head_dim)).astype(np.float32)
        arguments = [q.reshape(n, -1), *caches, np.array([position], np.int32)]
        before, out = [a.copy() for a in arguments], unwritten(n, op.heads * op.head_dim)
        spaces = [Unwritten(unwritten(*map(int, shape))) for shape in LIBRARY.attention_scratch(op, n)]
        kernel(*arguments, Unwritten(out), *spaces)
        expected = reference(op, q.astype(np.float64), k, v, position).reshape(n, -1)
        assert error(out, expected) <= TOLERANCE, f"{n} tokens at {position}"
        for given, after in zip(before, arguments, strict=True):
            np.testing.assert_array_equal(given, after)


ROPE = pairwise(
    head_dim=(64, 80, 128, 256),
    group=(1, 3),
    kv_heads=(1, 2),
    partial=(1.0, 0.5),
    norm=(True, False),
    kv=("float16", "float32"),
    decode=(True, False),
)


@pytest.mark.parametrize("case", ROPE, ids=label)
def test_rope_append(case):
    dim, eps = case["head_dim"], 1e-6 if case["norm"] else None
    half = int(dim * case["partial"]) // 2
    op = operation(case, scale=1.0, rotary_dim=2 * half, norm_eps=eps)
    kernel = Emulated(LIBRARY.build_rope_append(op))
    draw = np.random.default_rng(dim)
    for position, n in ((15, 1), (16, 1)) if case["decode"] else ((13, 20),):
        k, v, caches = history(draw, op, position)
        kept = [c.copy() for c in caches]
        qkv = draw.standard_normal((n, op.heads + 2 * op.kv_heads, dim)).astype(np.float32)
        angle = draw.uniform(-3, 3, (n, half))
        tables = [np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]
        norms = [draw.uniform(0.5, 1.5, dim).astype(np.float32) for _ in range(2)] if eps else []
        q = unwritten(n, op.heads * dim)
        kernel(qkv.reshape(n, -1), *tables, np.array([position], np.int32), *norms, *caches, Unwritten(q))
        new_q, new_k, new_v = np.split(qkv.astype(np.float64), [op.heads, op.heads + op.kv_heads], axis=1)
        if eps:
            new_q, new_k = (
                x / np.sqrt((x**2).mean(axis=2, keepdims=True) + eps) * w
                for x, w in zip((new_q, new_k), norms, strict=True)
            )
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        for x in (new_q, new_k):
            low, high = x[..., :half].copy(), x[..., half : 2 * half].copy()
            x[..., :half], x[..., half : 2 * half] = low * c - high * s, high * c + low * s
        assert error(q, new_q.reshape(n, -1)) <= TOLERANCE
        tolerance = TOLERANCE if op.kv_dtype == "float32" else 2e-3
        for cache, old, new in zip(caches, kept, (new_k, new_v), strict=True):
            cache, old = (a.reshape(op.kv_heads, -1, dim) for a in (cache, old))
            assert error(cache[:, position : position + n].astype(np.float32), new.swapaxes(0, 1)) <= tolerance
            np.testing.assert_array_equal(cache[:, :position], old[:, :position])
            np.testing.assert_array_equal(cache[:, position + n :], old[:, position + n :])
