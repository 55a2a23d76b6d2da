"""Packed 16-bit instructions, byte dot products and WMMA."""

import numpy as np
import pytest
from rocm_exact import add, fma, inputs, larger, multiply, number, same, signed, smaller, to_bits
from rocm_machine import Machine, lanes_of

from mlcrt.targets.rocm.emulator.errors import EmulationError, UninitialisedRegister, UnknownInstruction
from mlcrt.targets.rocm.emulator.valu_packed import PACKED

REFERENCE = {
    "v_pk_add_f16": lambda a, b: add(a, b, "f16"), "v_pk_mul_f16": lambda a, b: multiply(a, b, "f16"),
    "v_pk_fma_f16": lambda a, b, c: fma(a, b, c, "f16"), "v_pk_min_f16": smaller, "v_pk_max_f16": larger,
    "v_pk_mul_lo_u16": lambda a, b: a * b, "v_pk_lshlrev_b16": lambda a, b: b << a % 16,
    "v_pk_lshrrev_b16": lambda a, b: b >> a % 16, "v_pk_ashrrev_i16": lambda a, b: b >> (a & 15),
}  # fmt: skip
for k in ("u16", "i16"):
    REFERENCE |= {f"v_pk_add_{k}": lambda a, b: a + b, f"v_pk_sub_{k}": lambda a, b: a - b, f"v_pk_min_{k}": min,
                  f"v_pk_max_{k}": max, f"v_pk_mad_{k}": lambda a, b, c: a * b + c}  # fmt: skip


@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "op_sel"])
@pytest.mark.parametrize("name", REFERENCE)
def test_packed(name, swapped):
    kind, count = PACKED[name]
    words = [np.resize(w, 1024) for w in inputs([kind] * count, seed=11)]
    words = [w.astype(np.uint32) | np.roll(w, 7 + i).astype(np.uint32) << 16 for i, w in enumerate(words)]
    machine = Machine(32)
    for i, w in enumerate(words):
        machine.set_v(2 + i, lanes_of(w))
    machine.set_v(0, 0)
    text = f"{name} v0, " + ", ".join(f"v{2 + i}" for i in range(count))
    if swapped:  # the low result from high halves, the high one from low halves
        text += f" op_sel:[{','.join('1' * count)}] op_sel_hi:[{','.join('0' * count)}]"
    machine.run(text)
    for part in (0, 16):
        take = 16 - part if swapped else part
        operands = zip(*([number(int(x) >> take & 0xFFFF, kind) for x in w] for w in words), strict=True)
        wanted = [to_bits(REFERENCE[name](*o), kind) for o in operands]
        assert same((machine.v(0).ravel() >> part).astype(np.uint16), wanted, kind).all()


def test_packed_modifiers_and_constants():
    machine = Machine(1)
    machine.set_v(1, np.uint32(0x3C00C000))  # low -2, high 1
    machine.run("v_pk_mul_f16 v0, v1, 2.0 op_sel_hi:[1,0]")
    assert (machine.v(0) == 0x4000C400).all()
    machine.run("v_pk_add_f16 v0, v1, v1 neg_lo:[0,1] neg_hi:[1,1] clamp")
    assert (machine.v(0) == 0).all()
    machine.set_s(20, 0x00010002)
    machine.run("v_pk_add_u16 v0, v1, s20")
    assert (machine.v(0) == 0x3C01C002).all()
    with pytest.raises(UnknownInstruction, match="clamp"):
        machine.run("v_pk_add_u16 v0, v1, s20 clamp")
    machine.run("v_mov_b16_e32 v9.l, 1.0", "v_pk_add_f16 v0, v9, v9 op_sel_hi:[0,0]")
    with pytest.raises(UninitialisedRegister, match="high half of v9"):
        machine.run("v_pk_add_f16 v0, v9, v9")


@pytest.mark.parametrize("signs", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_dot4_i32_iu8(signs):
    a, b, c = (np.random.default_rng(i).integers(0, 2**32, 64, np.uint64).astype(np.uint32) for i in range(3))
    machine = Machine(2)
    for i, x in enumerate((a, b, c)):
        machine.set_v(1 + i, lanes_of(x))

    def byte(x, j, is_signed):
        value = int(x) >> 8 * j & 255
        return signed(value, 8) if is_signed else value

    totals = [signed(int(z), 32) + sum(byte(x, j, signs[0]) * byte(y, j, signs[1]) for j in range(4))
              for x, y, z in zip(a, b, c, strict=True)]  # fmt: skip
    machine.run(f"v_dot4_i32_iu8 v0, v1, v2, v3 neg_lo:[{signs[0]},{signs[1]},0]")
    np.testing.assert_array_equal(machine.v(0).ravel(), [t & 0xFFFFFFFF for t in totals])
    machine.set_v(3, 0x7FFFFFFF)
    machine.set_v(1, 0x01010101)
    machine.set_v(2, 0x01010101)
    machine.run(f"v_dot4_i32_iu8 v0, v1, v2, v3 neg_lo:[{signs[0]},{signs[1]},0] clamp")
    assert (machine.v(0) == 0x7FFFFFFF).all()


def test_dot4_u32_u8():
    machine = Machine(1)
    for i, x in enumerate((0xFF020304, 0x02FF0101, 10)):
        machine.set_v(1 + i, np.uint32(x))
    machine.run("v_dot4_u32_u8 v0, v1, v2, v3")
    assert (machine.v(0) == 255 * 2 + 2 * 255 + 3 + 4 + 10).all()


# WMMA --------------------------------------------------------------------------------------------------------------
def bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack_rows(matrix_words: np.ndarray, registers: int) -> np.ndarray:
    """[16 rows, bytes] → per register [32 lanes]: lane l holds row l % 16."""
    rows = np.ascontiguousarray(matrix_words).view(np.uint8).reshape(16, -1).view(np.uint32)
    assert rows.shape[1] == registers
    return [np.tile(rows[:, r], 2) for r in range(registers)]


def place(c: np.ndarray) -> list[np.ndarray]:
    """Matrix [16, 16] → 8 registers of 32 lanes."""
    return [np.concatenate([c[2 * r], c[2 * r + 1]]) for r in range(8)]


def collect(machine: Machine, index: int, dtype) -> np.ndarray:
    out = np.zeros((16, 16), dtype)
    for r in range(8):
        lanes = machine.v(index + r, dtype)[0]
        out[2 * r], out[2 * r + 1] = lanes[:16], lanes[16:]
    return out


def setup(a_words, b_words, registers: int) -> Machine:
    machine = Machine(1)
    for r, (x, y) in enumerate(zip(pack_rows(a_words, registers), pack_rows(b_words, registers), strict=True)):
        machine.set_v(10 + r, x)
        machine.set_v(20 + r, y)
    return machine


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_wmma_f32(kind):
    rng = np.random.default_rng(4)
    a, b, c = rng.normal(size=(3, 16, 16)).astype(np.float32)
    if kind == "f16":
        words = [x.astype(np.float16) for x in (a, b)]
        exact = [x.astype(np.float64) for x in words]
    else:
        words = [bf16(x) for x in (a, b)]
        exact = [(x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in words]
    machine = setup(*words, 8)
    for r, lanes in enumerate(place(c)):
        machine.set_v(30 + r, lanes)
    machine.run(f"v_wmma_f32_16x16x16_{kind} v[30:37], v[10:17], v[20:27], v[30:37]")
    np.testing.assert_allclose(collect(machine, 30, np.float32), exact[0] @ exact[1].T + c, rtol=1e-6, atol=1e-6)
    machine.run(f"v_wmma_f32_16x16x16_{kind} v[40:47], v[10:17], v[20:27], 1.0")
    np.testing.assert_allclose(collect(machine, 40, np.float32), exact[0] @ exact[1].T + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("high", [0, 1])
def test_wmma_16_bit_results(kind, high):
    rng = np.random.default_rng(5)
    a, b = rng.integers(-3, 4, (2, 16, 16)).astype(np.float32)
    c = rng.integers(-20, 20, (16, 16)).astype(np.float32)
    encode = (lambda x: x.astype(np.float16).view(np.uint16)) if kind == "f16" else bf16
    machine = setup(encode(a), encode(b), 8)
    for r, lanes in enumerate(place(encode(c).astype(np.uint32))):
        machine.set_v(30 + r, lanes << (16 * high) | np.uint32(0x1234 << 16 * (1 - high)))
    machine.run(f"v_wmma_{kind}_16x16x16_{kind} v[30:37], v[10:17], v[20:27], v[30:37] op_sel:[0,0,{high}]")
    got = collect(machine, 30, np.uint32)
    np.testing.assert_array_equal(got >> (16 * high) & 0xFFFF, encode(a @ b.T + c))
    assert (got >> (16 * (1 - high)) & 0xFFFF == 0x1234).all()


@pytest.mark.parametrize("signs", [(0, 0), (1, 1), (1, 0)])
@pytest.mark.parametrize("bits", [8, 4])
def test_wmma_i32(signs, bits):
    rng = np.random.default_rng(6)
    raw = rng.integers(0, 1 << bits, (2, 16, 16))
    values = [np.where((m >> (bits - 1) & 1) & s == 1, m - (1 << bits), m) for m, s in zip(raw, signs, strict=True)]
    words = [m.astype(np.uint8) if bits == 8 else (m[:, ::2] | m[:, 1::2] << 4).astype(np.uint8) for m in raw]
    c = rng.integers(-1000, 1000, (16, 16)).astype(np.int32)
    size = 4 if bits == 8 else 2
    machine = setup(*words, size)
    for r, lanes in enumerate(place(c)):
        machine.set_v(30 + r, lanes)
    text = f"v_wmma_i32_16x16x16_iu{bits} v[30:37], v[10:{9 + size}], v[20:{19 + size}], v[30:37]"
    machine.run(f"{text} neg_lo:[{signs[0]},{signs[1]},0]")
    np.testing.assert_array_equal(collect(machine, 30, np.int32), values[0] @ values[1].T + c)


def test_wmma_wants_repeated_operands_and_all_lanes():
    machine = setup(np.ones((16, 16), np.float16), np.ones((16, 16), np.float16), 8)
    text = "v_wmma_f32_16x16x16_f16 v[30:37], v[10:17], v[20:27], 0"
    machine.exec = np.arange(32) < 31
    with pytest.raises(EmulationError, match="inactive"):
        machine.run(text)
    machine.exec = np.ones(32, bool)
    machine.set_v(12, np.arange(32, dtype=np.uint32))
    with pytest.raises(EmulationError, match="operand A do not repeat"):
        machine.run(text)
    with pytest.raises(UninitialisedRegister):
        machine.run("v_wmma_f32_16x16x16_f16 v[30:37], v[20:27], v[20:27], v[50:57]")
    with pytest.raises(UnknownInstruction, match="wave32"):
        Machine(1, lanes=64).run(text)
