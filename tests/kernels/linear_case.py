"""A fused linear layer's record, arguments and result in float64."""

from __future__ import annotations

import numpy as np
from harness import ACTIVATIONS

from mlcrt.kernels.records import Linear

EPS = 1e-5
FUSIONS = {"norm": (True, False), "bias": (True, False), "gate": (None, "silu", "gelu_tanh"), "residual": (True, False)}


def record(case: dict, units: int, tokens: int | None) -> Linear:
    """The layer with `units` outputs that a case of scheme, columns and FUSIONS describes."""
    rows = 2 * units if case["gate"] else units
    eps = EPS if case["norm"] else None
    return Linear(case["scheme"], rows, case["columns"], tokens, eps, case["bias"], case["gate"], case["residual"])


def complete(
    op: Linear, draw: np.random.Generator, x: np.ndarray, parts: dict, weights: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """The kernel's arguments for tokens x [n, columns], what is fused drawn at random, and the result [n, units]."""
    arguments, expected = [x, *parts.values()], x.astype(np.float64)
    if op.norm_eps is not None:
        arguments.append(draw.uniform(0.5, 1.5, op.columns).astype(np.float32))
        expected = expected / np.sqrt((expected**2).mean(axis=1, keepdims=True) + op.norm_eps) * arguments[-1]
    expected = expected @ weights.T
    if op.bias:
        arguments.append(draw.standard_normal(op.rows).astype(np.float32))
        expected = expected + arguments[-1]
    if op.gate:
        expected = ACTIVATIONS[op.gate](expected[:, : op.units]) * expected[:, op.units :]
    if op.residual:
        arguments.append(draw.standard_normal(expected.shape).astype(np.float32))
        expected = expected + arguments[-1]
    return arguments, expected
