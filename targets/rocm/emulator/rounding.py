"""Float arithmetic with one rounding, and the denormal and signed-zero rules, in NumPy."""

from __future__ import annotations

import numpy as np

F32, F64 = np.float32, np.float64
_TINY = {np.dtype(np.float32): np.float32(2.0**-126), np.dtype(np.float16): np.float16(2.0**-14)}
_LOW28, _LOW29, _TIE = np.int64((1 << 28) - 1), np.int64((1 << 29) - 1), np.int64(1 << 28)


def exact_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 a + b, made safe to round again to float32: where the sum is inexact and might sit on a tie of float32,
    it is nudged by one unit towards the exact value."""
    total = np.asarray(a + b)
    bits = total.view(np.int64)
    # a tie between two normal float32 values has a one after their 24 bits and zeros below it
    suspects = (bits & _LOW29) == _TIE
    small = np.abs(total) < 2.0**-126
    if small.any():  # ties between denormals have more zeros
        suspects |= small & (total != 0) & ((bits & _LOW28) == 0)
    if not suspects.any():
        return total
    at = np.nonzero(suspects)
    a, b = np.broadcast_to(a, total.shape)[at], np.broadcast_to(b, total.shape)[at]
    s = total[at]
    part = s - a  # Knuth's two-sum: s + error is exactly a + b
    error = (a - (s - part)) + (b - part)
    direction = np.where(error > 0, np.inf, np.where(error < 0, -np.inf, s))
    total = total.copy() if not total.flags.writeable else total
    total[at] = np.nextafter(s, direction)
    return total


def fma32(a, b, c) -> np.ndarray:
    """float32 a * b + c rounded once (the product of two float32 is exact in float64)."""
    product = np.multiply(a, b, dtype=F64)
    return exact_sum(product, np.asarray(c, F64)).astype(F32)


def fma16(a, b, c) -> np.ndarray:
    """float16 a * b + c rounded once: float64 holds the sum exactly unless it overflows float16 anyway."""
    return (np.multiply(a, b, dtype=F64) + np.asarray(c, F64)).astype(np.float16)


def flush(x: np.ndarray) -> np.ndarray:
    """Denormals to zero of the same sign."""
    return np.where(np.abs(x) < _TINY[x.dtype], np.copysign(x.dtype.type(0), x), x)


def minimum(a, b) -> np.ndarray:
    """IEEE minNum: the other operand where one is a NaN, and -0 below +0."""
    low = np.fmin(a, b)
    return np.where((a == b) & np.signbit(a), a, np.where((a == b), b, low))


def maximum(a, b) -> np.ndarray:
    """IEEE maxNum: the other operand where one is a NaN, and +0 above -0."""
    high = np.fmax(a, b)
    return np.where((a == b) & np.signbit(a), b, np.where((a == b), a, high))


def med3(a, b, c) -> np.ndarray:
    """The middle of three; the least where one is a NaN, as the ISA guide defines it."""
    middle = maximum(minimum(a, b), minimum(maximum(a, b), c))
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(nan, minimum(minimum(a, b), c), middle)


def exponent(x) -> np.ndarray:
    """The biased exponent field of float32, int32."""
    return ((np.asarray(x, F32).view(np.uint32) >> 23) & 0xFF).astype(np.int32)


def to_int(x, low: int, high: int) -> np.ndarray:
    """Truncate towards zero, saturate, NaN → 0; int64."""
    wide = np.asarray(x, F64)
    wide = np.where(np.isnan(wide), 0.0, wide)
    return np.trunc(np.clip(wide, low, high)).astype(np.int64)


def toward_zero16(x) -> np.ndarray:
    """float32 → float16 rounded towards zero; overflow gives the largest finite value, infinities stay."""
    x = np.asarray(x, F32)
    half = x.astype(np.float16)
    with np.errstate(invalid="ignore"):
        too_far = np.abs(half.astype(F32)) > np.abs(x)
    return np.where(np.isnan(x), np.float16(np.nan), np.where(too_far, np.nextafter(half, np.float16(0)), half))
