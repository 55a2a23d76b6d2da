"""Arithmetic to check against: Python integers and fractions, one number at a time, rounded by hand."""

import math
from fractions import Fraction

import numpy as np

FORMATS = {"f32": (24, -149, 128, np.uint32, np.float32), "f16": (11, -24, 16, np.uint16, np.float16)}

EDGES = {
    "f32": np.array(
        [0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x807FFFFF, 0x800000, 0x80800000, 0x3F800000, 0xBF800000, 0x3F800001,
         0x3F7FFFFF, 0x40000000, 0x3F000000, 0xBF000000, 0x3FC00000, 0x40200000, 0x4B000000, 0x4B000001, 0x4EFFFFFF,
         0x4F000000, 0xCF000000, 0x4F800000, 0x5F800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
         0x40490FDB, 0x33800000, 0x00400000, 0x0C000000, 0x7E800000], np.uint32),
    "f16": np.array(
        [0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF, 0x400, 0x8400, 0x3C00, 0xBC00, 0x3C01, 0x3BFF, 0x4000, 0x3800, 0xB800,
         0x3E00, 0x4100, 0x6400, 0x6401, 0x77FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x4248, 0x1400, 0x200],
        np.uint16),
    "u32": np.array([0, 1, 2, 3, 15, 16, 31, 32, 33, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0xFFFFFF, 0x1000000,
                     0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 0xDEADBEEF], np.uint32),
    "u16": np.array([0, 1, 2, 15, 16, 17, 127, 128, 255, 256, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0xBEEF],
                    np.uint16),
}  # fmt: skip
EDGES |= {"i32": EDGES["u32"], "b32": EDGES["u32"], "i16": EDGES["u16"], "b16": EDGES["u16"]}


def width(kind: str) -> int:
    return int(kind[1:])


def inputs(kinds, seed: int = 0, random: int = 256) -> list[np.ndarray]:
    """Raw bits per operand: pairs (or random triples) of edge values, then random bits; equally long, whole waves."""
    rng = np.random.default_rng(seed)
    edges = []
    for kind in kinds:
        e = EDGES.get(kind)
        if e is None:
            small = EDGES["u32"].astype(np.uint64)
            e = np.concatenate([small, small << np.uint64(32), ~small, small | (small << np.uint64(32))])
        edges.append(e)
    if len(kinds) == 1:
        grid = [edges[0]]
    elif len(kinds) == 2:
        grid = [g.ravel() for g in np.meshgrid(*edges)]
    else:
        grid = [rng.choice(e, 1500) for e in edges]
    out = []
    for kind, g in zip(kinds, grid, strict=True):
        noise = rng.integers(0, 2 ** width(kind), random, np.uint64)
        both = np.concatenate([g.astype(np.uint64), noise])
        out.append(np.resize(both, -(-len(both) // 32) * 32))
    return out


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def number(bits: int, kind: str):
    """Raw bits → Python int or float of that type."""
    if kind[0] == "f":
        return float(np.array(bits, FORMATS[kind][3]).view(FORMATS[kind][4]))
    return signed(bits, width(kind)) if kind[0] == "i" else bits


def to_bits(value, kind: str) -> int:
    """Python number → raw bits; floats must be exact in the type or non-finite."""
    if kind[0] == "f":
        with np.errstate(all="ignore"):
            return int(np.array(value, FORMATS[kind][4]).view(FORMATS[kind][3]))
    return value & ((1 << width(kind)) - 1)


def rounded(x: Fraction, kind: str, zero: float = 0.0) -> float:
    """Nearest even float of the format; `zero` is what an exact zero becomes."""
    if x == 0:
        return zero
    precision, least, most = FORMATS[kind][:3]
    size = abs(x)
    exponent = max(math.floor(math.log2(size.numerator) - math.log2(size.denominator)) - precision + 1, least)
    while size / Fraction(2) ** exponent >= 2**precision:  # log2 may be off by one
        exponent += 1
    while exponent > least and size / Fraction(2) ** exponent < 2 ** (precision - 1):
        exponent -= 1
    units = round(size / Fraction(2) ** exponent)  # Python rounds halves to even
    result = math.inf if units * Fraction(2) ** exponent >= Fraction(2) ** most else math.ldexp(units, exponent)
    return -result if x < 0 else result


def fma(a: float, b: float, c: float, kind: str) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        if math.isnan(a) or math.isnan(b) or math.isnan(c):
            return math.nan
        if (math.isinf(a) and b == 0) or (math.isinf(b) and a == 0):
            return math.nan
        product = math.copysign(math.inf, math.copysign(1, a) * math.copysign(1, b)) if not (
            math.isfinite(a) and math.isfinite(b)) else 0.0  # fmt: skip
        return product + c
    sign_p = math.copysign(1, a) * math.copysign(1, b)
    zero = math.copysign(0.0, sign_p) if sign_p == math.copysign(1, c) else 0.0
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0 and (Fraction(a) * Fraction(b) != 0 or c != 0):
        zero = 0.0  # x - x
    return rounded(exact, kind, zero)


def add(a: float, b: float, kind: str) -> float:
    return fma(1.0, a, b, kind)


def multiply(a: float, b: float, kind: str) -> float:
    zero = math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b))
    if not (math.isfinite(a) and math.isfinite(b)):
        return fma(a, b, 0.0, kind)
    return rounded(Fraction(a) * Fraction(b), kind, zero) or zero


def divide(a: float, b: float, kind: str) -> float:
    if math.isnan(a) or math.isnan(b) or (a == 0 and b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isinf(a) or b == 0:
        return math.copysign(math.inf, sign)
    if math.isinf(b) or a == 0:
        return math.copysign(0.0, sign)
    return rounded(Fraction(a) / Fraction(b), kind) or math.copysign(0.0, sign)


def smaller(a: float, b: float) -> float:
    """minNum with -0 below +0."""
    if math.isnan(a):
        return b
    if math.isnan(b):
        return a
    if a == b == 0:
        return a if math.copysign(1, a) < 0 else b
    return min(a, b)


def larger(a: float, b: float) -> float:
    if math.isnan(a):
        return b
    if math.isnan(b):
        return a
    if a == b == 0:
        return b if math.copysign(1, a) < 0 else a
    return max(a, b)


def same(got: np.ndarray, wanted: list[int], kind: str) -> np.ndarray:
    """Where raw bits agree, or both are NaNs."""
    got, wanted = np.asarray(got).ravel(), np.array(wanted, np.asarray(got).dtype)
    equal = got == wanted
    if kind[0] == "f":
        floats = FORMATS[kind][4]
        equal |= np.isnan(got.view(floats)) & np.isnan(wanted.view(floats))
    return equal
