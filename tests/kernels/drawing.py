"""Kernels that draw tokens, against the host's sampler: the same logits and random numbers have to give the same token.

The sampler's own distribution is checked against a reference in tests/text/test_sampler.py.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from mlcrt.kernels.simt import draw
from mlcrt.runtime.drawing import device_settings
from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([0.3, 0.9, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 40, 400]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 2**64 - 1),
)


@st.composite
def logits(draw_, vocab: int) -> np.ndarray:
    """Peaked and flat ones; with ties; with tokens that cannot be; with the likely ones side by side."""
    chance = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    values = chance.standard_normal(vocab) * draw_(st.sampled_from([0.3, 2.0, 5.0]))
    if draw_(st.booleans()):
        values = np.round(values * 2) / 2
    if draw_(st.booleans()):
        values[chance.random(vocab) < 0.5] = -np.inf
        values[int(chance.integers(vocab))] = 1.0
    if draw_(st.booleans()):
        values = np.sort(values)
    return values.astype(np.float32)


def arguments(row: np.ndarray, sampler: Sampler, state: tuple[int, int] | None = None) -> list[np.ndarray]:
    """What the kernel takes, its workspaces and what it has to write full of nonsense."""
    outcome = np.array(state or (0, sampler.drawn), np.int32)
    inputs = [row[None].copy(), device_settings(sampler), np.full((1, len(row)), np.nan, np.float32), outcome]
    spaces = [np.full(space.shape, -99, space.dtype) for space in draw.draw_scratch()]
    return [*inputs, np.array([-7], np.int32), *spaces]


def check(run, row: np.ndarray, params: SamplingParams, drawn: int = 0) -> bool:
    """Whether the device drew; if so, what the host draws. run(*arrays) gives the arrays after the kernel."""
    sampler = Sampler(params, len(row))
    sampler.drawn = drawn
    logits_, settings, kept, outcome, token, *_ = run(*arguments(row, sampler))
    np.testing.assert_array_equal(logits_[0], row)
    np.testing.assert_array_equal(kept[0], row)
    np.testing.assert_array_equal(settings, device_settings(sampler))
    expected = sampler.sample(row)
    if outcome[0] < 0:
        assert outcome.tolist() == [-1, drawn] and token[0] == -7
        return False
    assert outcome[0] == expected == token[0], (outcome, expected)
    assert outcome[1] == drawn + 1
    return True
