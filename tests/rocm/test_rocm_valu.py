"""Every VALU table entry against exact arithmetic, lane by lane: edge values, random bits, EXEC, halves, masks."""

import math
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocm_exact import FORMATS, fma, inputs, number, same, to_bits, width
from rocm_machine import Machine, lanes_of
from rocm_valu_cases import CASES

from mlcrt.targets.rocm.emulator.errors import UnknownInstruction
from mlcrt.targets.rocm.emulator.rounding import fma32

MASK_IN, MASK_OUT = 20, 22


def operand(index: int, kind: str, half: str) -> str:
    if kind == "mask":
        return f"s{MASK_IN}"
    if width(kind) == 64:
        return f"v[{index}:{index + 1}]"
    return f"v{index}.{half}" if width(kind) == 16 else f"v{index}"


def load(machine: Machine, index: int, kind: str, bits, half: str) -> None:
    bits = lanes_of(bits)
    if width(kind) == 64:
        machine.set_v(index, (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        machine.set_v(index + 1, (bits >> np.uint64(32)).astype(np.uint32))
    elif width(kind) == 16:
        other = np.uint32(0xABCD)
        low, high = (bits.astype(np.uint32), other) if half == "l" else (other, bits.astype(np.uint32))
        machine.set_v(index, low | (high << np.uint32(16)))
    else:
        machine.set_v(index, bits.astype(np.uint32))


def result(machine: Machine, kind: str, half: str) -> np.ndarray:
    if width(kind) == 64:
        return (machine.v(0).astype(np.uint64) | (machine.v(1).astype(np.uint64) << np.uint64(32))).ravel()
    bits = machine.v(0).ravel()
    if width(kind) == 32:
        return bits
    return (bits if half == "l" else bits >> 16).astype(np.uint16)


def run_case(name: str, half: str, exec_mask=None):
    """(got bits, wanted bits, got mask bits, wanted mask bits, machine)."""
    out, kinds, reference, accumulate = CASES[name]
    raw = inputs([k for k in kinds if k != "mask"], seed=crc32(name.encode()))
    waves = len(raw[0]) // 32
    machine = Machine(waves)
    flags = np.random.default_rng(1).integers(0, 2, (waves, 32)).astype(bool)
    machine.set_mask(MASK_IN, flags)
    values, texts, left = [], [], list(raw)
    for i, kind in enumerate(kinds):
        index = 0 if accumulate and i == len(kinds) - 1 else 2 + 2 * i
        if kind == "mask":
            values.append([int(f) for f in flags.ravel()])
        else:
            bits = left.pop(0)
            load(machine, index, kind, bits, half)
            values.append([number(int(b), kind) for b in bits])
        texts.append(operand(index, kind, half))
    if accumulate:
        texts.pop()
    else:
        machine.set_v(0, 0x12345678)
        machine.set_v(1, 0x9ABCDEF0)
    wanted = [reference(*arguments) for arguments in zip(*values, strict=True)]
    wanted_mask = None
    texts.insert(0, operand(0, out, half))
    if isinstance(wanted[0], tuple):
        wanted, wanted_mask = ([w[i] for w in wanted] for i in (0, 1))
        texts.insert(1, f"s{MASK_OUT}")
    if exec_mask is not None:
        machine.exec = exec_mask
    before = result(machine, out, half)
    machine.run(f"{name} " + ", ".join(texts))
    wanted = np.array([to_bits(w, out) for w in wanted], before.dtype)
    if exec_mask is not None:
        active = np.broadcast_to(exec_mask, (waves, 32)).ravel()
        wanted = np.where(active, wanted, before)
        wanted_mask = None if wanted_mask is None else np.array(wanted_mask, bool) & active
    return result(machine, out, half), wanted, wanted_mask, machine


@pytest.mark.parametrize("name", CASES)
def test_against_exact_arithmetic(name):
    kind = CASES[name][0]
    got, wanted, mask, machine = run_case(name, "l")
    good = same(got, wanted, kind)
    at = np.flatnonzero(~good)[:4]
    assert good.all(), [(f"lane {i}", hex(got[i]), hex(wanted[i])) for i in at]
    if mask is not None:
        np.testing.assert_array_equal(machine.mask(MASK_OUT).ravel(), mask)
    if width(kind) == 16:
        assert (machine.v(0) >> 16 == (0xABCD if CASES[name][3] else 0x1234)).all(), "the other half must stay"


@pytest.mark.parametrize("name", CASES)
def test_inactive_lanes_keep_their_value(name):
    exec_mask = np.arange(32) % 3 == 0
    got, wanted, mask, machine = run_case(name, "l", exec_mask)
    assert same(got, wanted, CASES[name][0]).all()
    if mask is not None:
        np.testing.assert_array_equal(machine.mask(MASK_OUT).ravel(), mask)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if any(k.endswith("16") for k in (c[0], *c[1]))])
def test_high_halves(name):
    kind = CASES[name][0]
    got, wanted, _, machine = run_case(name, "h")
    assert same(got, wanted, kind).all()
    if width(kind) == 16:
        assert (machine.v(0) & 0xFFFF == (0xABCD if CASES[name][3] else 0x5678)).all()


# approximate functions: within 1 ulp of the true value; float32 takes and gives no denormals -----------------------
def true_log2(x):
    return math.nan if x < 0 else -math.inf if x == 0 else math.inf if math.isinf(x) else math.log2(x)


def turns(function):
    return lambda x: function(2 * math.pi * math.fmod(x, 1.0)) if math.isfinite(x) else math.nan


def power(x):
    return math.inf if x >= 1024 else 0.0 if x < -1080 else 2.0**x


APPROXIMATE = {
    "rcp": lambda x: math.copysign(math.inf, x) if x == 0 else 1 / x,
    "rsq": lambda x: math.copysign(math.inf, x) if x == 0 else math.nan if x < 0 else 1 / math.sqrt(x),
    "sqrt": lambda x: x if x == 0 else math.nan if x < 0 else math.sqrt(x),
    "exp": power,
    "log": true_log2,
    "sin": turns(math.sin),
    "cos": turns(math.cos),
}
APPROXIMATE_NAMES = [f"v_{n}_{k}" for n in APPROXIMATE for k in ("f32", "f16")] + ["v_rcp_iflag_f32"]


@pytest.mark.parametrize("name", APPROXIMATE_NAMES)
def test_approximate_functions(name):
    kind = name[-3:]
    function = APPROXIMATE[name.split("_")[1]]
    raw = inputs([kind], random=512)[0]
    machine = Machine(len(raw) // 32)
    load(machine, 2, kind, raw, "l")
    machine.set_v(0, 0)
    machine.run(f"{name} {operand(0, kind, 'l')}, {operand(2, kind, 'l')}")
    floats = FORMATS[kind][4]
    got = result(machine, kind, "l").view(floats).astype(float)
    tiny = 2.0**-126 if kind == "f32" else 0.0
    for bits, value in zip(raw, got, strict=True):
        x = number(int(bits), kind)
        if abs(x) < tiny:
            x = math.copysign(0.0, x)
        wanted = x if math.isnan(x) else function(x)
        if math.isnan(wanted):
            assert math.isnan(value), (x, value)
        elif abs(wanted) < tiny:
            assert value == 0 or abs(value) == tiny, (x, value, wanted)
        elif math.isinf(wanted) or abs(wanted) > float(np.finfo(floats).max):
            assert value == math.copysign(math.inf, wanted), (x, value, wanted)
        else:
            with np.errstate(all="ignore"):
                ulp = float(np.spacing(floats(abs(wanted))))
            # sine and cosine lose the angle's low bits where the result is small
            slack = ulp + (1e-15 * max(1, abs(x)) if name[2:5] in ("sin", "cos") else 0)
            assert abs(value - wanted) <= slack, (x, value, wanted)


# single rounding ---------------------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(*[st.integers(0, 2**32 - 1)] * 3)
def test_fma_rounds_once(a, b, c):
    x, y, z = (np.array([v], np.uint32).view(np.float32) for v in (a, b, c))
    with np.errstate(all="ignore"):
        got = fma32(x, y, z).view(np.uint32)
    assert same(got, [to_bits(fma(*(number(v, "f32") for v in (a, b, c)), "f32"), "f32")], "f32").all()


def test_fma_where_rounding_twice_goes_wrong():
    """1 + 2^-24 is a tie; the 2^-60 beyond float64's reach decides it."""
    one, tie, speck = np.float32(1), np.float32(2.0**-12), np.float32(2.0**-12 * (1 + 2.0**-23))
    got = fma32(tie, speck, one)
    assert got == np.float32(1 + 2.0**-23)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**23 - 1), st.integers(-140, 100), st.integers(-60, -26), st.booleans(), st.booleans())
def test_fma_next_to_ties(mantissa, exponent, distance, up, negative):
    """A float32 plus half a unit in the last place plus or minus a speck, as product plus addend; denormals too."""
    half = 2.0 ** max(exponent - 24, -150)
    c = np.float32(2.0**exponent * (1 + mantissa * 2.0**-23))
    a = np.float32(2.0**-60 if exponent < 0 else 2.0**10) * (-1 if negative else 1)
    b = np.float32(half / float(abs(a)) * (1 + 2.0**-23 * (1 if up else -1)) * (1 + 2.0**distance))
    with np.errstate(all="ignore"):
        got = fma32(np.array([a]), np.array([b]), np.array([c])).view(np.uint32)
    assert same(got, [to_bits(fma(float(a), float(b), float(c), "f32"), "f32")], "f32").all()


# modifiers ---------------------------------------------------------------------------------------------------------
def test_neg_abs_clamp_and_scale():
    x = np.float32([-3.5, -0.25, -0.0, 0.0, 0.75, 2.0, 1e30, np.nan] * 4)
    machine = Machine(1)
    machine.set_v(1, x)

    def run(text):
        machine.run(text)
        return machine.v(0, np.float32)[0]

    np.testing.assert_array_equal(run("v_add_f32_e64 v0, -v1, |v1|"), -x + np.abs(x))
    np.testing.assert_array_equal(run("v_mul_f32_e64 v0, -|v1|, 1.0"), -np.abs(x))
    np.testing.assert_array_equal(run("v_max_f32_e64 v0, v1, v1 clamp"), np.clip(np.nan_to_num(x, nan=0.0), 0, 1))
    np.testing.assert_array_equal(run("v_mul_f32_e64 v0, v1, 1.0 mul:4"), x * 4)
    np.testing.assert_array_equal(run("v_mul_f32_e64 v0, v1, 1.0 div:2"), x / 2)
    machine.set_vcc(np.arange(32) % 2 == 0)
    np.testing.assert_array_equal(
        run("v_cndmask_b32_e64 v0, -v1, |v1|, vcc_lo"), np.where(np.arange(32) % 2, -x, abs(x))
    )


def test_literals():
    machine = Machine(1)
    machine.set_v(1, 0)
    for text, wanted in (("1.0", 0x3F800000), ("-4.0", 0xC0800000), ("0.15915494", 0x3E22F983), ("-1", 0xFFFFFFFF),
                         ("0x7fffffff", 0x7FFFFFFF), ("64", 64)):  # fmt: skip
        machine.run(f"v_mov_b32_e32 v0, {text}")
        assert (machine.v(0) == wanted).all(), text
    machine.set_v(1, np.uint32(0x40003C00))
    machine.run("v_add_f16_e32 v0.l, 0.5, v1.l", "v_add_f16_e32 v0.h, 0x3c00, v1.h")
    assert machine.v(0).view(np.float16)[0, 0] == 1.5 and machine.v(0).view(np.float16)[0, 1] == 3.0


def test_denormals_flush_when_the_mode_says_so():
    machine = Machine(1)
    tiny = np.float32(2.0**-140)
    machine.set_v(1, tiny)
    machine.run("v_add_f32_e32 v0, v1, v1")
    assert (machine.v(0, np.float32) == 2 * tiny).all()
    machine.run("s_denorm_mode 12", "v_add_f32_e32 v0, v1, v1")
    assert (machine.v(0) == 0).all()
    machine.set_v(1, np.float32(-(2.0**-126)))
    machine.run("v_mul_f32_e32 v0, 0.5, v1")
    assert (machine.v(0) == 0x80000000).all()
    machine.set_v(1, np.uint32(0x00010001))
    machine.run("v_add_f16_e32 v0.l, v1.l, v1.l")
    assert (machine.v(0) & 0xFFFF == 2).all()
    machine.run("s_denorm_mode 0", "v_add_f16_e32 v0.l, v1.l, v1.l")
    assert (machine.v(0) & 0xFFFF == 0).all()
    machine.run("s_round_mode 0")
    with pytest.raises(UnknownInstruction, match="round-to-nearest"):
        machine.run("s_round_mode 5")


# mixed precision ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pick", [(0, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
def test_fma_mix(pick):
    rng = np.random.default_rng(5)
    raw = [rng.integers(0, 2**32, 64, np.uint64).astype(np.uint32) for _ in range(3)]
    high = (1, 0, 1)
    text = f"op_sel:[{','.join(map(str, high))}] op_sel_hi:[{','.join(map(str, pick))}]"
    wanted = []
    for bits in zip(*raw, strict=True):
        values = [
            number(int(b) >> (16 if h else 0) & 0xFFFF, "f16") if p else number(int(b), "f32")
            for b, p, h in zip(bits, pick, high, strict=True)
        ]
        wanted.append(fma(*values, "f32"))
    machine = Machine(2)
    for i, bits in enumerate(raw):
        machine.set_v(2 + i, lanes_of(bits))
    machine.set_v(0, 0x11112222)
    machine.run(f"v_fma_mix_f32 v0, v2, v3, v4 {text}")
    assert same(machine.v(0), [to_bits(w, "f32") for w in wanted], "f32").all()
    with np.errstate(all="ignore"):
        halves = [int(np.float32(w).astype(np.float16).view(np.uint16)) for w in wanted]
    machine.set_v(0, 0x11112222)
    machine.run(f"v_fma_mixlo_f16 v0, v2, v3, v4 {text}")
    got = machine.v(0).ravel()
    assert same((got & 0xFFFF).astype(np.uint16), halves, "f16").all() and (got >> 16 == 0x1111).all()
    machine.set_v(0, 0x11112222)
    machine.run(f"v_fma_mixhi_f16 v0, v2, v3, v4 {text}")
    got = machine.v(0).ravel()
    assert same((got >> 16).astype(np.uint16), halves, "f16").all() and (got & 0xFFFF == 0x2222).all()
    machine.run("v_fma_mix_f32 v0, -v2, |v3|, v4")
    triples = ([number(int(b), "f32") for b in bits] for bits in zip(*raw, strict=True))
    assert same(machine.v(0), [to_bits(fma(-a, abs(b), c, "f32"), "f32") for a, b, c in triples], "f32").all()


# dual issue --------------------------------------------------------------------------------------------------------
def test_dual_issue_reads_before_it_writes():
    machine = Machine(1)
    machine.set_v(0, 1)
    machine.set_v(1, 2)
    machine.run("v_dual_mov_b32 v0, v1 :: v_dual_mov_b32 v1, v0")
    assert (machine.v(0) == 2).all() and (machine.v(1) == 1).all()
    machine.set_vcc(np.arange(32) < 8)
    machine.run("v_dual_cndmask_b32 v2, v0, v1 :: v_dual_add_nc_u32 v3, 5, v0")
    assert (machine.v(2)[0] == np.where(np.arange(32) < 8, 1, 2)).all() and (machine.v(3) == 7).all()
    machine.set_v(4, np.float32(2))
    machine.set_v(5, np.float32(3))
    machine.run("v_dual_fmac_f32 v4, v5, v5 :: v_dual_mul_f32 v5, v4, v5")
    assert (machine.v(4, np.float32) == 11).all() and (machine.v(5, np.float32) == 6).all()
    with pytest.raises(UnknownInstruction, match="v_dual_frobnicate"):
        machine.run("v_dual_frobnicate v4, v5 :: v_dual_mov_b32 v5, v4")


def test_unsigned_integers_saturate_with_clamp():
    draw = np.random.default_rng(5)
    a, b = (draw.integers(0, 2**32, 32, np.uint64) for _ in range(2))
    a[:4], b[:4] = [0, 5, 2**32 - 1, 7], [39, 5, 1, 2**32 - 1]
    machine = Machine(1)
    machine.set_v(1, a.astype(np.uint32))
    machine.set_v(2, b.astype(np.uint32))
    expected = {"add": np.minimum(a + b, 2**32 - 1), "sub": a - np.minimum(a, b), "subrev": b - np.minimum(a, b)}
    for name, values in expected.items():
        machine.run(f"v_{name}_nc_u32_e64 v0, v1, v2 clamp")
        np.testing.assert_array_equal(machine.v(0)[0], values)


def test_unknown_forms_stop():
    machine = Machine(1)
    machine.set_v(1, 0)
    with pytest.raises(UnknownInstruction, match="v_frobnicate_f32"):
        machine.run("v_frobnicate_f32 v0, v1")
    with pytest.raises(UnknownInstruction, match="clamp"):
        machine.run("v_mul_lo_u32 v0, v1, v1 clamp")
    with pytest.raises(UnknownInstruction, match="takes 2 sources"):
        machine.run("v_add_f32 v0, v1")
