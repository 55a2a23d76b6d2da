"""What gfx9, gfx10 and gfx12 have otherwise than gfx11: names, CDNA's and RDNA4's own instructions, their matrix
layouts, what a 16-bit result does to the other half, barriers in two halves."""

import numpy as np
import pytest
from rocm_exact import fma, inputs, number, same, to_bits
from rocm_machine import Machine
from rocm_valu_cases import CASES

from mlcrt.targets.rocm.emulator.dialects import generation, translated
from mlcrt.targets.rocm.emulator.errors import EmulationError, Race, UninitialisedRegister, UnknownInstruction
from mlcrt.targets.rocm.emulator.salu_float import FLOAT_ROWS
from mlcrt.targets.rocm.emulator.table import BINDERS
from mlcrt.targets.rocm.emulator.valu_cdna import PAIRS

NAMES = {  # AMD's ISA guides: the same opcode under its name of that generation and of gfx11
    9: {
        "global_load_dwordx4": "global_load_b128", "global_load_ushort": "global_load_u16",
        "global_load_short_d16_hi": "global_load_d16_hi_b16", "global_store_byte": "global_store_b8",
        "scratch_store_dwordx2": "scratch_store_b64", "s_load_dwordx8": "s_load_b256", "ds_read_b128": "ds_load_b128",
        "ds_read_u16_d16_hi": "ds_load_u16_d16_hi", "ds_write2_b32": "ds_store_2addr_b32",
        "ds_read2st64_b32": "ds_load_2addr_stride64_b32", "s_andn2_b64": "s_and_not1_b64",
        "s_orn2_saveexec_b64": "s_or_not1_saveexec_b64", "v_add_u32": "v_add_nc_u32", "v_subrev_u16": "v_subrev_nc_u16",
        "v_addc_co_u32": "v_add_co_ci_u32", "v_dot2c_f32_f16": "v_dot2acc_f32_f16", "v_ffbh_u32": "v_clz_i32_u32",
        "ds_bpermute_b32": "ds_bpermute_b32", "v_fma_f32": "v_fma_f32",
    },
    10: {"global_load_dword": "global_load_b32", "v_add_nc_u32": "v_add_nc_u32", "s_andn2_b32": "s_and_not1_b32"},
    11: {"v_min_f32": "v_min_f32", "global_load_b64": "global_load_b64"},
    12: {
        "v_max_num_f32": "v_max_f32", "v_minmax_num_f16": "v_minmax_f16", "v_pk_min_num_f16": "v_pk_min_f16",
        "s_add_co_ci_u32": "s_addc_u32", "s_addk_co_i32": "s_addk_i32", "v_mad_co_u64_u32": "v_mad_u64_u32",
        "v_add_f32": "v_add_f32",
    },
}  # fmt: skip


@pytest.mark.parametrize("which", NAMES)
def test_names(which):
    assert {name: translated(name, which) for name in NAMES[which]} == NAMES[which]
    assert not sorted(set(NAMES[which].values()) - set(BINDERS) - {"v_subrev_nc_u16"})


@pytest.mark.parametrize(
    ("arch", "which"), [("gfx906", 9), ("gfx90a", 9), ("gfx1030", 10), ("gfx1151", 11), ("gfx1200", 12)]
)
def test_generations(arch, which):
    assert generation(f'\t.amdgcn_target "amdgcn-amd-amdhsa-hcc-{arch}"\n') == which


# pairs of float32 ---------------------------------------------------------------------------------------------------
def pairs(machine: Machine, count: int, seed: int) -> np.ndarray:
    """float32 [source, register, lane], in v[2:3], v[4:5] …"""
    words = np.stack([inputs(["f32"], seed=seed + i)[0][:64] for i in range(2 * count)]).astype(np.uint32)
    for i, bits in enumerate(words):
        machine.set_v(2 + i, bits)
    return words.reshape(count, 2, 64)


@pytest.mark.parametrize("select", [((0, 0, 0), (1, 1, 1)), ((1, 0, 1), (0, 1, 0))], ids=["straight", "op_sel"])
@pytest.mark.parametrize("name", [n for n in PAIRS if n != "v_pk_mov_b32"])
def test_pairs_of_floats(name, select):
    reference = {
        "v_pk_fma_f32": lambda a, b, c: fma(a, b, c, "f32"), "v_pk_mul_f32": CASES["v_mul_f32"][2],
        "v_pk_add_f32": CASES["v_add_f32"][2],
    }[name]  # fmt: skip
    count, machine = PAIRS[name], Machine(1, lanes=64, generation=9)
    words = pairs(machine, count, 3)
    operands = ", ".join(f"v[{2 + 2 * i}:{3 + 2 * i}]" for i in range(count))
    low, high = (list(s[:count]) for s in select)
    machine.run(f"{name} v[0:1], {operands} op_sel:{low} op_sel_hi:{high} neg_lo:{[1] + [0] * (count - 1)}")
    for register, chosen in enumerate((low, high)):
        taken = [words[i, c] for i, c in enumerate(chosen)]
        if register == 0:
            taken[0] = taken[0] ^ np.uint32(0x80000000)
        wanted = [
            to_bits(reference(*(number(int(x), "f32") for x in lane)), "f32") for lane in zip(*taken, strict=True)
        ]
        assert same(machine.v(register)[0], np.array(wanted, np.uint32), "f32").all()


def test_pairs_of_scalars_and_constants():
    machine = Machine(1, lanes=64, generation=9)
    machine.set_v(2, np.float32(3))
    machine.set_v(3, np.float32(5))
    machine.set_s(4, np.float32(2).view(np.uint32))
    machine.set_s(5, np.float32(7).view(np.uint32))
    machine.run("v_pk_mul_f32 v[0:1], v[2:3], s[4:5]")
    assert (machine.v(0, np.float32) == 6).all() and (machine.v(1, np.float32) == 35).all()
    machine.run("v_pk_add_f32 v[0:1], v[2:3], 1.0 op_sel_hi:[1,0]")
    assert (machine.v(0, np.float32) == 4).all() and (machine.v(1, np.float32) == 6).all()
    with pytest.raises(UnknownInstruction, match="upper half of a constant"):
        machine.run("v_pk_add_f32 v[0:1], v[2:3], 1.0")
    machine.run("v_pk_mov_b32 v[0:1], v[2:3], s[4:5] op_sel:[1,0]")
    assert (machine.v(0, np.float32) == 5).all() and (machine.v(1, np.float32) == 2).all()
    machine.run("v_pk_mov_b32 v[0:1], v[2:3], v[2:3] op_sel:[0,1]")
    assert (machine.v(0, np.float32) == 3).all() and (machine.v(1, np.float32) == 5).all()
    with pytest.raises(UninitialisedRegister):
        machine.run("v_pk_add_f32 v[0:1], v[2:3], v[10:11]")


def test_cdna_moves_and_adds():
    machine = Machine(1, lanes=64, vgprs=300, generation=9)
    a, b = (np.random.default_rng(i).integers(0, 2**63, 64, np.uint64) for i in range(2))
    for i, x in enumerate((a, b)):
        machine.set_v(2 + 2 * i, (x & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        machine.set_v(3 + 2 * i, (x >> np.uint64(32)).astype(np.uint32))

    def result():
        return (machine.v(0).astype(np.uint64) | machine.v(1).astype(np.uint64) << np.uint64(32))[0]

    machine.run("v_lshl_add_u64 v[0:1], v[2:3], 3, v[4:5]")
    np.testing.assert_array_equal(result(), (a << np.uint64(3)) + b)
    machine.run("v_mov_b64_e32 v[0:1], v[4:5]")
    np.testing.assert_array_equal(result(), b)
    machine.run("v_accvgpr_write_b32 a7, v2", "v_accvgpr_mov_b32 a8, a7", "v_accvgpr_read_b32 v0, a8")
    np.testing.assert_array_equal(machine.v(0), machine.v(2))
    np.testing.assert_array_equal(machine.v(256 + 7), machine.v(2))


def test_16_bit_results_clear_the_upper_half_on_gfx9_only():
    for which, upper in ((9, 0), (10, 0xABCD), (11, 0xABCD)):
        machine = Machine(1, lanes=32, generation=which)
        machine.set_v(0, 0xABCD0000)
        machine.set_v(1, np.float32(1.5))
        machine.run("v_cvt_f16_f32 v0, v1")
        assert (machine.v(0) == (upper << 16 | 0x3E00)).all()
    machine = Machine(1, lanes=64, generation=9)  # those that came with gfx9 keep it, the ones before do not
    machine.set_v(0, 0xABCD0000)
    machine.set_v(1, 3)
    machine.run("v_mad_u16 v0, v1, 5, 1")
    assert (machine.v(0) == 0xABCD0010).all()
    machine.run("v_mad_legacy_u16 v0, v1, 5, 1")
    assert (machine.v(0) == 0x10).all()


def test_sdwa():
    machine = Machine(1, lanes=64, generation=9)
    machine.set_v(1, 0x3E004200)
    machine.set_v(2, 0xFFFF00FF)
    rest = "dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:DWORD"
    machine.run(f"v_and_b32_sdwa v0, v1, v2 dst_sel:DWORD {rest}")
    assert (machine.v(0) == 0).all()
    machine.run(f"v_or_b32_sdwa v0, v1, v2 dst_sel:DWORD {rest}")
    assert (machine.v(0) == 0xFFFF3EFF).all()
    machine.run("v_and_b32_sdwa v0, v1, v2 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:WORD_0")
    assert (machine.v(0) == 0).all()
    machine.run("v_or_b32_sdwa v0, v1, v2 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD")
    assert (machine.v(0) == 0x42FF0000).all()
    machine.run("v_cvt_f32_f16_sdwa v0, v1 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1")
    assert (machine.v(0, np.float32) == 1.5).all()
    machine.run("v_or_b32_sdwa v0, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:BYTE_0")
    assert (machine.v(0) == 0x3E | 0xFF).all()
    machine.run("v_lshlrev_b16_sdwa v0, v2, v1 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:BYTE_1")
    assert (machine.v(0) == 0x42).all()
    for text in ("dst_sel:BYTE_1 dst_unused:UNUSED_PAD", "dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE"):
        with pytest.raises(UnknownInstruction, match="not emulated"):
            machine.run(f"v_or_b32_sdwa v0, v1, v2 {text}")


@pytest.mark.parametrize("which", [9, 10])
def test_permutes_cross_64_lanes_on_gfx9(which):
    machine = Machine(1, lanes=64, generation=which)
    lane = np.arange(64, dtype=np.uint32)
    machine.set_v(1, 100 + lane)
    machine.set_v(2, 4 * (lane ^ 32))
    machine.run("ds_bpermute_b32 v0, v2, v1", "ds_permute_b32 v3, v2, v1")
    wanted = 100 + (lane ^ 32 if which == 9 else lane)
    np.testing.assert_array_equal(machine.v(0)[0], wanted)
    np.testing.assert_array_equal(machine.v(3)[0], wanted)


# matrices: the layouts of AMD's ISA guides, element by element -------------------------------------------------------
MATRICES = {  # name → (generation, lanes, groups of 16 lanes)
    "v_mfma_f32_16x16x16f16": (9, 64, 4), "v_mfma_f32_16x16x16_f16": (9, 64, 4), "v_wmma_f32_16x16x16_f16": (12, 32, 2),
}  # fmt: skip


def spread(machine: Machine, matrix: np.ndarray, first: int, groups: int) -> None:
    """A or B^T [16 rows, 16 of K] as float16: lane 16 g + i has row i, of K the g-th run of 16 / groups."""
    run = 16 // groups
    for register in range(run // 2):
        words = np.zeros(16 * groups, np.uint32)
        for lane in range(16 * groups):
            pair = matrix[lane % 16, lane // 16 * run + 2 * register :][:2].astype(np.float16)
            words[lane] = pair.view(np.uint32)[0]
        machine.set_v(first + register, words)


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_layouts(name):
    which, lanes, groups = MATRICES[name]
    run, machine = 16 // groups, Machine(1, lanes=lanes, generation=which)
    a, b = np.random.default_rng(0).integers(-8, 8, (2, 16, 16)).astype(np.float16)
    c = np.random.default_rng(1).integers(-90, 90, (16, 16)).astype(np.float32)
    spread(machine, a, 10, groups)
    spread(machine, b, 20, groups)
    for r in range(run):
        machine.set_v(30 + r, np.array([c[lane // 16 * run + r, lane % 16] for lane in range(lanes)], np.float32))
    size = run // 2 - 1
    operands = f"v[10:{10 + size}], v[20:{20 + size}]"
    machine.run(f"{name} v[30:{29 + run}], {operands}, v[30:{29 + run}]", f"{name} v[40:{39 + run}], {operands}, 0")
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    for r in range(run):
        rows = np.array([lane // 16 * run + r for lane in range(lanes)])
        columns = np.arange(lanes) % 16
        np.testing.assert_array_equal(machine.v(30 + r, np.float32)[0], (exact + c)[rows, columns])
        np.testing.assert_array_equal(machine.v(40 + r, np.float32)[0], exact[rows, columns])
    machine.exec = np.arange(lanes) > 0
    with pytest.raises(EmulationError, match="inactive"):
        machine.run(f"{name} v[40:{39 + run}], {operands}, 0")
    with pytest.raises(UnknownInstruction):
        Machine(1, lanes=96 - lanes, generation=which).run(f"{name} v[40:{39 + run}], {operands}, 0")


# floats on scalar registers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FLOAT_ROWS)
def test_scalar_floats_are_the_vector_units(name):
    """The same bits as the vector instruction, which test_rocm_valu compares with exact arithmetic."""
    _, kinds, _, accumulate = CASES.get(FLOAT_ROWS[name], (None, ["f32"], None, False))
    words = [np.resize(w, 96).astype(np.uint32) for w in inputs(list(kinds), seed=5)]
    count = len(words[0])
    machine = Machine(count, apart=True, generation=12)
    last = len(words) - 1
    for i, w in enumerate(words):
        index = 0 if accumulate and i == last else 10 + i
        machine.set_s(index, w)
        machine.set_v(index, np.broadcast_to(w[:, None], (count, 32)))
    sources = list(range(10, 10 + len(words) - accumulate))
    machine.waves.scc[:] = before = np.arange(count) % 2 == 0
    machine.run(f"{name} s0, " + ", ".join(f"s{i}" for i in sources))
    machine.run(f"{FLOAT_ROWS[name]} v0, " + ", ".join(f"v{i}" for i in sources))
    assert same(machine.s(0), machine.v(0)[:, 0], "f32").all() and (machine.scc == before).all()


COMPARISONS = ("lt", "eq", "le", "gt", "lg", "ge", "o", "u", "nge", "nlg", "ngt", "nle", "neq", "nlt")


@pytest.mark.parametrize("name", COMPARISONS)
def test_scalar_float_comparisons(name):
    values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    a, b = (x.ravel() for x in np.meshgrid(values, values))
    machine = Machine(len(a), apart=True, generation=12)
    machine.set_s(1, a.view(np.uint32))
    machine.set_s(2, b.view(np.uint32))
    machine.run(f"s_cmp_{name}_f32 s1, s2")
    order = {"lt": a < b, "eq": a == b, "le": a <= b, "gt": a > b, "ge": a >= b, "lg": (a < b) | (a > b)}
    order["o"] = order["eq"] | order["lg"]
    wanted = ~order["eq" if name == "neq" else "o" if name == "u" else name[1:]] if name not in order else order[name]
    np.testing.assert_array_equal(machine.scc, wanted)


def test_scalar_64_bit_arithmetic():
    machine = Machine(3, apart=True, generation=12)
    a = np.array([5, 2**64 - 1, 2**40 + 7], np.uint64)
    b = np.array([9, 3, 2**33 + 1], np.uint64)
    for i, x in enumerate((a, b)):
        machine.set_s(2 + 2 * i, (x & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        machine.set_s(3 + 2 * i, (x >> np.uint64(32)).astype(np.uint32))
    for name, wanted in (("s_add_nc_u64", a + b), ("s_sub_nc_u64", a - b), ("s_mul_u64", a * b)):
        for flag in (False, True):
            machine.waves.scc[:] = flag
            machine.run(f"{name} s[0:1], s[2:3], s[4:5]")
            np.testing.assert_array_equal(machine.s64(0), wanted)
            assert (machine.scc == flag).all()


# barriers and waits of gfx12 -----------------------------------------------------------------------------------------
def test_a_barrier_in_two_halves_waits_for_lds():
    from mlcrt.targets.rocm.emulator.parser import parse_instruction
    from mlcrt.targets.rocm.emulator.table import bind

    def run(machine, *texts):
        machine.kernel.instructions[:] = [parse_instruction(t, i, 12) for i, t in enumerate(texts)]
        for instruction in machine.kernel.instructions:
            bind(instruction, machine.kernel)(machine.waves)

    machine = Machine(2, generation=12)
    machine.set_v(0, np.arange(64, dtype=np.uint32).reshape(2, 32) * 4)
    machine.set_v(1, 7)
    run(machine, "ds_store_b32 v0, v1", "s_wait_dscnt 0x0", "s_barrier_signal -1", "v_mov_b32 v2, v1",
        "s_barrier_wait -1")  # fmt: skip
    assert machine.waves.waiting.all()
    run(machine, "ds_store_b32 v0, v1", "s_wait_loadcnt_dscnt 0x300", "s_barrier_signal -1", "s_barrier_wait -1")
    with pytest.raises(Race, match="LDS stores in flight"):
        run(machine, "ds_store_b32 v0, v1", "s_wait_kmcnt 0x0", "s_barrier_signal -1", "s_barrier_wait -1")
    with pytest.raises(UnknownInstruction, match="between the halves"):
        run(machine, "s_barrier_signal -1", "ds_load_b32 v2, v0", "s_barrier_wait -1")
    idle = ("s_wait_loadcnt 0x0", "s_wait_storecnt 0x0", "s_wait_alu depctr_sa_sdst(0)", "s_wait_idle",
            "s_wait_storecnt_dscnt 0x0", "global_inv scope:SCOPE_SE", "global_wb scope:SCOPE_SE")  # fmt: skip
    run(machine, *idle)
    with pytest.raises(UnknownInstruction, match="workgroup's barrier"):
        run(machine, "s_barrier_signal -3", "s_barrier_wait -3")
