"""Float arithmetic of the VALU.

Approximate instructions (rcp, rsq, sqrt, exp, log, sin, cos) are within 1 ulp on hardware. Here their results are
correctly rounded from float64, so agreement with hardware is to 1 ulp, not to the bit. Those of float32 take denormal
inputs as zero and give zero for denormal results whatever the float mode says: LLVM scales around them for that
reason. NaNs lose their payload.
"""

from __future__ import annotations

import numpy as np

from . import rounding
from .fetch import DTYPES
from .rounding import F64, exponent, flush, fma16, fma32, maximum, med3, minimum
from .vector import entry

F32 = np.float32


def _each(name: str, ins: int, function, **options) -> None:
    """The same instruction for float32 and float16."""
    for kind in ("f32", "f16"):
        entry(f"v_{name}_{kind}", kind, " ".join([kind] * ins), function, **options)


def _narrow(function):
    """Compute in float32 and round to float16 where the inputs are float16: exact for + - * with one operation, as
    float32 has more than twice the bits, and faster than NumPy's float16 loops."""

    def apply(a, b):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype == np.float16:
            return function(a.astype(F32), b.astype(F32)).astype(np.float16)
        return function(a, b)

    return apply


_each("add", 2, _narrow(np.add))
_each("sub", 2, _narrow(np.subtract))
_each("subrev", 2, _narrow(lambda a, b: b - a))
_each("mul", 2, _narrow(np.multiply))
_each("min", 2, minimum)
_each("max", 2, maximum)
_each("min3", 3, lambda a, b, c: minimum(minimum(a, b), c))
_each("max3", 3, lambda a, b, c: maximum(maximum(a, b), c))
_each("minmax", 3, lambda a, b, c: maximum(minimum(a, b), c))
_each("maxmin", 3, lambda a, b, c: minimum(maximum(a, b), c))
_each("med3", 3, med3)
_each("floor", 1, np.floor)
_each("ceil", 1, np.ceil)
_each("trunc", 1, np.trunc)
_each("rndne", 1, np.rint)


def _fract(x):
    """x - floor(x), kept below 1; NaN for infinities."""
    x = np.asarray(x)
    wide = x.astype(F64)
    one = x.dtype.type(1)
    return np.minimum((wide - np.floor(wide)).astype(x.dtype), np.nextafter(one, x.dtype.type(0)))


_each("fract", 1, _fract)


def _dx9(a, b):
    zero = (a == 0) | (b == 0)
    return np.where(zero, F32(0), np.asarray(a * b))


entry("v_mul_dx9_zero_f32", "f32", "f32 f32", _dx9)

for _name in ("fma", "fmamk", "fmaak"):
    entry(f"v_{_name}_f32", "f32", "f32 f32 f32", fma32)
    entry(f"v_{_name}_f16", "f16", "f16 f16 f16", fma16)
entry("v_fmac_f32", "f32", "f32 f32 f32", fma32, accumulate=True)
entry("v_fmac_f16", "f16", "f16 f16 f16", fma16, accumulate=True)
entry("v_fma_dx9_zero_f32", "f32", "f32 f32 f32",
      lambda a, b, c: np.where((a == 0) | (b == 0), fma32(F32(0), F32(0), c), fma32(a, b, c)))  # fmt: skip


# approximate functions ---------------------------------------------------------------------------------------------
def _approximate(name: str, function) -> None:
    """function: float64 → float64."""

    def single(x):
        return flush(function(flush(np.asarray(x, F32)).astype(F64)).astype(F32))

    entry(f"v_{name}_f32", "f32", "f32", single)
    entry(f"v_{name}_f16", "f16", "f16", lambda x: function(np.asarray(x, F64)).astype(np.float16))


def _turns(function):
    """Sine or cosine of an angle in revolutions."""
    return lambda x: function(2 * np.pi * (x - np.rint(x)))


_approximate("rcp", lambda x: 1.0 / x)
_approximate("rsq", lambda x: 1.0 / np.sqrt(x))
_approximate("sqrt", np.sqrt)
_approximate("exp", np.exp2)
_approximate("log", np.log2)
_approximate("sin", _turns(np.sin))
_approximate("cos", _turns(np.cos))
# differs from v_rcp_f32 only in the exceptions it signals
entry("v_rcp_iflag_f32", "f32", "f32", lambda x: flush((1.0 / flush(np.asarray(x, F32)).astype(F64)).astype(F32)))


# exponents and mantissas -------------------------------------------------------------------------------------------
def _ldexp(x, e):
    x = np.asarray(x)
    return np.ldexp(x.astype(F64), np.clip(np.asarray(e, np.int32), -512, 512)).astype(x.dtype)


entry("v_ldexp_f32", "f32", "f32 i32", _ldexp)
entry("v_ldexp_f16", "f16", "f16 i16", _ldexp)


def _frexp_mant(x):
    x = np.asarray(x)
    return np.where(np.isfinite(x), np.frexp(x.astype(F64))[0].astype(x.dtype), x)


def _frexp_exp(dtype):
    def apply(x):
        x = np.asarray(x, F64)
        return np.where(np.isfinite(x), np.frexp(x)[1], 0).astype(dtype)

    return apply


_each("frexp_mant", 1, _frexp_mant)
entry("v_frexp_exp_i32_f32", "i32", "f32", _frexp_exp(np.int32))
entry("v_frexp_exp_i16_f16", "i16", "f16", _frexp_exp(np.int16))


# division ----------------------------------------------------------------------------------------------------------
def _div_scale(value, denominator, numerator):
    """The operand of a division, scaled by 2^±64 where Newton's method would leave the normal range; the mask says
    that v_div_fmas must scale back. The guide's table with the meaning its prose gives it: a huge denominator is
    scaled down, and zero operands set the mask."""
    value, denominator, numerator = np.broadcast_arrays(*(np.asarray(x, F32) for x in (value, denominator, numerator)))
    of_n, of_d = exponent(numerator), exponent(denominator)
    is_denominator = value.view(np.uint32) == denominator.view(np.uint32)
    is_numerator = value.view(np.uint32) == numerator.view(np.uint32)
    zero = (denominator == 0) | (numerator == 0)
    tiny_quotient = of_n - of_d <= -126  # the quotient may be denormal
    huge_denominator = of_d >= 253  # its reciprocal may be denormal
    conditions = [
        zero,
        of_n - of_d >= 96,
        of_d == 0,
        huge_denominator & tiny_quotient,
        huge_denominator,
        tiny_quotient,
        of_n <= 23,
    ]
    scale = np.select(
        conditions,
        [
            np.full(value.shape, np.nan),
            np.where(is_denominator, 2.0**64, 1.0),
            np.full(value.shape, 2.0**64),
            np.where(is_denominator, 2.0**-64, 1.0),
            np.full(value.shape, 2.0**-64),
            np.where(is_numerator, 2.0**64, 1.0),
            np.full(value.shape, 2.0**64),
        ],
        1.0,
    )
    mask = np.select(conditions, [True, True, False, True, False, True, False], False)
    return (value.astype(F64) * scale).astype(F32), mask


entry("v_div_scale_f32", "f32", "f32 f32 f32", _div_scale, mask_out=True)


def _div_fmas(waves, a, b, c):
    """fma, times 2^64 or 2^-64 in lanes that vcc marks: up where the addend is 2 or more, else down."""
    from .operands import VCC_LO

    plain = fma32(a, b, c)
    marked = waves.read_mask(VCC_LO)
    if not marked.any():
        return plain
    scale = np.where(exponent(c) > 127, 2.0**64, 2.0**-64)
    # one rounding: powers of two move the exact sum without changing its bits
    scaled = rounding.exact_sum(np.multiply(a, b, dtype=F64) * scale, np.asarray(c, F64) * scale).astype(F32)
    return np.where(marked, scaled, plain)


entry("v_div_fmas_f32", "f32", "f32 f32 f32", _div_fmas, needs_waves=True)


def _div_fixup(kind: str):
    dtype = DTYPES[kind]

    def apply(quotient, denominator, numerator):
        q, d, n = np.broadcast_arrays(*(np.asarray(x, dtype) for x in (quotient, denominator, numerator)))
        sign = np.signbit(d) ^ np.signbit(n)
        inf, zero = dtype(np.inf), dtype(0)
        special = [
            np.isnan(n),
            np.isnan(d),
            (n == 0) & (d == 0) | np.isinf(n) & np.isinf(d),
            (d == 0) | np.isinf(n),
            np.isinf(d) | (n == 0),
            np.isnan(q),  # the estimate overflowed
        ]
        size = np.select(special, [n, d, np.full(q.shape, dtype(np.nan)), inf, zero, inf], np.abs(q))
        return np.copysign(size.astype(dtype), np.where(sign, dtype(-1), dtype(1)))

    return apply


entry("v_div_fixup_f32", "f32", "f32 f32 f32", _div_fixup("f32"))
entry("v_div_fixup_f16", "f16", "f16 f16 f16", _div_fixup("f16"))


# dot products ------------------------------------------------------------------------------------------------------
def _halves(x):
    x = np.asarray(x, np.uint32)
    return tuple(h.astype(np.uint16).view(np.float16).astype(F32) for h in (x & 0xFFFF, x >> 16))


def _dot2(a, b, c):
    (a0, a1), (b0, b1) = _halves(a), _halves(b)
    return a1 * b1 + (a0 * b0 + c)


entry("v_dot2_f32_f16", "f32", "u32 u32 f32", _dot2)
entry("v_dot2acc_f32_f16", "f32", "u32 u32 f32", _dot2, accumulate=True)
