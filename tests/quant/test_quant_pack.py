"""Packing of float rows: codes, error bounds and refusals, against gguf's quantisers and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.quant import QUANTIZATIONS, SCHEMES, scheme
from mlcrt.quant.pack import pack_rows, to_layout, unpack_rows

CODED = [s for s in SCHEMES.values() if not s.is_float]
EXAMPLES = settings(max_examples=25, deadline=None)
HALF = np.finfo(np.float16)


@st.composite
def weights(draw) -> np.ndarray:
    """Float32 [rows, columns] as they come and as they should not: any size, outliers, constants, zeros, subnormals."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 130))
    kind = draw(st.sampled_from(["normal", "any", "constant", "outlier", "zeros", "subnormal", "one sign"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.standard_normal((rows, columns)) * 10.0 ** draw(st.integers(-6, 3))
    if kind == "any":
        elements = st.floats(-60000, 60000, width=32)
        values = draw(arrays(np.float32, (rows, columns), elements=elements))
    elif kind == "constant":
        values = np.full((rows, columns), draw(st.floats(-60000, 60000, width=32)))
    elif kind == "outlier":
        at = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        values[at] = draw(st.sampled_from([-6e4, 1, 6e4]))
    elif kind == "zeros":
        values *= random.random((rows, columns)) < 0.1
    elif kind == "subnormal":
        values = random.standard_normal((rows, columns)) * 1e-39
    elif kind == "one sign":
        values = np.abs(values) + draw(st.sampled_from([0, 1, 100]))
    return np.asarray(values, np.float32)


def plane(words: np.ndarray, bits: int) -> np.ndarray:
    """The codes in uint32 [rows, words], lowest bits first: read bit by bit, unlike the project's unpacking."""
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return (flat.reshape(len(words), -1, bits) << np.arange(bits)).sum(axis=2)


def codes_of(parts: dict[str, np.ndarray], chosen) -> np.ndarray:
    low = plane(parts["codes"], chosen.plane_bits)
    return low + (plane(parts["high"], 1) << 2) if chosen.bits == 3 else low


def decoded(parts: dict[str, np.ndarray], chosen, columns: int) -> np.ndarray:
    """What the scheme's definition says, in float64."""
    codes = codes_of(parts, chosen).astype(np.float64)
    scales = np.repeat(parts["scales"].astype(np.float64), 32, axis=1)
    if chosen.asymmetric:
        return (scales * codes + np.repeat(parts["mins"].astype(np.float64), 32, axis=1))[:, :columns]
    return (scales * (codes - chosen.zero))[:, :columns]


@pytest.mark.parametrize("chosen", CODED, ids=lambda s: s.name)
@given(values=weights())
@EXAMPLES
def test_parts_are_what_the_scheme_declares(chosen, values):
    rows, columns = values.shape
    parts = pack_rows(values, chosen)
    stored = to_layout(parts, chosen)
    assert {k: (v.shape, str(v.dtype)) for k, v in stored.items()} == chosen.tensors(rows, columns)
    codes = codes_of(parts, chosen)
    assert codes.shape == (rows, -(-columns // 32) * 32) and codes.min() >= 0 and codes.max() < 1 << chosen.bits
    assert all(np.isfinite(parts[k]).all() for k in parts if k in ("scales", "mins"))
    got = unpack_rows(parts, chosen, columns)
    assert got.dtype == np.float32 and got.shape == values.shape
    np.testing.assert_allclose(got, decoded(parts, chosen, columns), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("chosen", CODED, ids=lambda s: s.name)
@given(values=weights())
@EXAMPLES
def test_error_of_each_weight(chosen, values):
    """Asymmetric: every weight is within half a step. Symmetric: so is the group's root mean square.

    A symmetric grid reaches -zero steps on the side of the extreme value and top - zero on the other, so a weight there
    may be clipped by up to one step. Refits of the scale lower the group's squared error, not each weight's.
    """
    columns = values.shape[1]
    off = np.abs(unpack_rows(pack_rows(values, chosen), chosen, columns).astype(np.float64) - values)
    padded = np.pad(values, ((0, 0), (0, -columns % 32))).astype(np.float64).reshape(len(values), -1, 32)
    off = np.pad(off, ((0, 0), (0, -columns % 32))).reshape(padded.shape)
    tiny = float(HALF.smallest_subnormal)
    top = (1 << chosen.bits) - 1
    if chosen.asymmetric:
        low, high = padded.min(axis=2), padded.max(axis=2)
        step = (high - low) / top
        rounding = step * 2.0**-11 * top + np.maximum(np.abs(low) * 2.0**-11, tiny) + tiny * top
        assert (off.max(axis=2) <= step / 2 + rounding).all()
        return
    step = np.abs(padded).max(axis=2) / chosen.zero
    rounding = np.maximum(step * 2.0**-11, tiny) * chosen.zero
    beyond = padded.copy()  # what the codes above zero cannot reach is clipped, by one step at most
    sign = np.sign(np.take_along_axis(padded, np.abs(padded).argmax(axis=2)[:, :, None], axis=2))
    clipped = ((beyond * -sign) > (step * (top - chosen.zero + 0.5))[:, :, None]).any(axis=2)
    bound = np.where(clipped, step, step / 2) + rounding
    rms = np.sqrt((off**2).mean(axis=2))
    assert (rms <= bound).all()
    assert (off.max(axis=2) <= np.sqrt(32) * bound).all()


@pytest.mark.parametrize(("name", "kind"), [("q4f16_1", Type.Q4_0), ("q4f16_asym", Type.Q4_1), ("q8f16_1", Type.Q8_0)])
@given(values=weights(), groups=st.integers(1, 3))
@EXAMPLES
def test_never_worse_than_gguf(name, kind, values, groups):
    """Squared error of every group of 32 against the field's own rounding to the same storage."""
    values = np.resize(values, (len(values), 32 * groups))
    with np.errstate(all="ignore"):  # gguf's own, on subnormal groups
        theirs = quants.dequantize(quants.quantize(values, kind), kind)
    ours = unpack_rows(pack_rows(values, SCHEMES[name]), SCHEMES[name], values.shape[1])

    def squared(result):
        return ((result.astype(np.float64) - values) ** 2).reshape(len(values), -1, 32).sum(axis=2)

    slack = 1e-5 * squared(theirs) + 1e-12 * (values.astype(np.float64) ** 2).reshape(len(values), -1, 32).sum(axis=2)
    if name == "q8f16_1":  # 256 codes where Q8_0 uses 255: half a step more at one end, which is the other's clipping
        slack = slack + 32 * (np.abs(values).reshape(len(values), -1, 32).max(axis=2) / 128) ** 2
    assert (squared(ours) <= squared(theirs) + slack).all()


def test_refitting_lowers_the_error():
    """On normal weights the mean squared error is well below plain Q4_0's, not just below."""
    values = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    plain = quants.dequantize(quants.quantize(values, Type.Q4_0), Type.Q4_0)
    ours = unpack_rows(pack_rows(values, SCHEMES["q4f16_1"]), SCHEMES["q4f16_1"], 1024)
    assert ((ours - values) ** 2).mean() <= 0.95 * ((plain - values) ** 2).mean()


@pytest.mark.parametrize("chosen", CODED, ids=lambda s: s.name)
def test_all_codes_are_used(chosen):
    values = np.random.default_rng(1).uniform(-1, 1, (32, 4096)).astype(np.float32)
    assert np.array_equal(np.unique(codes_of(pack_rows(values, chosen), chosen)), np.arange(1 << chosen.bits))


@pytest.mark.parametrize("chosen", CODED, ids=lambda s: s.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_fits_the_grid_is_exact(chosen, sign):
    """Every code times a scale that float16 holds comes back as it was: the zero, the extremes and all between."""
    steps = np.resize(np.arange(1 << chosen.bits), 2 * max(32, 1 << chosen.bits)).reshape(-1, 32).astype(np.float32)
    low = 0 if chosen.asymmetric else chosen.zero
    steps = np.stack([np.r_[0, (1 << chosen.bits) - 1, row[2:]] for row in steps])  # both ends in every group
    values = (steps - low) * np.float32(0.015625 * (1 if chosen.asymmetric else sign))
    np.testing.assert_array_equal(unpack_rows(pack_rows(values, chosen), chosen, 32), values)


@pytest.mark.parametrize("chosen", SCHEMES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(chosen, bad):
    values = np.ones((3, 70), np.float32)
    values[1, 66] = bad
    with pytest.raises(MlcrtError, match="contains (NaN|infinity); .* export it again"):
        pack_rows(values, chosen)


@pytest.mark.parametrize("chosen", [s for s in SCHEMES.values() if s.bits < 32], ids=lambda s: s.name)
def test_what_float16_cannot_hold_is_refused(chosen):
    for sign in (1, -1):
        values = np.full((1, 32), sign * 3e38, np.float32)
        values[0, 0] *= -0.5
        with pytest.raises(MlcrtError, match="float16; use --quantization q0f32"):
            pack_rows(values, chosen)


@given(values=weights())
@EXAMPLES
@example(values=np.array([[65504, -65504, 65519, 2**-24, -0.0]], np.float32)[:, :2])
def test_plain_floats(values):
    np.testing.assert_array_equal(unpack_rows(pack_rows(values, SCHEMES["q0f32"]), SCHEMES["q0f32"], 0), values)
    half = unpack_rows(pack_rows(values, SCHEMES["q0f16"]), SCHEMES["q0f16"], 0)
    np.testing.assert_array_equal(half, values.astype(np.float16).astype(np.float32))


@given(values=weights())
@EXAMPLES
def test_layouts_and_names_of_one_rounding_hold_the_same(values):
    """q4f16_0 is q4f16_1 turned; q4f32_1 differs in what the device computes in only."""
    first, second = (pack_rows(values, SCHEMES[name]) for name in ("q4f16_1", "q4f16_0"))
    for part, turned in to_layout(second, SCHEMES["q4f16_0"]).items():
        assert turned.flags.c_contiguous
        np.testing.assert_array_equal(turned.T, first[part])
    for part, same in pack_rows(values, SCHEMES["q4f32_1"]).items():
        np.testing.assert_array_equal(same, first[part])


def test_bits_per_weight_are_those_stored():
    for chosen in SCHEMES.values():
        parts = pack_rows(np.ones((4, 96), np.float32), chosen)
        assert chosen.bits_per_weight() == sum(p.nbytes for p in parts.values()) * 8 / (4 * 96)


def test_unknown_scheme():
    with pytest.raises(UsageError, match="unknown quantization 'q5f16_1': choose one of .*q4f16_1.*gguf"):
        scheme("q5f16_1")
    assert set(QUANTIZATIONS) >= {"q0f32", "q0f16", "q8f16_1", "q4f16_1", "q4f16_0", "q4f32_1", "q3f16_1"}
