"""GGUF blocks repacked: the values are gguf's own dequantisation, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.quant.convert import HOLDS
from mlcrt.quant.pack import repack_blocks, to_layout, unpack_rows
from mlcrt.quant.scheme import SCHEMES

PAIRS = [(kind, SCHEMES[name]) for name, kinds in HOLDS.items() for kind in sorted(kinds)]
SIZE = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def test_every_lossless_pair_is_here():
    assert {(k, s.name) for k, s in PAIRS} == {
        ("Q4_0", "q4f16_1"), ("Q4_0", "q4f16_0"), ("Q4_0", "q4f32_1"), ("Q4_0", "q8f16_1"), ("Q4_1", "q4f16_asym"),
        ("Q8_0", "q8f16_1"),
    }  # fmt: skip


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal float32, but for the sign of zero."""
    np.testing.assert_array_equal((got + np.float32(0)).view(np.uint32), (expected + np.float32(0)).view(np.uint32))


@pytest.mark.parametrize(("kind", "chosen"), PAIRS, ids=str)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), groups=st.integers(1, 5), power=st.integers(-9, 4))
@settings(max_examples=30, deadline=None)
def test_quantised_tensors(kind, chosen, seed, rows, groups, power):
    values = (np.random.default_rng(seed).standard_normal((rows, groups * 32)) * 10.0**power).astype(np.float32)
    blocks = quants.quantize(values, Type[kind])
    parts = repack_blocks(blocks, kind, chosen)
    stored = to_layout(parts, chosen)
    assert {k: (v.shape, str(v.dtype)) for k, v in stored.items()} == chosen.tensors(rows, groups * 32)
    same_bits(unpack_rows(parts, chosen, groups * 32), quants.dequantize(blocks, Type[kind]))


@pytest.mark.parametrize(("kind", "chosen"), PAIRS, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_any_bytes_with_finite_scales(kind, chosen, seed):
    """Blocks that no quantiser would make: negative and subnormal scales, all codes, -128 in Q8_0."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 3 * SIZE[kind]), dtype=np.uint8)
    raw = blocks.reshape(4, 3, -1)
    for first in (0, 2) if kind == "Q4_1" else (0,):
        halves = np.ascontiguousarray(raw[:, :, first : first + 2]).view(np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] &= 0x83FF  # infinities and NaN become subnormals
        raw[:, :, first : first + 2] = halves.view(np.uint8)
    same_bits(unpack_rows(repack_blocks(blocks, kind, chosen), chosen, 96), quants.dequantize(blocks, Type[kind]))


@pytest.mark.parametrize(("kind", "chosen"), PAIRS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite(kind, chosen, bad):
    for at in (0, 2) if kind == "Q4_1" else (0,):
        blocks = quants.quantize(np.ones((2, 64), np.float32), Type[kind])
        blocks[1, SIZE[kind] + at : SIZE[kind] + at + 2] = np.array([bad], np.float16).view(np.uint8)
        with pytest.raises(MlcrtError, match="contains (NaN|infinity)"):
            repack_blocks(blocks, kind, chosen)
