"""The division helpers, alone and in the sequence LLVM emits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rocm_exact import divide, inputs, number, same, to_bits
from rocm_machine import Machine, lanes_of
from test_rocm_valu import load, result

DIVISION = (
    "v_div_scale_f32 v4, null, v3, v3, v2",
    "v_rcp_f32 v5, v4",
    "v_fma_f32 v6, -v4, v5, 1.0",
    "v_fmac_f32 v5, v6, v5",
    "v_div_scale_f32 v7, vcc_lo, v2, v3, v2",
    "v_mul_f32 v8, v7, v5",
    "v_fma_f32 v9, -v4, v8, v7",
    "v_fmac_f32 v8, v9, v5",
    "v_fma_f32 v9, -v4, v8, v7",
    "v_div_fmas_f32 v9, v9, v5, v8",
    "v_div_fixup_f32 v10, v9, v3, v2",
)


def quotients(a, b):
    machine = Machine(len(a) // 32)
    machine.set_v(2, lanes_of(a))
    machine.set_v(3, lanes_of(b))
    machine.run(*DIVISION)
    return machine.v(10).ravel()


def test_the_division_sequence_is_correctly_rounded():
    """LLVM's code for float32 division, with v_div_scale, v_div_fmas and v_div_fixup doing their part."""
    a, b = (x.astype(np.uint32) for x in inputs(["f32", "f32"], random=4096))
    floats = ([number(int(x), "f32") for x in v] for v in (a, b))
    wanted = [to_bits(divide(x, y, "f32"), "f32") for x, y in zip(*floats, strict=True)]
    got = quotients(a, b)
    bad = np.flatnonzero(~same(got, wanted, "f32"))
    assert not bad.size, [(hex(a[i]), hex(b[i]), hex(got[i]), hex(wanted[i])) for i in bad[:8]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_division(a, b):
    wanted = to_bits(divide(number(a, "f32"), number(b, "f32"), "f32"), "f32")
    assert same(quotients(np.full(32, a, np.uint32), np.full(32, b, np.uint32)), [wanted] * 32, "f32").all()


def test_div_scale_marks_zero_operands():
    """Seen on hardware: a zero operand gives NaN and sets the mask; v_div_fixup puts the result right."""
    machine = Machine(1)
    machine.set_v(1, np.float32(0.0))
    machine.set_v(2, np.float32(3.0))
    machine.run("v_div_scale_f32 v0, vcc_lo, v1, v2, v1")
    assert np.isnan(machine.v(0, np.float32)).all() and machine.mask(106).all()


def test_div_fmas_scales_by_the_addend():
    machine = Machine(1)
    for value, scaled in ((2.0, 3.0 * 2.0**64), (1.0, 2.0 * 2.0**-64)):
        machine.set_v(1, np.float32(1.0))
        machine.set_v(2, np.float32(value))
        machine.set_vcc(np.arange(32) < 4)
        machine.run("v_div_fmas_f32 v0, v1, v1, v2")
        got = machine.v(0, np.float32)[0]
        assert (got[:4] == np.float32(scaled)).all() and (got[4:] == np.float32(1.0 + value)).all()


def test_div_fixup_f16():
    raw = inputs(["f16", "f16"], random=512)
    machine = Machine(len(raw[0]) // 32)
    q = [divide(number(int(d), "f16"), number(int(n), "f16"), "f16") for n, d in zip(*raw, strict=True)]
    for index, values in ((2, [to_bits(x, "f16") for x in q]), (3, raw[1]), (4, raw[0])):
        load(machine, index, "f16", np.array(values, np.uint64), "l")
    # operands are quotient, denominator, numerator; raw[0] is taken as the denominator here
    machine.set_v(0, 0)
    machine.run("v_div_fixup_f16 v0.l, v2.l, v4.l, v3.l")
    assert same(result(machine, "f16", "l"), [to_bits(x, "f16") for x in q], "f16").all()
