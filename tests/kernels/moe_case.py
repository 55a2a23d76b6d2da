"""A routed MLP's arguments and its result in float64."""

from __future__ import annotations

import numpy as np
from harness import ACTIVATIONS, random_weight

from mlcrt.kernels import Space
from mlcrt.kernels.records import Moe
from mlcrt.quant.scheme import SCHEMES


class Case:
    """Random weights for `op`; a call gives the kernel's inputs for n tokens and the result [n, hidden]."""

    def __init__(self, op: Moe, seed: int = 0):
        self.op, self.draw = op, np.random.default_rng(seed)
        self.up_parts, self.up = random_weight(self.draw, op.gate_up, 2 * op.intermediate, op.hidden, op.experts)
        self.down_parts, self.down = random_weight(self.draw, op.down, op.hidden, op.intermediate, op.experts)
        self.norm = self.draw.uniform(0.5, 1.5, op.hidden).astype(np.float32)

    def __call__(self, n: int, router: np.ndarray | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        op, draw = self.op, self.draw
        x = draw.standard_normal((n, op.hidden)).astype(np.float32)
        if router is None:
            router = draw.standard_normal((n, op.experts)).astype(np.float32) * np.float32(2)
            router[0] = -200 - router[0]  # far from zero: the softmax has to subtract the largest
        inputs = [x, router, *self.up_parts.values(), *self.down_parts.values()]
        wide = x.astype(np.float64)
        if op.norm_eps is not None:
            inputs.append(self.norm)
            wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + op.norm_eps) * self.norm
        share = np.exp(router - router.max(axis=1, keepdims=True).astype(np.float64))
        share /= share.sum(axis=1, keepdims=True)
        expected = np.zeros((n, op.hidden))
        if op.residual:
            inputs.append(draw.standard_normal((n, op.hidden)).astype(np.float32))
            expected += inputs[-1]
        for t in range(n):
            chosen = np.argsort(-share[t], kind="stable")[: op.top_k]
            total = share[t, chosen].sum() if op.normalize else 1
            for e in chosen:
                inner = self.up[e] @ wide[t]
                inner = ACTIVATIONS[op.activation](inner[: op.intermediate]) * inner[op.intermediate :]
                expected[t] += share[t, e] / total * (self.down[e] @ inner)
        return inputs, expected


def spaces(library, op: Moe, n: int) -> list[np.ndarray]:
    """The workspaces of `library` for n tokens, full of what no kernel may use: NaN, and an expert that is none."""
    made = [Space.of(space) for space in library.moe_scratch(op, n)]
    return [np.full(s.shape, -1 if s.dtype == "int32" else np.nan, s.dtype) for s in made]


def records() -> list[Moe]:
    """Every scheme and switch, one to eight experts of a token, intermediate sizes that fit nothing; `tokens` is 1."""
    made = []
    for up, down, shape, normalize, norm, residual in (
        ("q4f16_1", "q8f16_1", (96, 72, 6, 3), True, True, True),
        ("q4f32_1", "q3f16_1", (64, 33, 12, 8), False, True, False),
        ("q4f16_asym", "q0f16", (33, 64, 3, 2), True, False, True),
        ("q0f32", "q0f32", (40, 36, 130, 1), False, True, True),
    ):
        eps = 1e-5 if norm else None
        made.append(Moe(SCHEMES[up], SCHEMES[down], *shape, normalize, "silu", 1, eps, residual))
    return made
