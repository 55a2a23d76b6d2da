"""Global memory: NumPy arrays at addresses of an own address space, checked to the byte."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from .errors import OutOfBounds, Unwritten

FIRST_ADDRESS = 0x2000_0000_0000  # where no process of a 64-bit Linux has its own memory
_GUARD = 1 << 16  # bytes between buffers that belong to nobody
_VIEWS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


class Buffer:
    """`array`'s bytes at `start`, in place. written: uint8 per byte, or None when all are. touched: per 64-byte line
    whether it was accessed since `Memory.forget`."""

    def __init__(self, name: str, start: int, array: np.ndarray, written: bool):
        if not array.flags.c_contiguous:
            raise ValueError(f"buffer {name} is not contiguous")
        self.name, self.start = name, start
        self.data = array.reshape(-1).view(np.uint8)
        self.end = start + self.data.size
        self.written = None if written else np.zeros(self.data.size, np.uint8)
        self.touched = np.zeros((self.data.size >> 6) + 1, bool)
        self.writeable = array.flags.writeable


def gather(data: np.ndarray, offsets: np.ndarray, width: int) -> list[np.ndarray]:
    """`width` bytes from each offset: a uint32 array per 4 bytes (one, zero-extended, for 1 and 2 bytes)."""
    aligned = int(np.bitwise_or.reduce(offsets, axis=None)) | width
    unit = min(aligned & -aligned, 16)
    if width in (8, 16) and unit == width:
        whole = data[: data.size // width * width].view(_VIEWS[width]).take(offsets >> (width.bit_length() - 1))
        words = whole.view(np.uint32).reshape(*offsets.shape, width // 4)
        return [words[..., j] for j in range(width // 4)]
    if unit >= 4:
        view = data[: data.size & ~3].view(np.uint32)
        index = offsets >> 2
        return [view.take(index + j) if j else view.take(index) for j in range(width // 4)]
    unit = min(unit, 2, width)
    view = data[: data.size // unit * unit].view(_VIEWS[unit])
    index = offsets >> (unit.bit_length() - 1)
    words = []
    for first in range(0, width, 4):
        parts = range(0, min(4, width - first), unit)
        total = np.zeros(offsets.shape, np.uint32)
        for part in parts:
            total |= view.take(index + (first + part) // unit).astype(np.uint32) << np.uint32(8 * part)
        words.append(total)
    return words


def scatter(data: np.ndarray, offsets: np.ndarray, words: list[np.ndarray], width: int) -> None:
    """The inverse of `gather`; where offsets repeat the last lane wins."""
    aligned = int(np.bitwise_or.reduce(offsets, axis=None)) | width
    unit = min(aligned & -aligned, 4)
    view = data[: data.size // unit * unit].view(_VIEWS[unit])
    index = offsets >> (unit.bit_length() - 1)
    for i in range(width // unit):
        position = i * unit
        word = words[position // 4]
        value = word if unit == 4 else (word >> np.uint32(8 * (position % 4))).astype(_VIEWS[unit])
        view[index + i] = value


class Memory:
    """The buffers a launch may touch."""

    def __init__(self):
        self.buffers: list[Buffer] = []
        self._starts: list[int] = []
        self._next = FIRST_ADDRESS

    def map(self, array: np.ndarray, name: str, written: bool = True, address: int | None = None) -> Buffer:
        """Register an array without copying it. written=False: reading a byte before it is stored is an error.

        address: where (must not overlap another buffer); chosen 256-byte aligned with guards around when None.
        """
        if address is None:
            address = self._next
            self._next = (address + array.nbytes + 2 * _GUARD - 1) & ~(_GUARD - 1)
        buffer = Buffer(name, address, array, written)
        at = bisect_right(self._starts, address)
        before = self.buffers[at - 1] if at else None
        after = self.buffers[at] if at < len(self.buffers) else None
        if (before and before.end > address) or (after and after.start < buffer.end):
            raise ValueError(f"buffer {name} overlaps {(before if before and before.end > address else after).name}")
        self.buffers.insert(at, buffer)
        self._starts.insert(at, address)
        return buffer

    def unmap(self, buffer: Buffer) -> None:
        at = self.buffers.index(buffer)
        del self.buffers[at], self._starts[at]

    def _owner(self, address: int, width: int) -> Buffer | None:
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address + width > self.buffers[at].end:
            return None
        return self.buffers[at]

    def split(self, waves, address: np.ndarray, width: int, active: np.ndarray | None):
        """[(buffer, None)] when all lie in one, else [(buffer, mask [n, lanes])]. Raises OutOfBounds."""
        low, high = int(address.min()), int(address.max())
        first = self._owner(low, width)
        if first is not None and high + width <= first.end:
            return [(first, None)]
        owner = np.searchsorted(np.array(self._starts, np.int64), address, "right") - 1
        ends = np.array([b.end for b in self.buffers] or [0], np.int64)
        bad = (owner < 0) | (address + width > ends[owner])
        if active is not None:
            bad &= active
        if bad.any():
            wave, lane = (int(i[0]) for i in np.nonzero(bad))
            self._refuse(waves, int(address[wave, lane]), width, wave, lane)
        return [(self.buffers[i], owner == i) for i in np.unique(owner)]

    def _refuse(self, waves, address: int, width: int, wave: int, lane: int):
        def distance(b):
            return max(b.start - address, address + width - b.end)

        where = "there are no buffers"
        if self.buffers:
            near = min(self.buffers, key=distance)
            place = f"{address - near.start} of its {near.end - near.start} bytes"
            where = f"the nearest buffer is '{near.name}', offset {place}"
        raise OutOfBounds(f"{width} bytes at {address:#x} are out of bounds: {where} ({waves.name(wave, lane)})")

    def load(self, waves, address: np.ndarray, width: int, active: np.ndarray | None) -> list[np.ndarray]:
        """address: int64 [n, lanes], inactive lanes already at some active lane's address."""
        pieces = self.split(waves, address, width, active)
        if len(pieces) == 1:
            return self._load(waves, pieces[0][0], address, width, active)
        words = [np.zeros(address.shape, np.uint32) for _ in range(max(1, width // 4))]
        for buffer, mask in pieces:
            at = np.where(mask, address, address[mask][0])
            part = self._load(waves, buffer, at, width, mask if active is None else mask & active)
            words = [np.where(mask, p, w) for p, w in zip(part, words, strict=True)]
        return words

    def forget(self) -> None:
        """Begin a new account of touched lines."""
        for buffer in self.buffers:
            buffer.touched[:] = False

    @property
    def touched_bytes(self) -> int:
        """Bytes of the distinct 64-byte lines (of buffers that begin at a line) accessed since `forget`."""
        return 64 * sum(int(np.count_nonzero(buffer.touched)) for buffer in self.buffers)

    def _load(self, waves, buffer: Buffer, address, width: int, active):
        offsets = address - buffer.start
        buffer.touched[offsets >> 6] = True
        if buffer.written is not None:
            good = np.uint32(0x01010101 & ((1 << (8 * min(width, 4))) - 1))
            bad = np.zeros(address.shape, bool)
            for word in gather(buffer.written, offsets, width):
                bad |= word != good
            if active is not None:
                bad &= active
            if bad.any():
                wave, lane = (int(i[0]) for i in np.nonzero(bad))
                place = f"bytes {offsets[wave, lane]} to {offsets[wave, lane] + width - 1} of buffer '{buffer.name}'"
                raise Unwritten(f"{place} are read but were not all written ({waves.name(wave, lane)})")
        return gather(buffer.data, offsets, width)

    def store(self, waves, address: np.ndarray, words: list, width: int, active: np.ndarray | None) -> None:
        for buffer, mask in self.split(waves, address, width, active):
            if not buffer.writeable:
                raise OutOfBounds(f"buffer '{buffer.name}' is read-only but is written")
            chosen = active if mask is None else mask if active is None else mask & active
            offsets = address - buffer.start
            values = [np.broadcast_to(w, address.shape) for w in words]
            if chosen is None:
                offsets, values = offsets.ravel(), [v.ravel() for v in values]
            else:
                offsets, values = offsets[chosen], [v[chosen] for v in values]
            scatter(buffer.data, offsets, values, width)
            buffer.touched[offsets >> 6] = True
            if buffer.written is not None:
                ones = np.full(offsets.shape, 0x01010101, np.uint32)
                scatter(buffer.written, offsets, [ones] * len(values), width)
