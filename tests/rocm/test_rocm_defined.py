"""Reads of register lanes and halves that nobody wrote."""

import numpy as np
import pytest
from rocm_machine import Machine

from mlcrt.targets.rocm.emulator.errors import UninitialisedRegister


def test_arithmetic_on_undefined_lanes_stops():
    machine = Machine(2)
    with pytest.raises(UninitialisedRegister, match="v9 .*workgroup 0, wave 0"):
        machine.run("v_add_f32_e32 v0, 1.0, v9")
    machine.exec = np.arange(32) < 16
    machine.run("v_mov_b32_e32 v9, 1.0", "v_add_f32_e32 v0, 1.0, v9")
    machine.exec = np.arange(32) < 17
    with pytest.raises(UninitialisedRegister, match="lane 16"):
        machine.run("v_add_f32_e32 v0, 1.0, v9")


def test_undefined_halves_travel_through_moves_and_masks():
    machine = Machine(1)
    machine.run("v_mov_b16_e32 v1.l, 0x3c00", "v_mov_b32_e32 v2, v1")
    with pytest.raises(UninitialisedRegister, match="v2"):
        machine.run("v_cvt_f32_u32_e32 v0, v2")
    machine.run("v_and_b32_e32 v3, 0xffff, v2", "v_cvt_f32_u32_e32 v0, v3")  # a cleared half is defined
    machine.run("v_lshlrev_b32_e32 v4, 16, v1", "v_cvt_f32_u32_e32 v0, v4")
    machine.run("v_cvt_f32_f16_e32 v0, v1.l")
    with pytest.raises(UninitialisedRegister, match="high half of v1"):
        machine.run("v_cvt_f32_f16_e32 v0, v1.h")
    machine.run("v_perm_b32 v5, v1, v1, 0x1000100", "v_cvt_f32_u32_e32 v0, v5")
    machine.run("v_mov_b32_e32 v6, 7", "v_mad_u64_u32 v[8:9], null, v6, v6, v[6:7]", "v_cvt_f32_u32_e32 v0, v8")
    with pytest.raises(UninitialisedRegister, match="v9"):
        machine.run("v_cvt_f32_u32_e32 v0, v9")


def test_unchosen_undefined_operands_do_not_matter():
    machine = Machine(1)
    machine.set_v(1, 5)
    machine.set_vcc(np.arange(32) < 4)
    machine.exec = np.arange(32) < 4
    machine.run("v_mov_b32_e32 v2, 6")
    machine.exec = np.ones(32, bool)
    machine.run("v_cndmask_b32_e32 v3, v1, v2, vcc_lo", "v_cvt_f32_u32_e32 v0, v3")
    machine.set_vcc(np.arange(32) < 5)
    machine.run("v_cndmask_b32_e32 v3, v1, v2, vcc_lo")
    with pytest.raises(UninitialisedRegister, match="lane 4"):
        machine.run("v_cvt_f32_u32_e32 v0, v3")
