"""Global, LDS, scratch and scalar memory: every width, halves, bounds, shadows, races, atomics, counts."""

import numpy as np
import pytest
from rocm_machine import Machine

from mlcrt.targets.rocm.emulator.errors import OutOfBounds, UninitialisedRegister, Unwritten
from mlcrt.targets.rocm.emulator.lds import conflict_cycles
from mlcrt.targets.rocm.emulator.report import distinct_lines

LANE = np.arange(32)
WIDTHS = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
STORES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
D16 = {"u8": 1, "i8": 1, "b16": 2}
SPACES = ("global", "flat", "scratch", "ds")


class Rig:
    """A machine whose v[40:41] address 1024 bytes of one memory space, `step` bytes per lane."""

    def __init__(self, space: str, step: int = 16, waves: int = 1):
        self.space, self.step = space, step
        self.machine = m = Machine(waves, lds=1024, granule=1, scratch=1024)
        self.data = np.random.default_rng(8).integers(0, 256, 1024).astype(np.uint8)
        self.start = 0
        if space in ("global", "flat"):
            self.start = m.waves.memory.map(self.data, "data").start
        elif space == "ds":
            m.waves.lds.data[:1024] = self.data
            m.waves.lds.writer[:] = 1  # an earlier epoch
        else:
            m.waves.scratch.data[:] = np.tile(self.data, 32 * waves)
            m.waves.scratch.written[:] = 1
        at = self.start + LANE * step
        m.set_v(40, (at & 0xFFFFFFFF).astype(np.uint32))
        m.set_v(41, (at >> 32).astype(np.uint32))

    def bytes_of(self, lane: int) -> np.ndarray:
        if self.space == "ds":
            return self.machine.waves.lds.data
        if self.space == "scratch":
            return self.machine.waves.scratch.data[1024 * lane : 1024 * lane + 1024]
        return self.data

    def load(self, kind: str, target: str, rest: str = "") -> None:
        operands = {"ds": "v40", "scratch": "v40, off"}.get(self.space, "v[40:41], off")
        self.machine.run(f"{self.space}_load_{kind} {target}, {operands}{rest}")

    def store(self, kind: str, source: str, rest: str = "") -> None:
        text = {"ds": f"v40, {source}", "scratch": f"v40, {source}, off"}.get(self.space, f"v[40:41], {source}, off")
        self.machine.run(f"{self.space}_store_{kind} {text}{rest}")


def group(index: int, size: int) -> str:
    return f"v{index}" if size <= 4 else f"v[{index}:{index + size // 4 - 1}]"


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("step", [16, 20, 7], ids=["aligned", "words", "bytes"])
def test_loads(space, kind, step):
    size, rig = WIDTHS[kind], Rig(space, step)
    rig.load(kind, group(0, size), " offset:8")
    for lane in range(32):
        at = lane * step + 8
        raw = rig.bytes_of(lane)[at : at + size].tobytes()
        if size < 4:
            wanted = [int.from_bytes(raw, "little", signed=kind[0] == "i") & 0xFFFFFFFF]
        else:
            wanted = np.frombuffer(raw, np.uint32)
        np.testing.assert_array_equal([rig.machine.v(r)[0, lane] for r in range(max(1, size // 4))], wanted)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("step", [16, 20, 17], ids=["aligned", "words", "bytes"])
def test_stores(space, kind, step):
    size, rig = STORES[kind], Rig(space, step)
    values = np.random.default_rng(9).integers(0, 2**32, (4, 32), np.uint64).astype(np.uint32)
    for r in range(4):
        rig.machine.set_v(r, values[r])
    before = [rig.bytes_of(lane).copy() for lane in range(32)]
    rig.machine.exec = LANE % 3 != 1
    rig.store(kind, group(0, size), " offset:4")
    wanted = before[0].copy() if space != "scratch" else None
    for lane in range(32):
        mine = before[lane] if wanted is None else wanted
        if lane % 3 != 1:
            raw = np.ascontiguousarray(values[:, lane]).view(np.uint8)[:size]
            mine[lane * step + 4 : lane * step + 4 + size] = raw
    for lane in range(32):
        np.testing.assert_array_equal(rig.bytes_of(lane)[:1024], before[lane] if wanted is None else wanted)


@pytest.mark.parametrize("high", [False, True], ids=["low", "high"])
@pytest.mark.parametrize("kind", D16)
@pytest.mark.parametrize("space", SPACES)
def test_half_register_loads_and_stores(space, kind, high):
    rig = Rig(space)
    rig.machine.set_v(0, 0x11112222)
    if space == "ds":
        kind = kind.replace("b16", "u16")
        rig.load(f"{kind}_d16{'_hi' if high else ''}", "v0")
    else:
        rig.load(f"d16_{'hi_' if high else ''}{kind}", "v0")
    for lane in range(32):
        raw = rig.bytes_of(lane)[lane * 16 : lane * 16 + (1 if "8" in kind else 2)].tobytes()
        value = int.from_bytes(raw, "little", signed=kind[0] == "i") & 0xFFFF
        assert rig.machine.v(0)[0, lane] == (value << 16 | 0x2222 if high else 0x11110000 | value)
    if high:
        bits = "b8" if "8" in kind else "b16"
        rig.machine.set_v(0, (LANE + 0x70).astype(np.uint32) << 16)
        rig.store(f"{bits}_d16_hi" if space == "ds" else f"d16_hi_{bits}", "v0")
        assert rig.bytes_of(5)[80] == 0x75


@pytest.mark.parametrize("kind", ["b32", "b64"])
@pytest.mark.parametrize("stride", ["", "_stride64"])
def test_ds_two_addresses(kind, stride):
    size = int(kind[1:]) // 8
    unit = size * (64 if stride else 1)
    first, second = (0, 1) if stride else (1, 20)
    rig = Rig("ds", step=size)
    words = size // 4
    rig.machine.run(f"ds_load_2addr{stride}_{kind} v[0:{2 * words - 1}], v40 offset0:{first} offset1:{second}")
    for lane in range(32):
        wanted = [rig.data[lane * size + o * unit :][:size].view(np.uint32) for o in (first, second)]
        got = [rig.machine.v(r)[0, lane] for r in range(2 * words)]
        np.testing.assert_array_equal(got, np.concatenate(wanted))
    rig.machine.run(
        f"ds_store_2addr{stride}_{kind} v40, {group(words, size)}, {group(0, size)} offset0:{first} offset1:{second}"
    )
    # where the two ranges overlap the second store wins
    second_values = np.stack([rig.machine.v(r)[0] for r in range(words)], axis=1)
    at = second * unit
    np.testing.assert_array_equal(
        rig.machine.waves.lds.data[at : at + 32 * size].view(np.uint32), second_values.ravel()
    )


def test_scalar_base_and_negative_offset():
    rig = Rig("global")
    rig.machine.set_s64(10, rig.start + 64)
    rig.machine.set_v(2, LANE * 4)
    rig.machine.run("global_load_b32 v0, v2, s[10:11] offset:-64")
    np.testing.assert_array_equal(rig.machine.v(0)[0], rig.data[:128].view(np.uint32))


@pytest.mark.parametrize("words", [1, 2, 3, 4, 8, 16])
def test_scalar_loads(words):
    rig = Rig("global", waves=2)
    rig.machine.waves.scc[:] = True
    rig.machine.set_s64(10, rig.start)
    rig.machine.set_s(12, np.array([0, 128]))
    target = f"s[20:{19 + words}]" if words > 1 else "s20"
    rig.machine.run(f"s_load_b{32 * words} {target}, s[10:11], 0x40")
    for i in range(words):
        assert (rig.machine.s(20 + i) == rig.data.view(np.uint32)[16 + i]).all()
    rig.machine.run(f"s_load_b{32 * words} {target}, s[10:11], s12 offset:0x40")
    assert rig.machine.s(20)[1] == rig.data.view(np.uint32)[48]
    rig.machine.run("s_load_b32 s20, s[10:11], null")
    assert rig.machine.s(20)[0] == rig.data.view(np.uint32)[0] and rig.machine.scc.all()


def test_accesses_to_several_buffers():
    m = Machine(2)
    a, b = np.arange(64, dtype=np.uint32), np.arange(64, dtype=np.uint32) + 1000
    starts = [m.waves.memory.map(x, n, written=n == "a").start for x, n in ((a, "a"), (b, "b"))]
    at = np.where(LANE % 2, starts[1], starts[0]) + LANE * 4
    m.set_v(40, (at & 0xFFFFFFFF).astype(np.uint32))
    m.set_v(41, (at >> 32).astype(np.uint32))
    m.set_v(0, 7)
    m.run("global_store_b32 v[40:41], v0, off", "global_load_b32 v1, v[40:41], off")
    assert (m.v(1) == 7).all() and (a[0:32:2] == 7).all() and (b[1:32:2] == 7).all() and a[1] == 1
    m.exec = LANE == 3
    with pytest.raises(Unwritten, match="bytes 16 to 19 of buffer 'b'.*lane 3"):
        m.run("global_load_b32 v1, v[40:41], off offset:4")


# errors ------------------------------------------------------------------------------------------------------------
def test_out_of_bounds_names_lane_address_and_buffer():
    rig = Rig("global", step=33)
    with pytest.raises(
        OutOfBounds, match=r"4 bytes at 0x20000+3ff are out of bounds: .*'data', offset 1023 of its 1024"
    ):
        rig.load("b32", "v0")
    rig.machine.exec = LANE < 31
    rig.load("b32", "v0")
    with pytest.raises(OutOfBounds, match="lane 30"):
        rig.store("b32", "v0", " offset:31")


def test_out_of_bounds_in_lds_and_scratch():
    for space in ("ds", "scratch"):
        rig = Rig(space, step=32)
        with pytest.raises(OutOfBounds, match="address 1024.*lane 31.*|1024 bytes.*lane 31"):
            rig.load("b32", "v0", " offset:32")
        with pytest.raises(OutOfBounds):
            rig.load("b64", "v[0:1]", " offset:28")


def test_read_only_buffers():
    m = Machine(1)
    data = np.zeros(64, np.uint32)
    data.flags.writeable = False
    start = m.waves.memory.map(data, "weights").start
    m.set_v(40, start & 0xFFFFFFFF)
    m.set_v(41, start >> 32)
    with pytest.raises(OutOfBounds, match="'weights' is read-only"):
        m.run("global_store_b32 v[40:41], v40, off")


def test_overlapping_buffers_are_refused():
    m = Machine(1)
    data = np.zeros(64, np.uint8)
    m.waves.memory.map(data, "one", address=4096)
    with pytest.raises(ValueError, match="overlaps one"):
        m.waves.memory.map(data, "two", address=4096 + 63)
    m.waves.memory.map(data, "two", address=4096 + 64)


def test_unwritten_memory():
    m = Machine(1, granule=4, scratch=128)
    m.set_v(40, LANE * 4)
    m.set_v(0, 5)
    m.exec = LANE < 30
    m.run("ds_store_b32 v40, v0", "ds_load_b32 v1, v40", "scratch_store_b16 v40, v0, off")
    with pytest.raises(Unwritten, match="scratch address 0"):
        m.run("scratch_load_b32 v1, v40, off")
    m.run("scratch_load_u16 v1, v40, off")
    m.exec = LANE < 31
    with pytest.raises(Unwritten, match="LDS byte 120.*lane 30"):
        m.run("ds_load_b32 v1, v40")
    m.run("v_mov_b16_e32 v9.l, 0", "ds_store_b16 v40, v9")
    with pytest.raises(UninitialisedRegister, match="v9"):
        m.run("ds_store_b32 v40, v9")


def test_scratch_addressing():
    m = Machine(1)
    m.set_v(0, LANE)
    m.set_s(20, 8)
    m.run("scratch_store_b32 off, v0, off offset:12", "scratch_load_b32 v1, off, s20 offset:4")
    np.testing.assert_array_equal(m.v(1)[0], LANE)
    m.set_v(2, 4)
    m.run("scratch_load_b32 v1, v2, s20")
    np.testing.assert_array_equal(m.v(1)[0], LANE)


# counts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("step", "size", "lines"), [(4, 4, 2), (16, 16, 8), (64, 4, 32), (0, 4, 1), (2, 2, 1)])
def test_lines(step, size, lines):
    address = np.stack([4096 + LANE * step, (1 << 40) + LANE[::-1] * step])
    assert distinct_lines(address, size)[0] == 2 * lines
    assert distinct_lines(address, size)[1] == 2 * (32 if step == 64 * 2 else -(-lines // 2))
    assert distinct_lines(address + 62, 4)[0] >= 2 * lines


@pytest.mark.parametrize(
    ("stride", "width", "cycles"),
    [(4, 4, 0), (8, 4, 1), (128, 4, 31), (0, 4, 0), (132, 4, 0), (16, 16, 0), (8, 8, 0), (128, 16, 4 * 7)],
)
def test_bank_conflicts(stride, width, cycles):
    assert conflict_cycles((LANE * stride)[None], width) == cycles


def test_traffic_is_counted():
    rig = Rig("global", waves=3)
    rig.machine.exec = LANE < 8
    rig.load("b128", "v[0:3]")
    t = rig.machine.report.traffic[("global", "load", 16)]
    assert (t.instructions, t.lanes, t.bytes, t.lines64, t.lines128) == (3, 24, 384, 6, 3)
    assert rig.machine.report.bytes("global") == 384 and rig.machine.report.coalescing() == 1.0
