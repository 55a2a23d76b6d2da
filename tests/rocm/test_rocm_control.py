"""Programs: branches and reconvergence, barriers, waits, kernel arguments, parsing."""

import numpy as np
import pytest

from mlcrt.targets.rocm.emulator import (
    Deadlock,
    EmulationError,
    Launch,
    OutOfBounds,
    ParseError,
    Program,
    Race,
    UninitialisedRegister,
    UnknownInstruction,
    Unwritten,
    UnwrittenMemory,
)

HEAD = "\t.text\nk:\n"
TAIL = """
	s_endpgm
	.section	.rodata,"a",@progbits
	.amdhsa_kernel k
		.amdhsa_group_segment_fixed_size {lds}
		.amdhsa_private_segment_fixed_size 0
		.amdhsa_kernarg_size {size}
		.amdhsa_user_sgpr_count 4
		.amdhsa_user_sgpr_kernarg_segment_ptr 1
		.amdhsa_wavefront_size32 {wave32}
		.amdhsa_system_sgpr_workgroup_id_x 1
		.amdhsa_system_sgpr_workgroup_id_y 1
		.amdhsa_system_sgpr_workgroup_id_z 1
		.amdhsa_system_vgpr_workitem_id {ids}
		.amdhsa_next_free_vgpr 16
		.amdhsa_next_free_sgpr 32
		.amdhsa_float_denorm_mode_32 3
		.amdhsa_float_denorm_mode_16_64 3
	.end_amdhsa_kernel
	.amdgpu_metadata
---
amdhsa.kernels:
  - .args:
{args}    .name:           k
    .max_flat_workgroup_size: 1024
...
	.end_amdgpu_metadata
"""


def program(body: str, args=(("out", 8, "global_buffer"),), lds=256, ids=0, wave32=1) -> Program:
    offset, lines = 0, ""
    for name, size, kind in args:
        offset = -(-offset // size) * size
        lines += f"      - .name:           {name}\n        .offset:         {offset}\n"
        lines += f"        .size:           {size}\n        .value_kind:     {kind}\n"
        offset += size
    tail = TAIL.format(lds=lds, size=offset, args=lines, ids=ids, wave32=wave32)
    return Program.parse(HEAD + body + tail)


STORE = """
	s_load_b64 s[8:9], s[0:1], 0x0
	s_lshl_b32 s10, s4, {shift}
	v_add_nc_u32_e32 v2, s10, v0
	v_lshlrev_b32_e32 v2, 2, v2
	s_waitcnt lgkmcnt(0)
	global_store_b32 v2, v1, s[8:9]
"""


def run(body: str, groups=2, threads=64, **options) -> tuple[np.ndarray, object]:
    """The stored value per thread after `body` leaves it in v1."""
    out = np.zeros(groups * threads, np.uint32)
    text = body + STORE.format(shift=threads.bit_length() - 1)
    report = Launch(program(text, **options), "k", (groups,), (threads,), [Unwritten(out)]).run()
    return out.reshape(groups, threads), report


def test_loop_with_its_own_length_per_lane():
    out, report = run("""
	v_mov_b32_e32 v1, 0
	v_and_b32_e32 v3, 7, v0
	v_lshl_add_u32 v3, s4, 1, v3
	s_mov_b32 s11, 0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_add_nc_u32_e32 v1, 3, v1
	v_add_nc_u32_e32 v3, -1, v3
	v_cmp_gt_i32_e32 vcc_lo, 0, v3
	s_or_b32 s11, vcc_lo, s11
	s_and_not1_b32 exec_lo, exec_lo, s11
	s_cbranch_execnz .LBB0_1
	s_mov_b32 exec_lo, -1
""")  # fmt: skip
    thread, group = np.arange(64), np.arange(2)[:, None]
    np.testing.assert_array_equal(out, 3 * (thread % 8 + 2 * group + 1))
    assert report.mnemonics["s_cbranch_execnz"] == 2 * 8 + 2 * 10


def test_waves_part_and_join():
    """Waves take different ways by a scalar condition; the code after the join runs once for all."""
    out, report = run("""
	v_readfirstlane_b32 s11, v0
	v_mov_b32_e32 v1, 5
	s_cmp_eq_u32 s11, 0
	s_cbranch_scc1 .LBB0_2
	v_mov_b32_e32 v1, 6
	s_branch .LBB0_3
.LBB0_2:
	v_add_nc_u32_e32 v1, s4, v1
.LBB0_3:
	v_add_nc_u32_e32 v1, 100, v1
""", threads=128, groups=3)  # fmt: skip
    wave, group = np.arange(128) // 32, np.arange(3)[:, None]
    np.testing.assert_array_equal(out, np.where(wave == 0, 105 + group, 106))
    assert report.mnemonics["s_branch"] == 9 and report.mnemonics["v_mov_b32"] == 12 + 9


@pytest.mark.parametrize("state", [0, 1], ids=["zero", "not zero"])
@pytest.mark.parametrize("branch", [
    "s_cbranch_scc0", "s_cbranch_scc1", "s_cbranch_vccz", "s_cbranch_vccnz", "s_cbranch_execz", "s_cbranch_execnz",
    "s_branch",
])  # fmt: skip
def test_branch_conditions(branch, state):
    """Every condition as it holds and as it does not."""
    register = next((r for r in ("scc", "vcc", "exec") if r in branch), None)
    taken = register is None or state == (branch.endswith(("1", "nz")))
    out, _ = run(f"""
	s_mov_b32 vcc_lo, {state if register == "vcc" else 0}
	v_mov_b32_e32 v1, 1
	s_cmp_eq_u32 {state if register == "scc" else 1}, 1
	s_mov_b32 exec_lo, {state if register == "exec" else -1}
	{branch} .LBB0_2
	s_mov_b32 exec_lo, -1
	v_mov_b32_e32 v1, 2
.LBB0_2:
	s_mov_b32 exec_lo, -1
""")
    assert (out == (1 if taken else 2)).all()


def test_ids_of_threads_and_workgroups():
    out = np.zeros((2, 3, 4, 2, 4, 8), np.uint32)
    body = """
	v_bfe_u32 v1, v0, 10, 10
	v_bfe_u32 v2, v0, 20, 10
	v_and_b32_e32 v0, 0x3ff, v0
	v_lshl_add_u32 v3, v2, 2, v1
	v_lshl_add_u32 v3, v3, 3, v0
	s_mul_i32 s10, s6, 3
	s_add_i32 s10, s10, s5
	s_lshl_b32 s10, s10, 2
	s_add_i32 s10, s10, s4
	v_lshl_add_u32 v3, s10, 6, v3
	v_lshlrev_b32_e32 v4, 2, v3
	s_load_b64 s[8:9], s[0:1], 0x0
	s_waitcnt lgkmcnt(0)
	global_store_b32 v4, v3, s[8:9]
"""
    Launch(program(body, ids=2), "k", (4, 3, 2), (8, 4, 2), {"out": Unwritten(out)}, batch_waves=5).run()
    np.testing.assert_array_equal(out.ravel(), np.arange(out.size))


def test_partial_waves_and_wave64():
    for wave32, threads in ((1, 40), (0, 100)):
        out = np.zeros(threads, np.uint32)
        body = "\tv_add_nc_u32_e32 v1, 1, v0\n" + STORE.format(shift=0)
        report = Launch(program(body, wave32=wave32), "k", (1,), (threads,), [out]).run()
        np.testing.assert_array_equal(out, np.arange(threads) + 1)
        assert report.waves == 2 and report.bytes("global", "store") == 4 * threads


# barriers ----------------------------------------------------------------------------------------------------------
EXCHANGE = """
	v_lshlrev_b32_e32 v3, 2, v0
	ds_store_b32 v3, v0
{order}
	v_xor_b32_e32 v3, 0xfc, v3
	ds_load_b32 v1, v3
	s_waitcnt lgkmcnt(0)
"""


def test_barrier_with_wait():
    out, report = run(EXCHANGE.format(order="\ts_waitcnt lgkmcnt(0)\n\ts_barrier"))
    np.testing.assert_array_equal(out, np.broadcast_to(63 - np.arange(64), (2, 64)))
    assert report.barriers == 2


def test_missing_barrier_is_a_race():
    with pytest.raises(Race, match=r"k line \d+, `ds_load_b32 v1, v3`: LDS byte \d+ is read here and written by wave"):
        run(EXCHANGE.format(order="\ts_waitcnt lgkmcnt(0)"))


@pytest.mark.parametrize("wait", ["", "\ts_waitcnt vmcnt(0)", "\ts_waitcnt lgkmcnt(1)", "\ts_waitcnt_vscnt null, 0x0"])
def test_barrier_without_the_right_wait(wait):
    with pytest.raises(Race, match="s_barrier.*LDS stores in flight.*no wait"):
        run(EXCHANGE.format(order=f"{wait}\n\ts_barrier"))


@pytest.mark.parametrize(
    "wait", ["s_waitcnt 0", "s_waitcnt vmcnt(0) expcnt(0) lgkmcnt(0)", "s_waitcnt_lgkmcnt null, 0x0"]
)
def test_spellings_of_waits(wait):
    run(EXCHANGE.format(order=f"\t{wait}\n\ts_barrier"))


def test_ordered_and_unordered_counters():
    """A store before a later load is done when one operation is left; not so with a scalar load among them."""
    more = "\tv_mov_b32_e32 v5, v3\n\tds_load_b32 v4, v5\n"
    with pytest.raises(Race, match="LDS accesses in flight"):  # the store is done, the load is not
        run(EXCHANGE.format(order=more + "\ts_waitcnt lgkmcnt(1)\n\ts_barrier"))
    scalar = "\ts_load_b32 s12, s[0:1], 0x0\n\ts_waitcnt lgkmcnt(1)\n\ts_barrier"
    with pytest.raises(Race, match="LDS stores in flight"):
        run(EXCHANGE.format(order=scalar))


def test_single_wave_workgroups_need_no_barrier():
    body = EXCHANGE.replace("0xfc", "0x7c").format(order="\ts_barrier")
    out, _ = run(body, threads=32)
    np.testing.assert_array_equal(out[0], 31 - np.arange(32))


def test_ended_waves_count_as_arrived_and_strays_do_not():
    ended = """
	v_mov_b32_e32 v1, v0
	v_readfirstlane_b32 s11, v0
	s_cmp_eq_u32 s11, 0
	s_cbranch_scc1 .LBB0_2
	s_barrier
.LBB0_2:
"""
    out, _ = run(ended)
    assert (out[0] == np.arange(64)).all()
    stray = ended.replace(".LBB0_2:", ".LBB0_2:\n\ts_barrier")
    with pytest.raises(Deadlock, match="workgroup 0 wait at different barriers"):
        run(stray)


def test_endless_loops_end():
    with pytest.raises(Deadlock, match="did not end within 1,000"):
        text = program(".LBB0_1:\n\ts_branch .LBB0_1\n")
        Launch(text, "k", (1,), (32,), [np.zeros(1, np.uint32)], step_limit=1000).run()


def test_hints_do_nothing():
    hints = ["s_nop 0", "s_clause 0x3", "s_delay_alu instid0(VALU_DEP_1) | instskip(NEXT) | instid1(VALU_DEP_1)",
             "s_sleep 1", "s_setprio 3", "s_set_inst_prefetch_distance 0x1", "s_inst_prefetch 0x3",
             "s_waitcnt_depctr depctr_va_vdst(0)", "s_waitcnt_vmcnt null, 0x0", "s_waitcnt_expcnt null, 0x0",
             "s_waitcnt_vscnt null, 0x0", "s_sendmsg sendmsg(MSG_DEALLOC_VGPRS)", "s_icache_inv", "s_dcache_inv",
             "buffer_gl0_inv", "buffer_gl1_inv", "s_code_end"]  # fmt: skip
    out, report = run("\tv_mov_b32_e32 v1, 4\n" + "".join(f"\t{h}\n" for h in hints))
    assert (out == 4).all() and report.classes["CONTROL"] >= 4 * (len(hints) - 2)


# arguments ---------------------------------------------------------------------------------------------------------
SCALARS = (("out", 8, "global_buffer"), ("a", 4, "by_value"), ("b", 2, "by_value"), ("c", 8, "by_value"),
           ("n", 4, "hidden_block_count_x"), ("g", 2, "hidden_group_size_x"))  # fmt: skip


def test_arguments_by_name_and_value():
    body = """
	s_load_b256 s[16:23], s[0:1], 0x0
	s_waitcnt lgkmcnt(0)
	s_and_b32 s24, s19, 0xffff
	s_add_u32 s24, s24, s18
	s_add_u32 s24, s24, s20
	s_add_u32 s24, s24, s22
	v_mov_b32_e32 v1, s24
"""
    out = np.zeros(64, np.uint32)
    text = program(body + STORE.format(shift=5), args=SCALARS)
    Launch(text, "k", (2,), (32,), {"out": out, "a": 100, "b": np.uint16(7), "c": np.int64(50)}).run()
    assert (out == 100 + 7 + 50 + 2).all()
    some = {"out": out, "b": 2, "c": 3}
    for wrong, message in (
        (some, "missing"),
        ({**some, "a": 1, "d": 4}, "unknown"),
        ({**some, "a": np.int64(1)}, "'a' has 4 bytes, the value 8"),
    ):
        with pytest.raises(EmulationError, match=message):
            Launch(text, "k", (2,), (32,), wrong)
    with pytest.raises(EmulationError, match="takes 4 arguments, not 1"):
        Launch(text, "k", (2,), (32,), [out])


def test_launch_limits():
    text = program("", lds=60000)
    out = np.zeros(1, np.uint32)
    with pytest.raises(EmulationError, match="no kernel 'q': the program has k"):
        Launch(text, "q", (1,), (32,), [out])
    with pytest.raises(EmulationError, match="2048 threads"):
        Launch(text, "k", (1,), (2048,), [out])
    with pytest.raises(EmulationError, match="bytes of LDS"):
        Launch(text, "k", (1,), (32,), [out], lds=6000)


# errors carry their place ------------------------------------------------------------------------------------------
def test_messages_name_kernel_line_and_instruction():
    with pytest.raises(UninitialisedRegister, match=r"^k line 3, `v_cvt_f32_u32_e32 v1, v9`: v9 is read .*wave 0"):
        run("\tv_cvt_f32_u32_e32 v1, v9\n")
    with pytest.raises(UninitialisedRegister, match=r"s7[^0-9]"):
        run("\ts_mov_b32 s8, s7\n")
    with pytest.raises(UnknownInstruction, match=r"k line 4: .*'v_frob_b32' \(`v_frob_b32 v1, v0`\)"):
        run("\ts_branch .LBB0_1\n\tv_frob_b32 v1, v0\n.LBB0_1:\n")
    with pytest.raises(UnknownInstruction, match="no label '.LBB0_9'"):
        run("\ts_branch .LBB0_9\n")
    with pytest.raises(OutOfBounds, match=r"global_store_b32.*'out', offset 256 of its 256 .*workgroup 1, wave 0"):
        out = np.zeros(64, np.uint32)
        Launch(program("\tv_mov_b32_e32 v1, 0\n" + STORE.format(shift=6)), "k", (2,), (64,), [out], batch_waves=2).run()
    with pytest.raises(UnwrittenMemory, match="buffer 'out'"):
        run("\ts_load_b64 s[8:9], s[0:1], 0x0\n\tv_mov_b32_e32 v3, 0\n\tglobal_load_b32 v1, v3, s[8:9]\n")


NO_ARGUMENTS = TAIL.format(lds=0, size=0, args="", ids=0, wave32=1)
HALF_ARGUMENT = TAIL.format(lds=0, size=8, args="      - .name: x\n        .size: 8\n", ids=0, wave32=1)


@pytest.mark.parametrize(("text", "message"), [
    ("int main() {}", "no .amdhsa_kernel"),
    ("\t.amdhsa_kernel k\n\t\t.amdhsa_kernarg_size 8\n\t.end_amdhsa_kernel\n", "no code"),
    (HEAD + "\tv_mov_b32_e32 v0, @#!\n" + NO_ARGUMENTS, "line 3.*no operand"),
    (HEAD + "\ts_nop 0 :: s_nop 0 :: s_nop 0\n" + NO_ARGUMENTS, "pairs more than two"),
    (HEAD + HALF_ARGUMENT, "lack an argument"),
])  # fmt: skip
def test_what_is_not_assembly(text, message):
    with pytest.raises(ParseError, match=message):
        Program.parse(text)
