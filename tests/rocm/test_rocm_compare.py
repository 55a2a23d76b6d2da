"""v_cmp, v_cmpx and v_cmp_class: bits of active lanes, ordered and unordered, every type."""

import math
import operator

import numpy as np
import pytest
from rocm_exact import inputs, number
from rocm_machine import Machine
from rocm_valu_cases import class_bit
from test_rocm_valu import load, operand

from mlcrt.targets.rocm.emulator.errors import UninitialisedRegister

SIMPLE = {"lt": operator.lt, "eq": operator.eq, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
UNORDERED = {
    "lg": lambda a, b: a < b or a > b,
    "o": lambda a, b: not (math.isnan(a) or math.isnan(b)),
    "u": lambda a, b: math.isnan(a) or math.isnan(b),
    "nge": lambda a, b: not a >= b,
    "nlg": lambda a, b: not (a < b or a > b),
    "ngt": lambda a, b: not a > b,
    "nle": lambda a, b: not a <= b,
    "neq": lambda a, b: a != b,
    "nlt": lambda a, b: not a < b,
}
CASES = {f"{n}_{k}": (k, f) for k in ("i16", "u16", "i32", "u32", "i64", "u64")
         for n, f in (SIMPLE | {"ne": operator.ne}).items()}  # fmt: skip
CASES |= {f"{n}_{k}": (k, f) for k in ("f16", "f32") for n, f in (SIMPLE | UNORDERED).items()}


def compare(name: str, kinds, reference, exec_mask):
    raw = inputs(kinds, seed=3)
    machine = Machine(len(raw[0]) // 32)
    for index, kind, bits in zip((2, 4), kinds, raw, strict=True):
        load(machine, index, kind, bits, "l")
    machine.exec = exec_mask
    texts = [operand(i, k, "l") for i, k in zip((2, 4), kinds, strict=True)]
    machine.run(f"v_cmp_{name} s20, {texts[0]}, {texts[1]}")
    active = np.broadcast_to(exec_mask, (machine.waves.count, 32)).ravel()
    wanted = np.array([bool(reference(a, b)) for a, b in zip(*raw, strict=True)]) & active
    np.testing.assert_array_equal(machine.mask(20).ravel(), wanted)
    np.testing.assert_array_equal(machine.exec.ravel(), active)
    machine.run(f"v_cmpx_{name} {texts[0]}, {texts[1]}")
    np.testing.assert_array_equal(machine.exec.ravel(), wanted)


@pytest.mark.parametrize("mask", [np.ones(32, bool), np.arange(32) % 5 < 2], ids=["all", "some"])
@pytest.mark.parametrize("name", CASES)
def test_comparison(name, mask):
    kind, reference = CASES[name]
    compare(name, (kind, kind), lambda a, b: reference(number(int(a), kind), number(int(b), kind)), mask)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_class(kind):
    bits = {"f32": "u32", "f16": "u16"}[kind]
    compare(f"class_{kind}", (kind, bits), lambda a, b: int(b) >> class_bit(int(a), kind) & 1, np.ones(32, bool))


def test_forms():
    machine = Machine(1)
    machine.set_v(1, np.arange(32, dtype=np.float32) - 16)
    machine.run("v_cmp_gt_f32_e64 vcc_lo, 4.0, |v1|")
    np.testing.assert_array_equal(machine.mask(106)[0], np.abs(np.arange(32) - 16) < 4)
    machine.run("v_cmp_lt_f32_e32 vcc_lo, 0, v1", "v_cmp_eq_u32_e64 null, 0, v1")
    np.testing.assert_array_equal(machine.mask(106)[0], np.arange(32) > 16)
    with pytest.raises(UninitialisedRegister, match="v7"):
        machine.run("v_cmp_eq_u32_e32 vcc_lo, 0, v7")


def test_wave64_masks_take_two_registers():
    machine = Machine(2, lanes=64)
    machine.set_v(1, np.arange(64, dtype=np.uint32))
    machine.run("v_cmp_lt_u32_e64 s[20:21], 40, v1")
    np.testing.assert_array_equal(machine.mask(20), np.broadcast_to(np.arange(64) > 40, (2, 64)))
    machine.run("v_cmpx_gt_u32_e64 50, v1", "v_mov_b32_e32 v2, 7")
    np.testing.assert_array_equal(machine.v(2)[0] == 7, np.arange(64) < 50)
