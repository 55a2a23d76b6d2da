"""Atomic updates of memory; lanes take their turn in wave and lane order."""

from __future__ import annotations

import numpy as np

from .errors import OutOfBounds
from .memory import gather
from .operands import Operand

_INT = ("u32", "u64")
OPERATIONS: dict[str, tuple[str, ...]] = {
    "add": ("u32", "u64", "f32"),
    "sub": _INT,
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
    "min": ("i32", "u32", "i64", "u64", "f32"),
    "max": ("i32", "u32", "i64", "u64", "f32"),
    "swap": ("b32", "b64"),
    "cmpswap": ("b32", "b64"),
}
_DTYPE = {
    "u32": np.uint32, "b32": np.uint32, "i32": np.int32, "f32": np.float32,
    "u64": np.uint64, "b64": np.uint64, "i64": np.int64,
}  # fmt: skip
_UFUNC = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def data_words(waves, operands: list[Operand], kind: str) -> list[np.ndarray]:
    """The data operands as arrays [n, lanes] of the kind's type. cmpswap has source and compare value: for global
    memory in one register group, for LDS in two operands."""
    words = 1 if kind.endswith("32") else 2
    values = []
    for operand in operands:
        for first in range(operand.index, operand.index + operand.count, words):
            for i in range(words):
                waves.require(first + i)
            bits = waves.read_vector(first)
            if words == 2:
                bits = bits.astype(np.uint64) | (waves.read_vector(first + 1).astype(np.uint64) << 32)
            values.append(bits.view(_DTYPE[kind]))
    return values


def apply_atomic(name, kind, data, offsets, values, active, returns: bool) -> list[np.ndarray] | None:
    """Update `data` (uint8) at byte offsets [n, lanes]; returns the words before each update where asked for."""
    dtype = _DTYPE[kind]
    size = np.dtype(dtype).itemsize
    if int(np.bitwise_or.reduce(offsets, axis=None)) % size:
        raise OutOfBounds("the address of an atomic is not aligned to its width")
    view = data[: data.size // size * size].view(dtype)
    lanes = np.ones(offsets.shape, bool) if active is None else active
    index = (offsets // size)[lanes]
    values = [np.broadcast_to(v, offsets.shape)[lanes] for v in values]
    in_one_go = np.unique(index).size == index.size
    if returns or name in ("swap", "cmpswap"):
        before = np.zeros(offsets.shape, dtype)
        if in_one_go:
            before[lanes] = view[index]
            view[index] = _update(name, view[index], values)
        else:
            old = np.empty(index.size, dtype)
            for i, at in enumerate(index):
                old[i] = view[at]
                view[at] = _update(name, view[at], [v[i] for v in values])
            before[lanes] = old
        if not returns:
            return None
        return gather(before.view(np.uint8).reshape(-1), np.arange(before.size).reshape(before.shape) * size, size)
    _UFUNC[name].at(view, index, values[0])
    return None


def _update(name: str, old, values):
    if name == "swap":
        return values[0]
    if name == "cmpswap":
        return np.where(old == values[1], values[0], old)
    return _UFUNC[name](old, values[0])
