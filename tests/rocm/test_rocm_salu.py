"""Scalar instructions against Python integers, SCC and EXEC effects included."""

import numpy as np
import pytest
from rocm_exact import EDGES, signed
from rocm_machine import Machine

from mlcrt.targets.rocm.emulator.errors import UninitialisedRegister

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
# name → (result bits or 0, source types, reference giving result or (result, scc) or, for comparisons, scc)
CASES: dict[str, tuple] = {}


def case(name, out, ins, reference, scc="keep"):
    CASES[name] = (out, ins, reference, scc)


def nonzero(name, out, ins, reference):
    case(name, out, ins, reference, "nonzero")


case("s_mov_b32", 32, "u", lambda a: a)
case("s_mov_b64", 64, "U", lambda a: a)
case("s_cselect_b32", 32, "uuc", lambda a, b, c: a if c else b)
case("s_cselect_b64", 64, "UUc", lambda a, b, c: a if c else b)
case("s_sext_i32_i8", 32, "u", lambda a: signed(a, 8))
case("s_sext_i32_i16", 32, "u", lambda a: signed(a, 16))
case("s_brev_b32", 32, "u", lambda a: int(f"{a:032b}"[::-1], 2))
case("s_clz_i32_u32", 32, "u", lambda a: 32 - a.bit_length() if a else -1)
case("s_ctz_i32_b32", 32, "u", lambda a: (a & -a).bit_length() - 1)
case("s_cls_i32", 32, "u", lambda a: -1 if a in (0, M32) else 32 - (a if a < 1 << 31 else a ^ M32).bit_length())
nonzero("s_bcnt1_i32_b32", 32, "u", lambda a: a.bit_count())
nonzero("s_bcnt1_i32_b64", 32, "U", lambda a: a.bit_count())
nonzero("s_abs_i32", 32, "i", abs)
for name, f in {
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b), "xnor": lambda a, b: ~(a ^ b), "and_not1": lambda a, b: a & ~b,
    "or_not1": lambda a, b: a | ~b,
}.items():  # fmt: skip
    nonzero(f"s_{name}_b32", 32, "uu", f)
    nonzero(f"s_{name}_b64", 64, "UU", f)
nonzero("s_not_b32", 32, "u", lambda a: ~a)
nonzero("s_not_b64", 64, "U", lambda a: ~a)
nonzero("s_lshl_b32", 32, "uu", lambda a, b: a << b % 32)
nonzero("s_lshr_b32", 32, "uu", lambda a, b: a >> b % 32)
nonzero("s_ashr_i32", 32, "iu", lambda a, b: a >> b % 32)
nonzero("s_lshl_b64", 64, "Uu", lambda a, b: a << b % 64)
nonzero("s_lshr_b64", 64, "Uu", lambda a, b: a >> b % 64)
nonzero("s_ashr_i64", 64, "Iu", lambda a, b: a >> b % 64)
case("s_bfm_b32", 32, "uu", lambda a, b: ((1 << a % 32) - 1) << b % 32)


def field(a, control):
    size = min(control >> 16 & 127, 32)
    return a >> control % 32 & (1 << size) - 1, size


def bfe_i(a, control):
    size = control >> 16 & 127
    rest = signed(a, 32) >> control % 32
    return 0 if size == 0 else signed(rest, min(size, 32))


nonzero("s_bfe_u32", 32, "uu", lambda a, b: field(a, b)[0])
nonzero("s_bfe_i32", 32, "uu", bfe_i)
case("s_pack_ll_b32_b16", 32, "uu", lambda a, b: a & 0xFFFF | b << 16)
case("s_pack_lh_b32_b16", 32, "uu", lambda a, b: a & 0xFFFF | b >> 16 << 16)
case("s_pack_hl_b32_b16", 32, "uu", lambda a, b: a >> 16 | b << 16)
case("s_pack_hh_b32_b16", 32, "uu", lambda a, b: a >> 16 | b >> 16 << 16)
case("s_add_u32", 32, "uu", lambda a, b: (a + b, a + b > M32), "given")
case("s_addc_u32", 32, "uuc", lambda a, b, c: (a + b + c, a + b + c > M32), "given")
case("s_sub_u32", 32, "uu", lambda a, b: (a - b, b > a), "given")
case("s_subb_u32", 32, "uuc", lambda a, b, c: (a - b - c, b + c > a), "given")


def overflow(x):
    return x, not -(2**31) <= x < 2**31


case("s_add_i32", 32, "ii", lambda a, b: overflow(a + b), "given")
case("s_sub_i32", 32, "ii", lambda a, b: overflow(a - b), "given")
nonzero("s_absdiff_i32", 32, "ii", lambda a, b: abs(signed(a - b, 32)))
case("s_mul_i32", 32, "ii", lambda a, b: a * b)
case("s_mul_hi_u32", 32, "uu", lambda a, b: a * b >> 32)
case("s_mul_hi_i32", 32, "ii", lambda a, b: a * b >> 32)
for n in range(1, 5):
    case(f"s_lshl{n}_add_u32", 32, "uu", lambda a, b, n=n: ((a << n) + b, (a << n) + b > M32), "given")
for k, t in (("i", "i32"), ("u", "u32")):
    case(f"s_min_{t}", 32, k * 2, lambda a, b: (min(a, b), a < b), "given")
    case(f"s_max_{t}", 32, k * 2, lambda a, b: (max(a, b), a >= b), "given")
    for name, f in (("eq", lambda a, b: a == b), ("lg", lambda a, b: a != b), ("gt", lambda a, b: a > b),
                    ("ge", lambda a, b: a >= b), ("lt", lambda a, b: a < b), ("le", lambda a, b: a <= b)):  # fmt: skip
        case(f"s_cmp_{name}_{t}", 0, k * 2, f, "result")
case("s_cmp_eq_u64", 0, "UU", lambda a, b: a == b, "result")
case("s_cmp_lg_u64", 0, "UU", lambda a, b: a != b, "result")
case("s_bitcmp0_b32", 0, "uu", lambda a, b: not a >> b % 32 & 1, "result")
case("s_bitcmp1_b32", 0, "uu", lambda a, b: a >> b % 32 & 1, "result")


def wide_inputs(kind, count, rng):
    small = EDGES["u32"].astype(np.uint64)
    if kind in "UI":
        small = np.concatenate([small, small << np.uint64(32), ~small])
    noise = rng.integers(0, 2 ** (64 if kind in "UI" else 32), count, np.uint64)
    picked = rng.choice(small, count)
    return np.where(rng.random(count) < 0.7, picked, noise)


@pytest.mark.parametrize("name", CASES)
def test_against_python_integers(name):
    out, ins, reference, scc = CASES[name]
    count, rng = 600, np.random.default_rng(7)
    machine = Machine(count)
    flags = rng.integers(0, 2, count).astype(bool)
    machine.waves.scc[:] = flags
    texts, values = [], []
    for i, kind in enumerate(ins):
        if kind == "c":
            values.append([int(f) for f in flags])
            continue
        bits = wide_inputs(kind, count, rng)
        index = 10 + 2 * i
        machine.set_s(index, bits & np.uint64(M32))
        if kind in "UI":
            machine.set_s(index + 1, bits >> np.uint64(32))
        texts.append(f"s[{index}:{index + 1}]" if kind in "UI" else f"s{index}")
        size = 64 if kind in "UI" else 32
        values.append([signed(int(b), size) if kind in "iI" else int(b) & ((1 << size) - 1) for b in bits])
    if out:
        texts.insert(0, "s[2:3]" if out == 64 else "s2")
    machine.run(f"{name} " + ", ".join(texts))
    wanted = [reference(*v) for v in zip(*values, strict=True)]
    if scc == "given":
        wanted, wanted_scc = zip(*wanted, strict=True)
    elif scc == "nonzero":
        wanted_scc = [w & (M32 if out == 32 else M64) != 0 for w in wanted]
    else:
        wanted_scc = wanted if scc == "result" else flags
    np.testing.assert_array_equal(machine.scc, np.array(wanted_scc, bool))
    if out:
        got = machine.s64(2) if out == 64 else machine.s(2).astype(np.uint64)
        np.testing.assert_array_equal(got, np.array([w & ((1 << out) - 1) for w in wanted], np.uint64))


SAVE = {
    "and": lambda s, e: s & e, "or": lambda s, e: s | e, "xor": lambda s, e: s ^ e, "nand": lambda s, e: ~(s & e),
    "nor": lambda s, e: ~(s | e), "xnor": lambda s, e: ~(s ^ e), "and_not1": lambda s, e: s & ~e,
    "or_not1": lambda s, e: s | ~e, "and_not0": lambda s, e: ~s & e, "or_not0": lambda s, e: ~s | e,
}  # fmt: skip
SAVE_NAMES = [f"s_{n}_saveexec_b{w}" for n in SAVE for w in (32, 64)] + [
    "s_and_not1_wrexec_b32",
    "s_and_not0_wrexec_b32",
]


@pytest.mark.parametrize("name", SAVE_NAMES)
def test_exec_updates(name):
    lanes = 64 if name.endswith("64") else 32
    all_bits = (1 << lanes) - 1
    operation = SAVE[name[2:].split("_saveexec")[0].split("_wrexec")[0]]
    for source, before in ((0xF0F0F0F0F0F0F0F0, 0xFF00FF00FF00FF00), (0, 5), (all_bits, all_bits), (0xF, 0xF0)):
        source, before = source & all_bits, before & all_bits
        machine = Machine(1, lanes=lanes)
        machine.set_s64(20, source)
        machine.set_s64(126, before)
        machine.run(f"{name} s[2:3], s[20:21]" if lanes == 64 else f"{name} s2, s20")
        after = operation(source, before) & all_bits
        got = [int((machine.s64(i) if lanes == 64 else machine.s(i))[0]) for i in (126, 2)]
        assert got == [after, after if "wrexec" in name else before] and bool(machine.scc[0]) == (after != 0)


def test_instructions_with_constants():
    machine = Machine(1)
    machine.set_s(2, 10)
    for flag in (False, True):  # only what can overflow touches SCC
        machine.waves.scc[:] = flag
        machine.set_s(4, 3)
        machine.run("s_movk_i32 s3, 0x8000", "s_mulk_i32 s4, 5", "s_bitset1_b32 s4, 4", "s_bitset0_b32 s4, 0")
        assert machine.s(3)[0] == 0xFFFF8000 and machine.s(4)[0] == 30 and machine.scc[0] == flag
    machine.run("s_addk_i32 s2, 0xfff6")  # minus 10
    assert machine.s(2)[0] == 0 and not machine.scc[0]
    machine.set_s(2, 0x7FFFFFF0)
    machine.run("s_addk_i32 s2, 0x10")
    assert machine.s(2)[0] == 1 << 31 and machine.scc[0]
    machine.run("s_movk_i32 s2, 7", "s_mulk_i32 s2, 0xffff")
    assert machine.s(2)[0] == (-7) & M32
    machine.run("s_bitset1_b32 s2, 1", "s_bitset0_b32 s2, 31")
    assert machine.s(2)[0] == 0x7FFFFFFB
    machine.waves.scc[:] = False
    machine.run("s_cmov_b32 s2, 5")
    assert machine.s(2)[0] == 0x7FFFFFFB
    machine.waves.scc[:] = True
    machine.run("s_cmov_b32 s2, 5", "s_mov_b32 m0, s2", "s_mov_b32 null, s2")
    assert machine.s(2)[0] == 5 and machine.s(125)[0] == 5
    machine.run("s_mov_b64 s[4:5], -1", "s_add_u32 s6, s2, src_scc")
    assert machine.s64(4)[0] == M64 and machine.s(6)[0] == 6


@pytest.mark.parametrize("kind", ["i32", "u32"])
@pytest.mark.parametrize("name", ["eq", "lg", "gt", "ge", "lt", "le"])
def test_compare_with_a_short_constant(name, kind):
    reference = CASES[f"s_cmp_{name}_{kind}"][2]
    for value in (0, 5, 0x7FFF, 0x8000, 0xFFFF8000, 0xFFFFFFFB):
        for constant in (0, 5, 0x7FFF, 0x8000, 0xFFFB):
            machine = Machine(1)
            machine.set_s(2, value)
            machine.run(f"s_cmpk_{name}_{kind} s2, {constant:#x}")
            a, b = (signed(value, 32), signed(constant, 16)) if kind == "i32" else (value, constant)
            assert bool(machine.scc[0]) == reference(a, b), (value, constant)


def test_undefined_scalars_stop():
    machine = Machine(1)
    with pytest.raises(UninitialisedRegister, match="s9"):
        machine.run("s_add_u32 s2, s9, 1")
    with pytest.raises(UninitialisedRegister, match="vcc_lo"):
        machine.run("s_and_b32 s2, vcc_lo, 1")
