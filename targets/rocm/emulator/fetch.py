"""Typed sources of vector instructions: register, scalar or literal → NumPy array [n, lanes], [n, 1] or scalar.

Types: u32 i32 f32 b32 u16 i16 f16 b16 u64 i64 b64, and 'mask' (one bit per lane in scalar registers).
b32 and b16 are raw bits that still obey neg and abs, which then act on the sign bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import UnknownInstruction
from .operands import NULL, SCC, Operand
from .rounding import flush

DTYPES = {
    "u32": np.uint32, "i32": np.int32, "f32": np.float32, "b32": np.uint32, "u16": np.uint16, "i16": np.int16,
    "f16": np.float16, "b16": np.uint16, "u64": np.uint64, "i64": np.int64, "b64": np.uint64,
}  # fmt: skip
WIDTH = {name: np.dtype(dtype).itemsize * 8 for name, dtype in DTYPES.items()}


@dataclass
class Source:
    """get(waves) → array. registers: the vector registers read, with the half read or None for both."""

    get: Callable
    registers: tuple[tuple[int, str | None], ...] = ()
    literal: int | None = None


def source(operand: Operand, kind: str, half: str | None = None, permute=None) -> Source:
    """How to read `operand` as `kind`. half: which half a 16-bit read takes when the operand's text does not say.
    permute: function of (waves, uint32 array [n, lanes]) → array, for DPP."""
    if kind == "mask":
        index = operand.index
        if operand.kind != "s":
            bits = np.array([operand.bits(64) & (2**64 - 1)], np.uint64)
            return Source(lambda w: ((bits[:, None] >> w.lane_index.astype(np.uint64)) & 1).astype(bool))
        return Source(lambda w: w.read_mask(index))
    width = WIDTH[kind]
    if operand.kind == "literal":
        value = np.array(literal_bits(operand, kind), f"u{width // 8}").view(DTYPES[kind])
        found = Source(lambda w: value, literal=int(value.view(f"u{width // 8}")))
    elif operand.kind == "v":
        found = _vector(operand, kind, half, permute)
    elif operand.kind == "s":
        found = _scalar(operand, kind, half)
    else:
        raise UnknownInstruction("'off' is no source of a vector instruction")
    return _modified(found, operand, kind)


def literal_bits(operand: Operand, kind: str) -> int:
    """Raw bits of a literal. 32-bit literals of 64-bit types: floats fill the upper half, integers extend."""
    return operand.bits(WIDTH[kind])


def _vector(operand: Operand, kind: str, half: str | None, permute) -> Source:
    index, width = operand.index, WIDTH[kind]
    dtype = DTYPES[kind]
    if width == 64:

        def wide(w):
            low, high = w.read_vector(index), w.read_vector(index + 1)
            return (low.astype(np.uint64) | (high.astype(np.uint64) << 32)).view(dtype)

        return Source(wide, ((index, None), (index + 1, None)))
    part = (operand.half or half or "l") if width == 16 else None
    shift = 1 if part == "h" else 0

    def narrow(w):
        bits = w.read_vector(index)
        if permute is not None:
            bits = permute(w, bits)
        if width == 32:
            return bits.view(dtype)
        return np.ascontiguousarray(bits).view(np.uint16)[:, shift::2].view(dtype)

    return Source(narrow, ((index, part),))


def _scalar(operand: Operand, kind: str, half: str | None) -> Source:
    index, width = operand.index, WIDTH[kind]
    dtype = DTYPES[kind]
    if index == NULL:
        zero = dtype(0)
        return Source(lambda w: zero)
    if index == SCC:
        return Source(lambda w: w.scc[w.where].astype(f"u{width // 8}").view(dtype)[:, None])
    if width == 64:
        return Source(lambda w: w.read_scalar64(index).view(dtype)[:, None])
    if width == 32:
        return Source(lambda w: w.read_scalar(index).view(dtype)[:, None])
    shift = 16 if (operand.half or half) == "h" else 0
    return Source(lambda w: ((w.read_scalar(index) >> shift) & 0xFFFF).astype(np.uint16).view(dtype)[:, None])


def _modified(found: Source, operand: Operand, kind: str) -> Source:
    """neg, abs and the flushing of denormal inputs."""
    get, neg, absolute = found.get, operand.neg, operand.abs
    if neg or absolute:
        if kind[0] not in "fb":
            raise UnknownInstruction(f"a {kind} operand takes no neg or abs")
        bits = np.dtype(f"u{WIDTH[kind] // 8}").type
        sign = bits(1 << (WIDTH[kind] - 1))
        plain = get

        def get(w):
            raw = np.asarray(plain(w)).view(bits)
            if absolute:
                raw = raw & ~sign
            if neg:
                raw = raw ^ sign
            return raw.view(DTYPES[kind])

    if kind in ("f32", "f16"):
        exact, attribute = get, "single" if kind == "f32" else "half"

        def get(w):
            value = exact(w)
            return flush(value) if getattr(w.flush, attribute) else value

    return Source(get, found.registers, found.literal)
