"""Lane movement: DPP, permlane, readlane, mbcnt, LDS permutes and swizzles, in wave32 and wave64."""

import numpy as np
import pytest
from rocm_machine import Machine

from mlcrt.targets.rocm.emulator.errors import UninitialisedRegister, UnknownInstruction

LANE = np.arange(32)
VALUES = (LANE * 7 + 100).astype(np.uint32)


def machine(exec_mask=None) -> Machine:
    m = Machine(2)
    m.set_v(1, VALUES)
    m.set_v(0, 9)
    if exec_mask is not None:
        m.exec = exec_mask
    return m


def moved(source, valid=None):
    """What v_mov with that lane movement gives: 9 stays where there is no source."""
    return np.where(np.ones(32, bool) if valid is None else valid, VALUES[source % 32], 9)


DPP = {
    "quad_perm:[1,0,3,2]": (LANE ^ 1, None),
    "quad_perm:[3,3,0,0]": (LANE // 4 * 4 + np.tile([3, 3, 0, 0], 8), None),
    "row_shl:3": (LANE + 3, LANE % 16 + 3 < 16),
    "row_shr:5": (LANE - 5, LANE % 16 >= 5),
    "row_ror:4": (LANE // 16 * 16 + (LANE - 4) % 16, None),
    "row_mirror": (LANE // 16 * 16 + 15 - LANE % 16, None),
    "row_half_mirror": (LANE // 8 * 8 + 7 - LANE % 8, None),
    "row_share:6": (LANE // 16 * 16 + 6, None),
    "row_xmask:9": (LANE ^ 9, None),
    "dpp8:[7,6,5,4,3,2,1,0]": (LANE // 8 * 8 + 7 - LANE % 8, None),
}


@pytest.mark.parametrize("control", DPP)
def test_dpp(control):
    m = machine()
    m.run(f"v_mov_b32_dpp v0, v1 {control}{'' if 'dpp8' in control else ' row_mask:0xf bank_mask:0xf'}")
    np.testing.assert_array_equal(m.v(0)[1], moved(*DPP[control]))


def test_dpp_bounds_masks_and_inactive_sources():
    m = machine()
    m.run("v_mov_b32_dpp v0, v1 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE % 16 == 0, 0, VALUES[LANE - 1]))
    m = machine()
    m.run("v_mov_b32_dpp v0, v1 row_mirror row_mask:0x2 bank_mask:0x5")
    chosen = (LANE >= 16) & (LANE // 4 % 2 == 0)
    np.testing.assert_array_equal(m.v(0)[0], moved(LANE // 16 * 16 + 15 - LANE % 16, chosen))
    active = LANE % 4 != 2
    m = machine(active)
    m.run("v_mov_b32_dpp v0, v1 quad_perm:[2,2,2,3] row_mask:0xf bank_mask:0xf")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE % 4 == 3, VALUES, 9))
    m = machine(active)
    m.run("v_mov_b32_dpp v0, v1 quad_perm:[2,2,2,3] row_mask:0xf bank_mask:0xf bound_ctrl:1")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE % 4 == 3, VALUES, np.where(active, 0, 9)))
    m = machine(active)
    m.run("v_mov_b32_dpp v0, v1 quad_perm:[2,2,2,3] row_mask:0xf bank_mask:0xf fi:1")
    source = LANE // 4 * 4 + np.tile([2, 2, 2, 3], 8)
    np.testing.assert_array_equal(m.v(0)[0], np.where(active, VALUES[source], 9))


def test_dpp_in_arithmetic_and_comparison():
    m = machine()
    m.set_v(2, 1000)
    m.run("v_add_nc_u32_dpp v0, v1, v2 row_ror:8 row_mask:0xf bank_mask:0xf")
    np.testing.assert_array_equal(m.v(0)[0], VALUES[LANE ^ 8] + 1000)
    m.run("v_cmp_lt_u32_e64_dpp s20, v1, v1 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf")
    np.testing.assert_array_equal(m.mask(20)[0], LANE % 2 == 1)


def test_undefined_source_lanes_stop_only_where_read():
    m = Machine(1)
    m.exec = LANE < 16
    m.run("v_mov_b32_e32 v1, 3", "v_mov_b32_dpp v0, v1 row_mirror row_mask:0xf bank_mask:0xf")
    m.exec = LANE < 32
    with pytest.raises(UninitialisedRegister, match="v1"):
        m.run("v_mov_b32_dpp v0, v1 row_mirror row_mask:0xf bank_mask:0xf")
    with pytest.raises(UninitialisedRegister, match="lane 20"):
        m.run("v_readlane_b32 s2, v1, 20")


def test_readlane_writelane_readfirstlane():
    m = machine(LANE >= 5)
    m.set_s(3, np.array([4, 31]))
    m.run("v_readlane_b32 s2, v1, s3")
    np.testing.assert_array_equal(m.s(2), VALUES[[4, 31]])
    m.run("v_readlane_b32 s2, v1, 7", "v_readfirstlane_b32 s4, v1")
    assert (m.s(2) == VALUES[7]).all() and (m.s(4) == VALUES[5]).all()
    m.exec = np.zeros(32, bool)
    m.run("v_readfirstlane_b32 s4, v1", "v_writelane_b32 v0, 77, s3")
    assert (m.s(4) == VALUES[0]).all()
    assert m.v(0)[0, 4] == 77 and m.v(0)[1, 31] == 77 and (m.v(0) == 77).sum() == 2


def test_permlane16_and_x16():
    nibbles = np.random.default_rng(2).integers(0, 16, 16)
    select = sum(int(n) << 4 * i for i, n in enumerate(nibbles))
    m = machine()
    m.set_s64(20, select)
    m.run("v_permlane16_b32 v0, v1, s20, s21")
    np.testing.assert_array_equal(m.v(0)[0], VALUES[LANE // 16 * 16 + nibbles[LANE % 16]])
    m.run("v_permlanex16_b32 v0, v1, s20, s21")
    np.testing.assert_array_equal(m.v(0)[1], VALUES[(LANE // 16 * 16 ^ 16) + nibbles[LANE % 16]])
    m = machine(LANE < 16)
    m.set_s64(20, select)
    m.run("v_permlanex16_b32 v0, v1, s20, s21")
    np.testing.assert_array_equal(m.v(0)[0], 9)
    m.run("v_permlanex16_b32 v0, v1, s20, s21 op_sel:[1,0]")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE < 16, VALUES[16 + nibbles[LANE % 16]], 9))
    m.run("v_permlanex16_b32 v0, v1, s20, s21 op_sel:[0,1]")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE < 16, 0, 9))


def test_permlane64():
    m = machine()
    m.run("v_permlane64_b32 v0, v1")
    assert (m.v(0) == 9).all()
    m = Machine(1, lanes=64)
    m.set_v(1, np.arange(64, dtype=np.uint32))
    m.run("v_permlane64_b32 v0, v1")
    np.testing.assert_array_equal(m.v(0)[0], np.arange(64) ^ 32)


@pytest.mark.parametrize("lanes", [32, 64])
def test_mbcnt_numbers_the_lanes(lanes):
    m = Machine(1, lanes=lanes)
    m.run("v_mbcnt_lo_u32_b32 v0, -1, 0", "v_mbcnt_hi_u32_b32 v0, -1, v0")
    np.testing.assert_array_equal(m.v(0)[0], np.arange(lanes))
    m.set_s(20, 0b1011)
    m.run("v_mbcnt_lo_u32_b32 v0, s20, 5")
    below = [bin(0b1011 & ((1 << min(i, 32)) - 1)).count("1") for i in range(lanes)]
    np.testing.assert_array_equal(m.v(0)[0], 5 + np.array(below))


def test_lds_permutes():
    to = np.random.default_rng(3).permutation(32)
    m = machine()
    m.set_v(2, to * 4 + 128)  # only bits 6:2 count
    m.run("ds_bpermute_b32 v0, v2, v1")
    np.testing.assert_array_equal(m.v(0)[0], VALUES[to])
    m.run("ds_permute_b32 v0, v2, v1")
    wanted = np.zeros(32, np.uint32)
    wanted[to] = VALUES
    np.testing.assert_array_equal(m.v(0)[0], wanted)
    m.run("ds_bpermute_b32 v0, v2, v1 offset:4")
    np.testing.assert_array_equal(m.v(0)[0], VALUES[(to + 1) % 32])
    m.set_v(2, 0)
    m.run("ds_permute_b32 v0, v2, v1")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE == 0, VALUES[31], 0))
    m.exec = LANE >= 8
    m.set_v(2, LANE // 2 * 4)
    m.run("ds_bpermute_b32 v0, v2, v1")
    np.testing.assert_array_equal(m.v(0)[0][8:], np.where(LANE // 2 >= 8, VALUES[LANE // 2], 0)[8:])


SWIZZLES = {
    "offset:swizzle(SWAP,16)": LANE ^ 16,
    "offset:swizzle(REVERSE,8)": LANE ^ 7,
    "offset:swizzle(BROADCAST,4,1)": LANE // 4 * 4 + 1,
    "offset:swizzle(QUAD_PERM,2,1,0,3)": LANE // 4 * 4 + np.tile([2, 1, 0, 3], 8),
    'offset:swizzle(BITMASK_PERM,"01pip")': (LANE & 0b00111 | 0b01000) ^ 0b00010,
    "offset:1055": LANE ^ 1,
    "offset:32948": LANE // 4 * 4 + np.tile([0, 1, 3, 2], 8),
    f"offset:{0xC000 | 3 << 5}": (LANE + 3) % 32,
    f"offset:{0xC000 | 0x400 | 3 << 5}": (LANE - 3) % 32,
}


@pytest.mark.parametrize("text", SWIZZLES)
def test_swizzle(text):
    m = machine()
    m.run(f"ds_swizzle_b32 v0, v1 {text}")
    np.testing.assert_array_equal(m.v(0)[0], VALUES[SWIZZLES[text]])


def test_swizzle_modes_without_an_entry_stop():
    with pytest.raises(UnknownInstruction, match="FFT"):
        machine().run("ds_swizzle_b32 v0, v1 offset:0xe000")


def test_swap():
    m = machine(LANE < 4)
    m.set_v(0, 9)
    m.run("v_swap_b32 v0, v1")
    np.testing.assert_array_equal(m.v(0)[0], np.where(LANE < 4, VALUES, 9))
    np.testing.assert_array_equal(m.v(1)[0], np.where(LANE < 4, 9, VALUES))
