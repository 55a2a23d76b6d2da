"""The small kernels of a step as the ROCm target makes them for gfx1100, emulated, against float64."""

from __future__ import annotations

import drawing
import numpy as np
import pytest
from harness import error, random_weight, unwritten

from mlcrt.kernels.records import Embed
from mlcrt.quant.scheme import SCHEMES
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.emulator import Unwritten

LIBRARY = library(attributes("gfx1100"), "float16")


@pytest.mark.parametrize("hidden", [96, 576])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.layout == "NK"], ids=lambda s: s.name)
def test_embed(scheme, hidden):
    draw = np.random.default_rng(hidden)
    parts, weights = random_weight(draw, scheme, 50, hidden)
    for count in (1, None):
        kernel = Emulated(LIBRARY.build_embed(Embed(scheme, 50, hidden, count, 2.5)))
        tokens = np.array([49] if count else [0, 49, 7, 7], np.int32)
        out = unwritten(len(tokens), hidden)
        kernel(*parts.values(), tokens, Unwritten(out))
        np.testing.assert_allclose(out, 2.5 * weights[tokens], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("half", "count", "factor"), [(32, 1, 1.0), (40, None, 1.25), (128, None, 1.0)])
def test_rotary_tables(half, count, factor):
    inv_freq = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    kernel = Emulated(LIBRARY.build_rotary_tables(half, count, factor, False))
    for position in (0, 130, 131_000):
        n = count or 3
        cos, sin = unwritten(n, half), unwritten(n, half)
        kernel(inv_freq, np.array([position], np.int32), Unwritten(cos), Unwritten(sin))
        angle = ((position + np.arange(n, dtype=np.float32))[:, None] * inv_freq).astype(np.float64)
        np.testing.assert_allclose(cos, np.cos(angle) * factor, atol=3e-7 * factor)
        np.testing.assert_allclose(sin, np.sin(angle) * factor, atol=3e-7 * factor)


@pytest.mark.parametrize(("width", "count", "cap"), [(503, 1, 2.5), (96, None, 30.0)])
def test_softcap(width, count, cap):
    kernel = Emulated(LIBRARY.build_softcap(width, count, cap))
    x = np.random.default_rng(0).standard_normal((count or 4, width)).astype(np.float32) * np.float32(2 * cap)
    x[0, :4] = 0, 1e4 * cap, -1e4 * cap, 1e-3
    y = unwritten(*x.shape)
    kernel(x, Unwritten(y))
    assert error(y, cap * np.tanh(x.astype(np.float64) / cap)) <= 1e-5


@pytest.mark.parametrize("vocab", [1, 503, 32003])
def test_finish_step(vocab):
    draw = np.random.default_rng(vocab)
    rows = [draw.standard_normal(vocab), -1e30 * np.ones(vocab)]  # all equal: the first counts
    tied = draw.standard_normal(vocab)
    tied[[vocab // 2, vocab - 1]] = 9
    for count, row in zip((1, None, 1), (*rows, tied), strict=True):
        kernel = Emulated(LIBRARY.build_finish_step(vocab, count))
        logits, out = row.astype(np.float32)[None], unwritten(1, vocab)
        token, position = np.array([-1], np.int32), np.array([41], np.int32)
        spaces = [Unwritten(unwritten(*shape)) for shape in LIBRARY.finish_scratch()]
        between = [] if count else [np.zeros(6, np.int32)]
        kernel(logits, *between, Unwritten(out), token, position, *spaces)
        np.testing.assert_array_equal(out, logits)
        assert token[0] == logits[0].argmax()
        assert position[0] == 41 + (count or 6)


def test_draw():
    """On gfx1100 in the emulator, which reports races in LDS and what is read unwritten."""
    kernel, row = Emulated(LIBRARY.build_draw(5003)), np.random.default_rng(0).standard_normal(5003) * 4

    def run(*arrays):
        kernel(*arrays[:2], Unwritten(arrays[2]), *arrays[3:5], *map(Unwritten, arrays[5:]))
        return arrays

    for kw in ({"top_p": 0.9}, {"top_k": 40, "min_p": 0.01}):
        assert drawing.check(run, row.astype(np.float32), SamplingParams(seed=5, **kw), drawn=2)
