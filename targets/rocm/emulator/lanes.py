"""Movement between lanes of a wave: DPP controls as data, and the permute, readlane and mbcnt instructions.

DPP source: RDNA3 ISA guide, "Data Parallel Primitives". Rows have 16 lanes, banks 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import UnknownInstruction
from .operands import Operand
from .parser import Instruction, Kernel
from .state import pack_mask
from .table import handles


@dataclass
class Control:
    """source: lane each lane reads [lanes]; valid: whether that lane exists; writable: row and bank mask;
    zero: bound_ctrl, invalid lanes read 0 instead of keeping their destination; inactive: fi, may read lanes that
    EXEC masks out."""

    source: np.ndarray
    valid: np.ndarray
    writable: np.ndarray
    zero: bool
    inactive: bool

    def _readable(self, waves) -> np.ndarray:
        active = waves.exec_mask()
        if self.inactive or active is None:
            return np.broadcast_to(self.valid, (waves.n, waves.lanes))
        return self.valid & active[:, self.source]

    def permute(self, waves, bits: np.ndarray) -> np.ndarray:
        return np.where(self._readable(waves), bits[:, self.source], np.uint32(0))

    def write_mask(self, waves) -> np.ndarray:
        active = waves.exec_mask()
        mask = np.broadcast_to(self.writable, (waves.n, waves.lanes))
        if not self.zero:
            mask = mask & self._readable(waves)
        return mask if active is None else mask & active

    def read_lanes(self, waves) -> np.ndarray:
        """Bits [n] of lanes that some active lane reads."""
        needed = np.zeros((waves.n, waves.lanes), bool)
        wave, lane = np.nonzero(self._readable(waves) & self.write_mask(waves))
        needed[wave, self.source[lane]] = True
        return pack_mask(needed)


def dpp_control(modifiers: dict, lanes: int) -> Control | None:
    """The lane movement that an instruction's modifiers ask for, None for none."""
    lane = np.arange(lanes)
    row, within = lane & ~15, lane & 15
    valid = np.ones(lanes, bool)
    if "quad_perm" in modifiers:
        chosen = (lane & ~3) + np.array(modifiers["quad_perm"])[lane & 3]
    elif "dpp8" in modifiers:
        chosen = (lane & ~7) + np.array(modifiers["dpp8"])[lane & 7]
    elif "row_shl" in modifiers:
        chosen, valid = row + (within + modifiers["row_shl"]) % 16, within + modifiers["row_shl"] < 16
    elif "row_shr" in modifiers:
        chosen, valid = row + (within - modifiers["row_shr"]) % 16, within - modifiers["row_shr"] >= 0
    elif "row_ror" in modifiers:
        chosen = row + (within - modifiers["row_ror"]) % 16
    elif "row_mirror" in modifiers:
        chosen = row + 15 - within
    elif "row_half_mirror" in modifiers:
        chosen = (lane & ~7) + 7 - (lane & 7)
    elif "row_share" in modifiers:
        chosen = row + modifiers["row_share"]
    elif "row_xmask" in modifiers:
        chosen = row + (within ^ modifiers["row_xmask"])
    else:
        return None
    rows = (modifiers.get("row_mask", 15) >> ((lane >> 4) & 3)) & 1
    banks = (modifiers.get("bank_mask", 15) >> ((lane >> 2) & 3)) & 1
    zero = bool(modifiers.get("bound_ctrl", 0)) or "dpp8" in modifiers
    return Control(chosen, valid, (rows & banks).astype(bool), zero, bool(modifiers.get("fi", 0)))


def _lane_bits(waves, lane: np.ndarray) -> np.ndarray:
    return waves.mask_type(1) << lane.astype(waves.mask_type)


def _scalar_of(operand: Operand):
    """A scalar source of a lane instruction: uint32 [n]."""
    if operand.kind == "literal":
        value = operand.bits(32)
        return lambda w: np.full(w.n, value, np.uint32)
    return lambda w: w.read_scalar(operand.index)


@handles("v_readlane_b32")
def _readlane(instruction: Instruction, kernel: Kernel):
    target, vector, lane_operand = instruction.operands
    lane_of = _scalar_of(lane_operand)

    def step(waves):
        lane = (lane_of(waves) % waves.lanes).astype(np.int64)
        waves.require(vector.index, None, _lane_bits(waves, lane))
        waves.write_scalar(target.index, waves.read_vector(vector.index)[np.arange(waves.n), lane])

    return step


@handles("v_readfirstlane_b32")
def _readfirstlane(instruction: Instruction, kernel: Kernel):
    target, operand = instruction.operands

    def step(waves):
        if operand.kind != "v":
            waves.write_scalar(target.index, _scalar_of(operand)(waves))
            return
        active = waves.exec_mask()
        # with no lane active the instruction reads lane 0
        lane = np.zeros(waves.n, np.int64) if active is None else np.argmax(active, axis=1)
        waves.require(operand.index, None, _lane_bits(waves, lane))
        waves.write_scalar(target.index, waves.read_vector(operand.index)[np.arange(waves.n), lane])

    return step


@handles("v_writelane_b32")
def _writelane(instruction: Instruction, kernel: Kernel):
    target, value, lane_operand = instruction.operands
    value_of, lane_of = _scalar_of(value), _scalar_of(lane_operand)

    def step(waves):
        lane = lane_of(waves) % waves.lanes
        mask = waves.lane_index == lane[:, None]
        waves.write_vector(target.index, value_of(waves)[:, None], mask=mask)

    return step


def _permlane16(crossed: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        target, vector, low, high = instruction.operands
        low_of, high_of = _scalar_of(low), _scalar_of(high)
        fetch_inactive, zero = (tuple(instruction.modifiers.get("op_sel", ())) + (0, 0))[:2]

        def step(waves):
            select = low_of(waves).astype(np.uint64) | (high_of(waves).astype(np.uint64) << 32)
            lane = np.arange(waves.lanes)
            nibble = (select[:, None] >> (4 * (lane & 15)).astype(np.uint64)[None]) & np.uint64(15)
            base = (lane & ~15) ^ (16 if crossed else 0)
            chosen = base[None] + nibble.astype(np.int64)
            _move(waves, target.index, vector.index, chosen, bool(fetch_inactive), bool(zero))

        return step

    return binder


def _move(waves, target: int, vector: int, chosen: np.ndarray, inactive: bool, zero: bool) -> None:
    """Lane movement with a lane index per wave and lane [n, lanes]."""
    active = waves.exec_mask()
    readable = np.ones(chosen.shape, bool)
    if active is not None and not inactive:
        readable = np.take_along_axis(active, chosen, 1)
    writes = readable | zero
    if active is not None:
        writes = writes & active
    needed = np.zeros(chosen.shape, bool)
    wave, lane = np.nonzero(readable & writes)
    needed[wave, chosen[wave, lane]] = True
    waves.require(vector, None, pack_mask(needed))
    bits = np.take_along_axis(waves.read_vector(vector), chosen, 1)
    waves.write_vector(target, np.where(readable, bits, np.uint32(0)), mask=writes)


handles("v_permlane16_b32")(_permlane16(False))
handles("v_permlanex16_b32")(_permlane16(True))


@handles("v_permlane64_b32")
def _permlane64(instruction: Instruction, kernel: Kernel):
    target, vector = instruction.operands

    def step(waves):
        if waves.lanes == 32:
            return  # the ISA guide: a no-op in wave32
        chosen = np.broadcast_to(np.arange(64) ^ 32, (waves.n, 64))
        _move(waves, target.index, vector.index, chosen, True, True)

    return step


def bpermute(waves, target: int, address: np.ndarray, vector: int, reach: int = 32) -> None:
    """ds_bpermute_b32: each lane takes the value of lane address / 4, of the `reach` lanes around it; inactive source
    lanes give 0."""
    reach = min(waves.lanes, reach)
    chosen = ((address >> np.uint32(2)) % np.uint32(reach)).astype(np.int64)
    around = (waves.lane_index & ~np.uint32(reach - 1)).astype(np.int64)
    chosen = np.broadcast_to(chosen, (waves.n, waves.lanes)) + around
    active = waves.exec_mask()
    readable = np.ones(chosen.shape, bool) if active is None else np.take_along_axis(active, chosen, 1)
    needed = np.zeros(chosen.shape, bool)
    wave, lane = np.nonzero(readable if active is None else readable & active)
    needed[wave, chosen[wave, lane]] = True
    waves.require(vector, None, pack_mask(needed))
    bits = np.take_along_axis(waves.read_vector(vector), chosen, 1)
    waves.write_vector(target, np.where(readable, bits, np.uint32(0)))


def permute(waves, target: int, address: np.ndarray, vector: int, reach: int = 32) -> None:
    """ds_permute_b32: each lane sends its value to lane address / 4; lanes that get none read 0, the highest sender
    wins."""
    waves.require(vector)
    lanes = min(waves.lanes, reach)
    to = np.broadcast_to((address >> np.uint32(2)) % np.uint32(lanes), (waves.n, waves.lanes)).astype(np.int64)
    to = to + (waves.lane_index & ~np.uint32(lanes - 1)).astype(np.int64)
    active = waves.exec_mask()
    wave, lane = np.nonzero(np.ones(to.shape, bool) if active is None else active)
    result = np.zeros((waves.n, waves.lanes), np.uint32)
    result[wave, to[wave, lane]] = waves.read_vector(vector)[wave, lane]
    waves.write_vector(target, result)


def swizzle_lanes(offset: int | str) -> np.ndarray:
    """The lane each of 32 lanes reads under ds_swizzle_b32 with this offset (number or LLVM's swizzle(...) text)."""
    lane = np.arange(32)
    code = swizzle_code(offset) if isinstance(offset, str) else offset
    if code >= 0xE000:
        raise UnknownInstruction("ds_swizzle in FFT mode is not emulated")
    if code >= 0xC000:
        rotate, keep = (code >> 5) & 31, code & 31
        rotate = -rotate if code & 0x400 else rotate
        return (lane & keep) | ((lane + rotate) & 31 & ~keep)
    if code & 0x8000:
        return (lane & ~3) + np.array([(code >> (2 * i)) & 3 for i in range(4)])[lane & 3]
    return (((lane & (code & 31)) | ((code >> 5) & 31)) ^ ((code >> 10) & 31)) & 31


def swizzle_code(text: str) -> int:
    """'swizzle(SWAP,16)' → the 16-bit offset. Modes: QUAD_PERM, BITMASK_PERM, BROADCAST, SWAP, REVERSE."""
    mode, *numbers = [p.strip().strip('"') for p in text[len("swizzle(") : -1].split(",")]
    if mode == "BITMASK_PERM":
        masks = {"and": 0, "or": 0, "xor": 0}
        for i, c in enumerate(reversed(numbers[0])):
            masks["and"] |= (c in "pi") << i
            masks["or"] |= (c == "1") << i
            masks["xor"] |= (c == "i") << i
        return masks["and"] | (masks["or"] << 5) | (masks["xor"] << 10)
    values = [int(n, 0) for n in numbers]
    if mode == "QUAD_PERM":
        return 0x8000 | sum(v << (2 * i) for i, v in enumerate(values))
    if mode == "SWAP":
        return 31 | (values[0] << 10)
    if mode == "REVERSE":
        return 31 | ((values[0] - 1) << 10)
    if mode == "BROADCAST":
        size, lane = values
        return (~(size - 1) & 31) | (lane << 5)
    raise UnknownInstruction(f"ds_swizzle mode {mode} is not emulated")
