"""LDS of all workgroups of a batch, with who touched what since the last barrier.

A shadow entry covers `granule` bytes (the kernel's narrowest LDS access) and holds epoch * 256 + code: the code of a
wave is its number in the workgroup plus 1, MANY stands for several readers and ATOMIC for atomic updates, which do
not race with each other. The epoch counts the workgroup's barriers. 0 means never written.
"""

from __future__ import annotations

import numpy as np

from .errors import OutOfBounds, Race, Unwritten
from .memory import gather, scatter

MANY, ATOMIC = 255, 254
BANKS = 32


class Lds:
    """size: bytes of one workgroup; granule: 1, 2 or 4."""

    def __init__(self, groups: int, size: int, granule: int, waves_per_group: int):
        self.size, self.granule = size, granule
        self.stride = (size + 15) & ~15 or 16
        self.data = np.zeros(groups * self.stride, np.uint8)
        self.writer = np.zeros(groups * self.stride // granule + 4, np.int32)
        self.reader = np.zeros_like(self.writer)
        self.epoch = np.ones(groups, np.int32)
        self.shared = waves_per_group > 1

    def barrier(self, groups: np.ndarray) -> None:
        self.epoch[groups] += 1

    def _offsets(self, waves, address: np.ndarray, width: int, active) -> np.ndarray:
        bad = address + width > self.size
        if active is not None:
            bad = bad & active
        if bad.any():
            wave, lane = (int(i[0]) for i in np.nonzero(bad))
            raise OutOfBounds(
                f"{width} bytes at LDS address {int(address[wave, lane])} are out of bounds: the workgroup has "
                f"{self.size} bytes ({waves.name(wave, lane)})"
            )
        return address + (waves.group[waves.where].astype(np.int64) * self.stride)[:, None]

    def _codes(self, waves, atomic: bool) -> np.ndarray:
        """int32 [n, 1]: what this access writes into the shadow."""
        epoch = self.epoch[waves.group[waves.where]]
        code = ATOMIC if atomic else waves.wave_in_group[waves.where].astype(np.int32) + 1
        return ((epoch << 8) + code)[:, None]

    def _entries(self, offsets: np.ndarray, width: int):
        """Index arrays of the shadow entries that an access touches."""
        first = offsets // self.granule
        count = max(1, width // self.granule)
        if int(np.bitwise_or.reduce(offsets, axis=None)) % self.granule:
            count += 1
        return (first + j for j in range(count))

    def _race(self, waves, bad, offsets, other, what: str):
        wave, lane = (int(i[0]) for i in np.nonzero(bad))
        code = int(np.broadcast_to(other, bad.shape)[wave, lane]) & 255
        who = {MANY: "several waves", ATOMIC: "an atomic"}.get(code, f"wave {code - 1}")
        at = int(offsets[wave, lane]) % self.stride
        raise Race(f"LDS byte {at} is {what} {who} with no barrier in between ({waves.name(wave, lane)})")

    @staticmethod
    def _conflict(seen, mine):
        """Same epoch, another party."""
        return ((seen ^ mine) < 256) & (seen != mine) & (seen != 0)

    def load(self, waves, address: np.ndarray, width: int, active, atomic: bool = False) -> list[np.ndarray]:
        offsets = self._offsets(waves, address, width, active)
        mine = self._codes(waves, atomic)
        for at in self._entries(offsets, width):
            written = self.writer.take(at)
            missing = written == 0
            if active is not None:
                missing &= active
            if missing.any():
                wave, lane = (int(i[0]) for i in np.nonzero(missing))
                raise Unwritten(
                    f"LDS byte {int(address[wave, lane])} is read but was never written ({waves.name(wave, lane)})"
                )
            if self.shared and not atomic:
                bad = self._conflict(written, mine)
                if active is not None:
                    bad &= active
                if bad.any():
                    self._race(waves, bad, offsets, written, "read here and written by")
                self._mark_read(at, mine, active)
        return gather(self.data, offsets, width)

    def _mark_read(self, at, mine, active) -> None:
        seen = self.reader.take(at)
        mine = np.broadcast_to(mine, at.shape)
        new = np.where(self._conflict(seen, mine), mine | MANY, mine)
        if active is not None:
            at, new, mine = at[active], new[active], mine[active]
        self.reader[at] = new
        lost = self.reader.take(at) != new  # two waves read the same entry in this very instruction
        if lost.any():
            self.reader[at[lost]] = mine[lost] | MANY

    def store(self, waves, address: np.ndarray, words: list, width: int, active, atomic: bool = False) -> None:
        offsets = self._offsets(waves, address, width, active)
        mine = np.broadcast_to(self._codes(waves, atomic), offsets.shape)
        for at in self._entries(offsets, width):
            if self.shared:
                for shadow, what in ((self.writer, "written here and by"), (self.reader, "written here and read by")):
                    seen = shadow.take(at)
                    bad = self._conflict(seen, mine)
                    if active is not None:
                        bad &= active
                    if bad.any():
                        self._race(waves, bad, offsets, seen, what)
            index, value = (at.ravel(), mine.ravel()) if active is None else (at[active], mine[active])
            self.writer[index] = value
            if self.shared:
                lost = self.writer.take(index) != value
                if lost.any():
                    bad = np.zeros(offsets.shape, bool)
                    (bad.ravel() if active is None else bad)[... if active is None else active] = lost
                    self._race(waves, bad, offsets, self.writer.take(at), "written here and by")
        values = [np.broadcast_to(w, offsets.shape) for w in words]
        if active is None:
            scatter(self.data, offsets.ravel(), [v.ravel() for v in values], width)
        else:
            scatter(self.data, offsets[active], [v[active] for v in values], width)


def conflict_cycles(address: np.ndarray, width: int) -> int:
    """Extra LDS cycles over all waves: 32 banks of 4 bytes; an access of 4, 8 or 16 bytes per lane goes in passes of
    32, 16 or 8 lanes, and a pass takes as many cycles as the most loaded bank has distinct words."""
    words = address >> 2
    per_lane = max(1, width // 4)
    lanes = {1: 32, 2: 16, 3: 8, 4: 8}[per_lane]
    words = words.reshape(-1, lanes)
    low, high = words.min(axis=1), words.max(axis=1)
    suspects = words[high - low + per_lane > BANKS]
    if not suspects.size:
        return 0
    each = (suspects[..., None] + np.arange(per_lane)).reshape(len(suspects), -1)
    each = np.sort(each, axis=1)
    distinct = np.ones(each.shape, bool)
    distinct[:, 1:] = each[:, 1:] != each[:, :-1]
    rows, columns = np.nonzero(distinct)
    load = np.bincount(rows * BANKS + each[rows, columns] % BANKS, minlength=len(each) * BANKS)
    return int((load.reshape(-1, BANKS).max(axis=1) - 1).sum())
