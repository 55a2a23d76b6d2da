"""Random numbers that are a function of a seed and a counter: Threefry-2x32 with 20 rounds.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). kernels/simt/draw.py has the same.
"""

from __future__ import annotations

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_MASK = 0xFFFFFFFF


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Two 32-bit words for a key and a counter of two 32-bit words each."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            x = (x + y) & _MASK
            y = ((y << turn | y >> 32 - turn) & _MASK) ^ x
        x = (x + keys[(group + 1) % 3]) & _MASK
        y = (y + keys[(group + 2) % 3] + group + 1) & _MASK
    return x, y


def uniform(seed: int, count: int) -> float:
    """The count-th number in [0, 1) of a 64-bit seed, a multiple of 2**-53; its first 24 bits are the first word's."""
    high, low = threefry((seed & _MASK, seed >> 32), (count & _MASK, count >> 32))
    return (high << 21 | low >> 11) * 2.0**-53
