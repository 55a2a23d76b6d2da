"""What waves do to each other: LDS races and the barriers that prevent them; atomics."""

import numpy as np
import pytest
from rocm_machine import Machine
from test_rocm_memory import LANE, Rig, group

from mlcrt.targets.rocm.emulator.atomics import OPERATIONS
from mlcrt.targets.rocm.emulator.errors import OutOfBounds, Race


# races: two waves of one workgroup ---------------------------------------------------------------------------------
def pair() -> Machine:
    m = Machine(2, granule=1)
    m.set_v(40, (np.arange(2)[:, None] * 128 + LANE * 4).astype(np.uint32))
    m.set_v(0, 1)
    return m


def as_wave(m: Machine, wave: int, *texts: str) -> None:
    m.waves.select(np.array([wave]))
    m.run(*texts)
    m.waves.select(None)


def test_own_bytes_do_not_race():
    m = pair()
    m.run("ds_store_b32 v40, v0", "ds_load_b32 v1, v40", "ds_store_b32 v40, v1")


@pytest.mark.parametrize("order", ["write read", "read write", "write write", "two readers then write"])
def test_races(order):
    m = pair()
    m.run("ds_store_b32 v40, v0")
    m.waves.lds.barrier(np.array([0]))
    m.set_v(40, LANE * 4)
    ops = {"write": "ds_store_b32 v40, v0", "read": "ds_load_b32 v1, v40"}
    if order == "two readers then write":
        m.run(ops["read"])
        wave, op = 1, "write"
    else:
        first, op = order.split()
        as_wave(m, 0, ops[first])
        wave = 1
    with pytest.raises(Race, match="LDS byte 0 .*no barrier"):
        as_wave(m, wave, ops[op])


def test_two_waves_writing_in_one_instruction_race():
    m = pair()
    m.set_v(40, LANE * 4)
    with pytest.raises(Race, match="written here and by wave"):
        m.run("ds_store_b32 v40, v0")


def test_a_barrier_orders():
    m = pair()
    as_wave(m, 0, "ds_store_b32 v40, v0")
    m.waves.lds.barrier(np.array([0]))
    m.set_v(40, LANE * 4)
    m.run("ds_load_b32 v1, v40")
    m.waves.lds.barrier(np.array([0]))
    as_wave(m, 1, "ds_store_b32 v40, v0")


def test_neighbouring_bytes_do_not_race():
    m = pair()
    m.set_v(40, (LANE * 2 + np.arange(2)[:, None]).astype(np.uint32))
    m.run("ds_store_b8 v40, v0")


# atomics -----------------------------------------------------------------------------------------------------------
KINDS = {"u32": np.uint32, "b32": np.uint32, "i32": np.int32, "f32": np.float32, "u64": np.uint64, "b64": np.uint64,
         "i64": np.int64}  # fmt: skip
STEP = {
    "add": lambda o, v: o + v, "sub": lambda o, v: o - v, "and": lambda o, v: o & v, "or": lambda o, v: o | v,
    "xor": lambda o, v: o ^ v, "min": min, "max": max, "swap": lambda o, v: v,
}  # fmt: skip
ATOMICS = [(n, k) for n, kinds in OPERATIONS.items() for k in kinds]


def sequence(name, kind, start, values, compare):
    """Cell contents after all lanes in order, and what each lane saw."""
    dtype, cells, seen = KINDS[kind], start.copy(), []
    for lane, v in enumerate(values):
        old = cells[lane % 4]
        seen.append(old)
        if name == "cmpswap":
            cells[lane % 4] = v if old == compare[lane] else old
        elif kind == "f32":
            cells[lane % 4] = np.float32(STEP[name](old, v))
        else:
            bits = STEP[name](int(old), int(v)) & ((1 << 8 * dtype().itemsize) - 1)
            cells[lane % 4] = np.array(bits, f"u{dtype().itemsize}").view(dtype)
    return cells, np.array(seen, dtype)


ATOMIC_CASES = [
    (space, name, kind, returns)
    for name, kind in ATOMICS
    for space in ("global", "flat", "ds")
    for returns in (False, True)
    if (space, name, returns) != ("ds", "swap", False)  # LDS has no exchange without a result
]


@pytest.mark.parametrize(("space", "name", "kind", "returns"), ATOMIC_CASES)
def test_atomics(space, name, kind, returns):
    dtype = KINDS[kind]
    size = dtype().itemsize
    rng = np.random.default_rng(12)
    draw = (lambda n: rng.integers(-4, 5, n).astype(np.float32)) if kind == "f32" else (
        lambda n: rng.integers(0, 2 ** (8 * size), n, np.uint64, endpoint=False).astype(f"u{size}").view(dtype)
    ) if size == 4 else (lambda n: rng.integers(0, 2**64, n, np.uint64, endpoint=False).view(dtype))  # fmt: skip
    start, values = draw(4), draw(32)
    compare = np.where(LANE < 8, start[LANE % 4], draw(32))
    m = Machine(1, granule=4)
    cells = start.copy()
    m.set_v(41, 0)
    at = LANE % 4 * size
    if space == "ds":
        m.waves.lds.data[: 4 * size] = start.view(np.uint8)
        m.waves.lds.writer[:] = 1
    else:
        base = m.waves.memory.map(cells, "cells").start
        at = at + base
        m.set_v(41, (at >> 32).astype(np.uint32))
    m.set_v(40, (at & 0xFFFFFFFF).astype(np.uint32))

    def put(index, array):
        words = np.ascontiguousarray(array).view(np.uint32).reshape(32, -1)
        for i in range(words.shape[1]):
            m.set_v(index + i, words[:, i])

    w = size // 4
    put(4, values)
    put(4 + w, compare)
    count = 2 if name == "cmpswap" else 1
    out = group(20, size) + ", " if returns else ""
    if space == "ds":
        data = ", ".join(group(4 + i * w, size) for i in range(count))
        spelled = {"swap": "storexchg", "cmpswap": "cmpstore"}.get(name, name)
        m.run(f"ds_{spelled}{'_rtn' if returns else ''}_{kind} {out}v40, {data}")
        cells = m.waves.lds.data[: 4 * size].view(dtype)
    else:
        m.run(f"{space}_atomic_{name}_{kind} {out}v[40:41], {group(4, size * count)}, off{' glc' if returns else ''}")
    wanted, seen = sequence(name, kind, start, values, compare)
    np.testing.assert_array_equal(cells, wanted)
    if returns:
        got = np.stack([m.v(20 + i)[0] for i in range(w)], axis=1).view(dtype)[:, 0]
        np.testing.assert_array_equal(got, seen)


def test_atomics_do_not_race_with_each_other_but_with_loads():
    m = pair()
    as_wave(m, 0, "ds_store_b32 v40, v0")
    m.waves.lds.barrier(np.array([0]))
    m.set_v(40, 0)
    m.run("ds_add_u32 v40, v0")
    assert m.waves.lds.data[:4].view(np.uint32)[0] == 65
    with pytest.raises(Race, match="an atomic"):
        as_wave(m, 1, "ds_load_b32 v1, v40")


def test_atomics_are_checked():
    rig = Rig("global", step=33)
    with pytest.raises(OutOfBounds):
        rig.machine.run("global_atomic_add_u32 v[40:41], v40, off")
    rig.machine.exec = LANE < 2
    with pytest.raises(OutOfBounds, match="not aligned"):
        rig.machine.run("global_atomic_add_u32 v[40:41], v40, off")
