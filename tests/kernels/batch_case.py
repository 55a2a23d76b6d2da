"""Kernels of batched steps, whatever runs them: against float64, and every token as if it were alone, to the bit.

`call(*arrays)` runs the kernel and gives all arrays as it left them; results and workspaces come in full of NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import ACTIVATIONS, error, random_weight
from test_kernel_attention import BLOCKS, history, reference

from mlcrt.kernels import Space
from mlcrt.kernels.arguments import BLOCK
from mlcrt.kernels.records import Attention, Linear

POSITIONS = np.array([0, 90, 17, 16, 31, 127, 40, 41, 42], np.int32)
SEQUENCES = np.array([2, 0, 1, 1, 0, 2, 1, 1, 1], np.int32)


def unwritten(spaces: list) -> list[np.ndarray]:
    return [np.full(s.shape, np.nan, s.dtype) for s in map(Space.of, spaces)]


def check_linear(call: Callable, op: Linear, library, bound: float, groups: list[list[int]]) -> None:
    """Eleven tokens at once, then `groups` of them."""
    draw = np.random.default_rng(op.columns)
    parts, weight = random_weight(draw, op.scheme, op.rows, op.columns)
    x = (draw.standard_normal((11, op.columns)) * 3).astype(np.float32)
    norm = [draw.uniform(0.5, 1.5, op.columns).astype(np.float32)] if op.norm_eps else []
    bias = [draw.standard_normal(op.rows).astype(np.float32)] if op.bias else []
    residual = draw.standard_normal((11, op.units)).astype(np.float32)
    wide = x.astype(np.float64)
    if norm:
        wide = wide * norm[0] / np.sqrt((wide**2).mean(axis=1, keepdims=True) + op.norm_eps)
    expected = wide @ weight.T + (bias[0] if bias else 0)
    if op.gate:
        expected = ACTIVATIONS[op.gate](expected[:, : op.units]) * expected[:, op.units :]
    if op.residual:
        expected = expected + residual

    def of(which: list[int]) -> np.ndarray:
        inputs = [x[which], *parts.values(), *norm, *bias, *([residual[which]] if op.residual else [])]
        spaces = [(len(which), op.units), *library.alike_scratch(op, len(which))]
        return call(*inputs, *unwritten(spaces))[len(inputs)]

    everyone = of(list(range(11)))
    assert error(everyone, expected) <= bound
    for which in groups:
        np.testing.assert_array_equal(of(which), everyone[which])


def check_attention(call: Callable, op: Attention, library, bound: float = 2e-3) -> None:
    """Three sequences with blocks in any order, against attention over each one's history laid out straight."""
    draw = np.random.default_rng(op.head_dim)
    histories = [history(draw, op) for _ in range(3)]
    order = draw.permutation(3 * BLOCKS).reshape(3, BLOCKS).astype(np.int32)
    pool = [np.zeros((op.kv_heads, 3 * BLOCKS, BLOCK * op.head_dim), op.kv_dtype) for _ in range(2)]
    for (k, v, _), blocks in zip(histories, order, strict=True):
        for whole, rows in zip(pool, (k, v), strict=True):
            whole[:, blocks] = rows.reshape(op.kv_heads, BLOCKS, -1)
    q = draw.standard_normal((len(POSITIONS), op.heads * op.head_dim)).astype(np.float32)

    def of(which: list[int]) -> np.ndarray:
        inputs = [q[which], *pool, POSITIONS[which], SEQUENCES[which], order]
        spaces = [(len(which), q.shape[1]), *library.attention_scratch(op, len(which))]
        return call(*inputs, *unwritten(spaces))[len(inputs)]

    together = of(list(range(len(q))))
    for t, (position, sequence) in enumerate(zip(POSITIONS, SEQUENCES, strict=True)):
        k, v, _ = histories[sequence]
        expected = reference(op, q[t].reshape(1, op.heads, -1).astype(np.float64), k, v, int(position))
        assert error(together[t : t + 1], expected.reshape(1, -1)) <= bound
    for which in ([1], [5, 3], [6, 7, 8]):
        np.testing.assert_array_equal(of(which), together[which])


def check_choose(call: Callable, vocab: int, scratch: list) -> None:
    """Masks, biases, equals, and a row of NaN. `scratch`: workspaces for five rows."""
    draw = np.random.default_rng(vocab)
    logits = draw.standard_normal((5, vocab)).astype(np.float32)
    logits[3, [7, 40]] = 9  # the first of equals
    logits[4] = np.nan
    allowed = draw.random((2, vocab)) < 0.3
    masks = np.packbits(np.pad(allowed, ((0, 0), (0, -vocab % 32))), axis=1, bitorder="little").view("<i4")
    mask = np.array([1, -1, 0, -1, -1], np.int32)
    starts = np.array([0, 2, 2, 5, 5, 5], np.int32)
    tokens = np.concatenate([draw.permutation(vocab)[:2], draw.permutation(vocab)[:3]]).astype(np.int32)
    biases = draw.standard_normal(5).astype(np.float32) * np.float32(4)
    expected = logits.copy()
    for row in range(5):
        for i in range(starts[row], starts[row + 1]):
            expected[row, tokens[i]] += biases[i]
        if mask[row] >= 0:
            expected[row, ~allowed[mask[row]]] = -np.inf
    outputs = [np.full(5, -7, np.int32), np.full(5, np.nan, np.float32)]
    after, *_, chosen, best = call(logits, masks, mask, starts, tokens, biases, *outputs, *unwritten(scratch))[:8]
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(chosen, [*expected[:4].argmax(axis=1), 2**31 - 1])
    np.testing.assert_array_equal(best[:4], expected[:4].max(axis=1))
    assert not best[4] > -1e38
