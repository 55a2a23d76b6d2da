"""Registers of the waves that run together, and which of their lanes were ever written.

Vector registers are uint32 [register, wave, lane], scalar ones uint32 [register, wave]. An instruction runs for the
*selected* waves: all of them (a slice, so that reads are views) or an index array. For every vector register two bit
masks per wave tell which lanes hold a defined low and high half; `loose` is the set of registers where some are not,
so that fully defined registers cost one set lookup.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import UninitialisedRegister
from .operands import EXEC_LO, NULL

_ALL = slice(None)
SGPRS = 128


@dataclass
class Flush:
    """Which denormals the float mode flushes: LLVM's denorm mode 3 keeps all, 0 flushes inputs and outputs."""

    single: bool = False
    half: bool = False


class Counters:
    """LDS and scalar-memory operations in flight (lgkmcnt). LDS operations finish in order among themselves; scalar
    loads in any order, so that while one is out only a wait for zero tells anything."""

    def __init__(self, waves: int):
        self.issued = np.zeros(waves, np.int64)
        self.finished = np.zeros(waves, np.int64)  # everything up to this number is known to be done
        self.last_scalar = np.zeros(waves, np.int64)
        self.last_lds = np.zeros(waves, np.int64)
        self.last_store = np.zeros(waves, np.int64)

    def issue(self, where, scalar: bool = False, store: bool = False) -> None:
        self.issued[where] += 1
        if scalar:
            self.last_scalar[where] = self.issued[where]
            return
        self.last_lds[where] = self.issued[where]
        if store:
            self.last_store[where] = self.issued[where]

    def wait(self, where, left: int) -> None:
        """s_waitcnt lgkmcnt(left)."""
        done = self.issued[where] - left
        if left:
            ordered = self.last_scalar[where] <= self.finished[where]
            done = np.where(ordered, done, self.finished[where])
        self.finished[where] = np.maximum(self.finished[where], done)

    def in_flight(self, where) -> tuple[np.ndarray, np.ndarray]:
        """bool [n]: LDS stores, any LDS operations that may not be done."""
        finished = self.finished[where]
        return self.last_store[where] > finished, self.last_lds[where] > finished


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """bool [n, lanes] → unsigned integers [n], bit i = lane i."""
    dtype = np.uint32 if mask.shape[1] == 32 else np.uint64
    return np.packbits(np.ascontiguousarray(mask), axis=1, bitorder="little").view(dtype)[:, 0]


def unpack_mask(bits: np.ndarray, lanes: int) -> np.ndarray:
    """unsigned integers [n] → bool [n, lanes]."""
    raw = np.ascontiguousarray(bits).view(np.uint8).reshape(len(bits), lanes // 8)
    return np.unpackbits(raw, axis=1, bitorder="little").view(bool)


class Waves:
    """Register state. waves: how many; lanes: 32 or 64; vgprs: how many are allocated."""

    def __init__(self, waves: int, lanes: int, vgprs: int, wave_in_group: np.ndarray, group: np.ndarray):
        self.count, self.lanes = waves, lanes
        self.mask_type = np.uint32 if lanes == 32 else np.uint64
        self.all_lanes = self.mask_type((1 << lanes) - 1)
        self.vector = np.zeros((vgprs, waves, lanes), np.uint32)
        self.low = np.zeros((vgprs, waves), self.mask_type)
        self.high = np.zeros((vgprs, waves), self.mask_type)
        self.loose = set(range(vgprs))
        self.scalar = np.zeros((SGPRS, waves), np.uint32)
        self.scalar_written = np.zeros((SGPRS, waves), bool)
        self.scalar_loose = set(range(SGPRS)) - {NULL}
        self.scc = np.zeros(waves, bool)
        self.pc = np.zeros(waves, np.int64)
        self.wave_in_group, self.group = wave_in_group, group  # [waves]
        self.first_group = 0  # the launch number of group 0 of this batch
        self.waiting = np.zeros(waves, bool)  # at a barrier
        self.counters = Counters(waves)
        self.memory = self.lds = self.scratch = self.traffic = None  # set by the launch
        self.flush = Flush()
        self.lane_index = np.arange(lanes, dtype=np.uint32)[None]
        self.select(None)

    # which waves run -----------------------------------------------------------------------------------------------
    def select(self, waves: np.ndarray | None) -> None:
        """Run for these wave indices; None for all."""
        self.where = _ALL if waves is None else waves
        self.n = self.count if waves is None else len(waves)
        self._exec_known = False

    def exec_mask(self) -> np.ndarray | None:
        """bool [n, lanes] of active lanes; None when all are."""
        if not self._exec_known:
            bits = self.exec_bits()
            self._exec = None if (bits == self.all_lanes).all() else unpack_mask(bits, self.lanes)
            self._exec_known = True
        return self._exec

    def exec_bits(self) -> np.ndarray:
        return self.mask_bits(EXEC_LO)

    # scalar registers ----------------------------------------------------------------------------------------------
    def read_scalar(self, index: int) -> np.ndarray:
        """uint32 [n]."""
        if index in self.scalar_loose:
            self._check_scalar(index)
        return self.scalar[index][self.where]

    def _check_scalar(self, index: int) -> None:
        written = self.scalar_written[index]
        if not written[self.where].all():
            raise UninitialisedRegister(f"scalar register {scalar_name(index)} is read but was never written")
        if written.all():
            self.scalar_loose.discard(index)

    def copy_scalar(self, index: int):
        """What moving a scalar register to a vector register gives: (uint32 [n, 1], masks of defined lanes, None)."""
        written = self.scalar_written[index]
        if written.all():
            self.scalar_loose.discard(index)
            return self.scalar[index][self.where][:, None], None, None
        good = np.where(written[self.where], self.all_lanes, self.mask_type(0))
        return self.scalar[index][self.where][:, None], (good, good), None

    def write_scalar(self, index: int, value) -> None:
        if index == NULL:
            return
        self.scalar[index][self.where] = value
        if index in self.scalar_loose:
            self.scalar_written[index][self.where] = True
            if self.where is _ALL:
                self.scalar_loose.discard(index)
        if index in (EXEC_LO, EXEC_LO + 1):
            self._exec_known = False

    def read_scalar64(self, index: int) -> np.ndarray:
        """uint64 [n] of a register pair."""
        return self.read_scalar(index).astype(np.uint64) | (self.read_scalar(index + 1).astype(np.uint64) << 32)

    def write_scalar64(self, index: int, value: np.ndarray) -> None:
        self.write_scalar(index, (value & 0xFFFFFFFF).astype(np.uint32))
        if index != NULL:
            self.write_scalar(index + 1, (value >> np.uint64(32)).astype(np.uint32))

    def mask_bits(self, index: int) -> np.ndarray:
        """The lane mask in a scalar register (a pair in wave64), as mask_type [n]."""
        return self.read_scalar(index) if self.lanes == 32 else self.read_scalar64(index)

    def write_mask_bits(self, index: int, bits: np.ndarray) -> None:
        if self.lanes == 32:
            self.write_scalar(index, bits)
        else:
            self.write_scalar64(index, bits)

    def read_mask(self, index: int) -> np.ndarray:
        """bool [n, lanes]."""
        if index == EXEC_LO:
            active = self.exec_mask()
            return np.ones((self.n, self.lanes), bool) if active is None else active
        return unpack_mask(self.mask_bits(index), self.lanes)

    def write_mask(self, index: int, mask: np.ndarray) -> None:
        """Inactive lanes give zero bits."""
        active = self.exec_mask()
        mask = np.broadcast_to(mask, (self.n, self.lanes))
        self.write_mask_bits(index, pack_mask(mask if active is None else mask & active))

    # vector registers ----------------------------------------------------------------------------------------------
    def read_vector(self, index: int) -> np.ndarray:
        """uint32 [n, lanes]: a view when all waves run. No check: see `defined`."""
        return self.vector[index][self.where]

    def defined(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Masks [n] of lanes with a defined (low, high) half; None when all are."""
        if index not in self.loose:
            return None
        low, high = self.low[index], self.high[index]
        if ((low & high) == self.all_lanes).all():
            self.loose.discard(index)
            return None
        return low[self.where], high[self.where]

    def require(self, index: int, half: str | None = None, lanes: np.ndarray | None = None) -> None:
        """Raise UninitialisedRegister unless every active lane (or the mask `lanes` [n]) is defined."""
        if index not in self.loose:
            return
        masks = self.defined(index)
        if masks is None:
            return
        have = {"l": masks[0], "h": masks[1], None: masks[0] & masks[1]}[half]
        missing = (self.exec_bits() if lanes is None else lanes) & ~have
        if missing.any():
            wave = int(np.flatnonzero(missing)[0])
            lane = int(missing[wave]).bit_length() - 1
            part = {"l": "the low half of ", "h": "the high half of ", None: ""}[half]
            raise UninitialisedRegister(f"{part}v{index} is read but was never written ({self.name(wave, lane)})")

    def write_vector(self, index: int, value, half=None, defined=None, mask=None) -> None:
        """Write uint32 `value` to the active lanes.

        half: write only 'l' or 'h' with a 16-bit value. defined: masks [n] (low, high) of lanes where the value is
        defined, None for everywhere. mask: bool [n, lanes], instead of EXEC.
        """
        active = self.exec_mask() if mask is None else mask
        register = self.vector[index]
        if half is not None:
            halves = register.view(np.uint16)[:, (0 if half == "l" else 1) :: 2]
            self._store(halves, value, active)
        else:
            self._store(register, value, active)
        if defined is None and index not in self.loose:
            return
        if defined is None and active is None and self.where is _ALL and half is None:
            self.loose.discard(index)
            return
        bits = self._mask_of(active)
        if index not in self.loose:
            self.loose.add(index)
            self.low[index], self.high[index] = self.all_lanes, self.all_lanes
        if half != "h":
            self._mark(self.low[index], bits, None if defined is None else defined[0])
        if half != "l":
            self._mark(self.high[index], bits, None if defined is None else defined[1])

    def _mask_of(self, active: np.ndarray | None) -> np.ndarray:
        return np.full(self.n, self.all_lanes) if active is None else pack_mask(active)

    def _mark(self, masks: np.ndarray, written: np.ndarray, good: np.ndarray | None) -> None:
        old = masks[self.where]
        masks[self.where] = (old | written) if good is None else (old & ~written) | (written & good)

    def _store(self, target: np.ndarray, value, active: np.ndarray | None) -> None:
        if active is None:
            target[self.where] = value
        elif self.where is _ALL:
            np.copyto(target, value, where=active, casting="unsafe")
        else:
            target[self.where] = np.where(active, value, target[self.where])

    # names ---------------------------------------------------------------------------------------------------------
    def name(self, selected_wave: int, lane: int) -> str:
        """'workgroup 3, wave 1, lane 7' of the n-th selected wave."""
        wave = selected_wave if self.where is _ALL else int(self.where[selected_wave])
        group = int(self.group[wave]) + self.first_group
        return f"workgroup {group}, wave {int(self.wave_in_group[wave])}, lane {lane}"


def scalar_name(index: int) -> str:
    names = {106: "vcc_lo", 107: "vcc_hi", 124: "null", 125: "m0", 126: "exec_lo", 127: "exec_hi"}
    return names.get(index, f"s{index}")
