"""Between vector registers and memory: shared by LDS, global and scratch instructions."""

from __future__ import annotations

import numpy as np

from .operands import Operand


def fill_inactive(address: np.ndarray, active: np.ndarray | None) -> np.ndarray:
    """Give inactive lanes an active lane's address, of their own wave if it has one. `active` has some lane."""
    if active is None:
        return address
    address = np.broadcast_to(address, active.shape)
    first = np.argmax(active, axis=1)
    own = address[np.arange(len(address)), first]
    alive = active.any(axis=1)
    if not alive.all():
        own = np.where(alive, own, own[alive][0])
    return np.where(active, address, own[:, None])


def read_data(waves, operand: Operand, width: int, high: bool) -> list[np.ndarray]:
    """Store data as uint32 arrays; only the bytes that are stored must be defined."""
    if width <= 2:
        half = "h" if high or operand.half == "h" else "l"
        waves.require(operand.index, half)
        bits = waves.read_vector(operand.index)
        return [bits >> np.uint32(16) if half == "h" else bits]
    words = []
    for i in range(width // 4):
        waves.require(operand.index + i)
        words.append(waves.read_vector(operand.index + i))
    return words


def write_loaded(waves, target: int, words: list[np.ndarray], kind: str, half: str | None) -> None:
    """Write loaded words to consecutive registers, sign-extending i8 and i16; half: to one half of one register."""
    if kind == "i8":
        words = [words[0].astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)]
    elif kind == "i16":
        words = [words[0].astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32)]
    if half is not None:
        waves.write_vector(target, words[0].astype(np.uint16), half)
        return
    for i, word in enumerate(words):
        waves.write_vector(target + i, word)
