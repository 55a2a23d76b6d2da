"""Global, flat and scratch memory instructions, and scalar loads."""

from __future__ import annotations

import numpy as np

from .atomics import OPERATIONS, apply_atomic, data_words
from .errors import OutOfBounds, UnknownInstruction, Unwritten
from .memory import gather, scatter
from .operands import NULL, Operand
from .parser import Instruction, Kernel
from .table import handles
from .transfer import fill_inactive, read_data, write_loaded

_LOADS = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_STORES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_MODIFIERS = {"offset", "glc", "slc", "dlc", "sc0", "sc1", "nt", "th", "scope"}


def _check(instruction: Instruction, kernel: Kernel) -> None:
    unknown = set(instruction.modifiers) - _MODIFIERS
    if unknown:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' with '{unknown.pop()}' is not known"
        )


def _address(waves, vector: Operand, base: Operand | None, offset: int) -> np.ndarray:
    """int64 [n, lanes]: a 64-bit vector address, or a scalar base plus an unsigned 32-bit vector offset."""
    waves.require(vector.index)
    low = waves.read_vector(vector.index)
    if base is None or base.kind == "off" or base.index == NULL:
        waves.require(vector.index + 1)
        high = waves.read_vector(vector.index + 1).astype(np.int64)
        return ((high << 32) | low) + offset
    return low + (waves.read_scalar64(base.index).astype(np.int64) + offset)[:, None]


class _Global:
    name = "global"

    @staticmethod
    def load(waves, at, width, active):
        return waves.memory.load(waves, at, width, active)

    @staticmethod
    def store(waves, at, words, width, active):
        waves.memory.store(waves, at, words, width, active)


class Scratch:
    """Private memory of every lane: bytes [wave, lane, size] with a shadow of what was written."""

    name = "scratch"

    def __init__(self, waves: int, lanes: int, size: int):
        self.size = size
        self.stride = (size + 15) & ~15
        self.data = np.zeros(waves * lanes * self.stride, np.uint8)
        self.written = np.zeros_like(self.data)

    def _offsets(self, waves, at, width, active):
        bad = (at < 0) | (at + width > self.size)
        if active is not None:
            bad &= active
        if bad.any():
            wave, lane = (int(i[0]) for i in np.nonzero(bad))
            raise OutOfBounds(
                f"{width} bytes at scratch address {int(at[wave, lane])} are out of bounds: a lane has {self.size} "
                f"bytes ({waves.name(wave, lane)})"
            )
        wave = np.arange(waves.count)[waves.where].astype(np.int64)[:, None]
        # an inactive lane repeats another's address, and its own slot is in bounds too
        return at + (wave * waves.lanes + waves.lane_index.astype(np.int64)) * self.stride

    @staticmethod
    def load(waves, at, width, active):
        self = waves.scratch
        offsets = self._offsets(waves, at, width, active)
        good = np.uint32(0x01010101 & ((1 << (8 * min(width, 4))) - 1))
        for word in gather(self.written, offsets, width):
            bad = word != good
            if active is not None:
                bad &= active
            if bad.any():
                wave, lane = (int(i[0]) for i in np.nonzero(bad))
                raise Unwritten(
                    f"scratch address {int(at[wave, lane])} is read but was never written ({waves.name(wave, lane)})"
                )
        return gather(self.data, offsets, width)

    @staticmethod
    def store(waves, at, words, width, active):
        self = waves.scratch
        offsets = self._offsets(waves, at, width, active)
        chosen = np.ones(offsets.shape, bool) if active is None else active
        values = [np.broadcast_to(w, offsets.shape)[chosen] for w in words]
        scatter(self.data, offsets[chosen], values, width)
        scatter(self.written, offsets[chosen], [np.full(len(values[0]), 0x01010101, np.uint32)] * len(values), width)


def _scratch_address(waves, operands: list[Operand], offset: int) -> np.ndarray:
    """Vector register and scalar base, either of which may be 'off'."""
    vector, base = operands
    at = np.full((waves.n, waves.lanes), offset, np.int64)
    if vector.kind == "v":
        waves.require(vector.index)
        at = at + waves.read_vector(vector.index)
    if base.kind == "s":
        at = at + waves.read_scalar(base.index).astype(np.int64)[:, None]
    return at


def _places(instruction: Instruction, space, operands: list[Operand]):
    """A function waves → addresses, from the address operands."""
    offset = instruction.modifiers.get("offset", 0)
    if space is Scratch:
        return lambda w: _scratch_address(w, operands, offset)
    base = operands[1] if len(operands) > 1 else None
    return lambda w: _address(w, operands[0], base, offset)


def _load(space, kind: str, width: int, half: str | None):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        target, *rest = instruction.operands
        places = _places(instruction, space, rest)
        into = (target.half or half) if half else None

        def step(waves):
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            at = fill_inactive(places(waves), active)
            words = space.load(waves, at, width, active)
            waves.traffic.access(space.name, "load", width, at, active)
            write_loaded(waves, target.index, words, kind, into)

        return step

    return binder


def _store(space, width: int, high: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        operands = list(instruction.operands)
        data = operands.pop(1)
        places = _places(instruction, space, operands)

        def step(waves):
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            at = fill_inactive(places(waves), active)
            space.store(waves, at, read_data(waves, data, width, high), width, active)
            waves.traffic.access(space.name, "store", width, at, active)

        return step

    return binder


for _prefix, _space in (("global", _Global), ("flat", _Global), ("scratch", Scratch)):
    for _kind, _width in _LOADS.items():
        handles(f"{_prefix}_load_{_kind}")(_load(_space, _kind, _width, None))
    for _kind, _width in (("u8", 1), ("i8", 1), ("b16", 2)):
        handles(f"{_prefix}_load_d16_{_kind}")(_load(_space, _kind, _width, "l"))
        handles(f"{_prefix}_load_d16_hi_{_kind}")(_load(_space, _kind, _width, "h"))
    for _kind, _width in _STORES.items():
        handles(f"{_prefix}_store_{_kind}")(_store(_space, _width, False))
        if _width <= 2:
            handles(f"{_prefix}_store_d16_hi_{_kind}")(_store(_space, _width, True))


def _atomic(name: str, kind: str):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        operands = list(instruction.operands)
        returns = bool(instruction.modifiers.get("glc"))
        target = operands.pop(0) if returns else None
        data = operands.pop(1)
        places = _places(instruction, _Global, operands)
        width = int(kind[1:]) // 8

        def step(waves):
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            at = fill_inactive(places(waves), active)
            waves.memory.load(waves, at, width, active)  # there must be something to update
            values = data_words(waves, [data], kind)
            pieces = waves.memory.split(waves, at, width, active)
            if len(pieces) > 1:
                raise UnknownInstruction("one atomic instruction that touches several buffers is not emulated")
            buffer = pieces[0][0]
            old = apply_atomic(name, kind, buffer.data, at - buffer.start, values, active, returns)
            waves.traffic.access("global", "atomic", width, at, active)
            if target is not None:
                write_loaded(waves, target.index, old, "b32", None)

        return step

    return binder


for _name, _kinds in OPERATIONS.items():
    for _kind in _kinds:
        handles(f"global_atomic_{_name}_{_kind}", f"flat_atomic_{_name}_{_kind}")(_atomic(_name, _kind))


def _scalar_load(words: int):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        target, base, *rest = instruction.operands
        fixed = instruction.modifiers.get("offset", 0) + sum(int(o.value) for o in rest if o.kind == "literal")
        registers = [o.index for o in rest if o.kind == "s" and o.index != NULL]

        apart = kernel.generation >= 12  # in a counter of their own, which nothing here depends on

        def step(waves):
            if not apart:
                waves.counters.issue(waves.where, scalar=True)
            address = waves.read_scalar64(base.index).astype(np.int64) + fixed
            for register in registers:
                address = address + waves.read_scalar(register)
            address = (address & ~3)[:, None]
            loaded = waves.memory.load(waves, address, 4 * words, None) if words <= 4 else [
                w for i in range(0, words, 4) for w in waves.memory.load(waves, address + 4 * i, 16, None)
            ]  # fmt: skip
            waves.traffic.access("scalar", "load", 4 * words, address, None)
            for i, word in enumerate(loaded):
                waves.write_scalar(target.index + i, word[:, 0])

        return step

    return binder


for _words in (1, 2, 3, 4, 8, 16):
    handles(f"s_load_b{32 * _words}")(_scalar_load(_words))
