"""LDS instructions."""

from __future__ import annotations

import re

import numpy as np

from .atomics import OPERATIONS, apply_atomic, data_words
from .errors import UnknownInstruction
from .lanes import bpermute, permute, swizzle_lanes
from .lds import conflict_cycles
from .parser import Instruction, Kernel
from .table import handles
from .transfer import fill_inactive, read_data, write_loaded

_LOADS = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_STORES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}


def access_width(mnemonic: str) -> int | None:
    """Bytes per address of an LDS access, None for instructions that touch no LDS memory."""
    if not mnemonic.startswith("ds_") or "permute" in mnemonic or "swizzle" in mnemonic:
        return None
    found = re.search(r"[buif](8|16|32|64|96|128)(?:_d16)?(?:_hi)?$", mnemonic)
    return int(found[1]) // 8 if found else None


def _check(instruction: Instruction, kernel: Kernel, allowed: set) -> None:
    unknown = set(instruction.modifiers) - allowed
    if unknown:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' with '{unknown.pop()}' is not known"
        )


def _address(waves, register: int, offset: int) -> np.ndarray:
    waves.require(register)
    # the sum has 32 bits: LLVM counts down from an offset with addresses below zero
    return (waves.read_vector(register) + np.uint32(offset)).astype(np.int64)


def _offsets(instruction: Instruction, width: int) -> list[int]:
    if "2addr" not in instruction.mnemonic:
        return [instruction.modifiers.get("offset", 0)]
    unit = width * (64 if "stride64" in instruction.mnemonic else 1)
    return [instruction.modifiers.get(k, 0) * unit for k in ("offset0", "offset1")]


def _load(kind: str, width: int, d16: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel, {"offset", "offset0", "offset1"})
        target, address = instruction.operands
        offsets = _offsets(instruction, width)
        half = None
        if d16:
            half = "h" if instruction.mnemonic.endswith("_hi") else target.half or "l"

        def step(waves):
            waves.counters.issue(waves.where)
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            results = []
            for offset in offsets:
                at = fill_inactive(_address(waves, address.index, offset), active)
                results += waves.lds.load(waves, at, width, active)
                waves.traffic.access("lds", "load", width, at, active, conflict_cycles(at, width))
            write_loaded(waves, target.index, results, kind, half)

        return step

    return binder


def _store(width: int, high: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel, {"offset", "offset0", "offset1"})
        address, *data = instruction.operands
        offsets = _offsets(instruction, width)

        def step(waves):
            waves.counters.issue(waves.where, store=True)
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            for offset, operand in zip(offsets, data, strict=True):
                at = fill_inactive(_address(waves, address.index, offset), active)
                words = read_data(waves, operand, width, high)
                waves.lds.store(waves, at, words, width, active)
                waves.traffic.access("lds", "store", width, at, active, conflict_cycles(at, width))

        return step

    return binder


for _kind, _width in _LOADS.items():
    handles(f"ds_load_{_kind}")(_load(_kind, _width, False))
    if _kind in ("u8", "i8", "u16"):
        handles(f"ds_load_{_kind}_d16", f"ds_load_{_kind}_d16_hi")(_load(_kind, _width, True))
    if _kind in ("b32", "b64"):
        handles(f"ds_load_2addr_{_kind}", f"ds_load_2addr_stride64_{_kind}")(_load(_kind, _width, False))
for _kind, _width in _STORES.items():
    handles(f"ds_store_{_kind}")(_store(_width, False))
    if _width <= 2:
        handles(f"ds_store_{_kind}_d16_hi")(_store(_width, True))
    if _kind in ("b32", "b64"):
        handles(f"ds_store_2addr_{_kind}", f"ds_store_2addr_stride64_{_kind}")(_store(_width, False))


def _atomic(name: str, kind: str, returns: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel, {"offset"})
        operands = list(instruction.operands)
        target = operands.pop(0) if returns else None
        address, *data = operands
        offset = instruction.modifiers.get("offset", 0)
        width = int(kind[1:]) // 8

        def step(waves):
            waves.counters.issue(waves.where, store=True)
            active = waves.exec_mask()
            if active is not None and not active.any():
                return
            at = fill_inactive(_address(waves, address.index, offset), active)
            waves.lds.load(waves, at, width, active, atomic=True)  # bounds, and that there is something to update
            words = data_words(waves, data, kind)
            offsets = at + (waves.group[waves.where].astype(np.int64) * waves.lds.stride)[:, None]
            old = apply_atomic(name, kind, waves.lds.data, offsets, words, active, returns)
            current = waves.lds.load(waves, at, width, active, atomic=True)
            waves.lds.store(waves, at, current, width, active, atomic=True)
            waves.traffic.access("lds", "atomic", width, at, active, conflict_cycles(at, width))
            if target is not None:
                write_loaded(waves, target.index, old, "b32", None)

        return step

    return binder


for _name, _kinds in OPERATIONS.items():
    _spelled = {"swap": "storexchg", "cmpswap": "cmpstore"}.get(_name, _name)
    for _kind in _kinds:
        if _name != "swap":  # an exchange without a result is a store
            handles(f"ds_{_spelled}_{_kind}")(_atomic(_name, _kind, False))
        handles(f"ds_{_spelled}_rtn_{_kind}")(_atomic(_name, _kind, True))


@handles("ds_bpermute_b32", "ds_permute_b32")
def _permute(instruction: Instruction, kernel: Kernel):
    _check(instruction, kernel, {"offset"})
    target, address, data = (o.index for o in instruction.operands)
    offset = np.uint32(instruction.modifiers.get("offset", 0))
    move = bpermute if instruction.mnemonic == "ds_bpermute_b32" else permute
    reach = 64 if kernel.generation == 9 else 32

    def step(waves):
        waves.counters.issue(waves.where)
        waves.require(address)
        move(waves, target, waves.read_vector(address) + offset, data, reach)

    return step


@handles("ds_swizzle_b32")
def _swizzle(instruction: Instruction, kernel: Kernel):
    _check(instruction, kernel, {"offset"})
    target, data = (o.index for o in instruction.operands)
    lanes = swizzle_lanes(instruction.modifiers.get("offset", 0)).astype(np.uint32)

    def step(waves):
        waves.counters.issue(waves.where)
        address = np.tile(lanes, waves.lanes // 32)[None] * np.uint32(4)
        bpermute(waves, target, address, data)

    return step


def granule(kernel: Kernel) -> int:
    """The narrowest LDS access of a kernel in bytes, at most 4."""
    widths = [access_width(i.mnemonic) for i in kernel.instructions]
    return min([w for w in widths if w is not None] + [4])
