"""Mathematical functions.

Everything but rounding, absolute value and fma (and float64 square roots) is computed in float32 and rounded to the
operand's type. What a Vulkan device guarantees is used where it is good enough (exp, log, sqrt …: 'native' below,
with the bound of the Vulkan specification, precision of GLSL.std.450); sin, cos, tanh and erf are done here, since
the guarantee is weak (sin: 2^-11) or missing (erf), and so is pow, which GLSL leaves undefined for negative bases.

Bounds in float32 (ulp of the result unless it says absolute), given native exp and log within theirs:
    exp, exp2        3 + 2|x|              native
    log, log2        3; absolute 2^-21 for x in [0.5, 2]          native
    sqrt, rsqrt      2                     native
    sin, cos         absolute 3e-7 for |x| <= 100000
    tanh             8;  erf 8             (odd, saturating at 1)
    pow              2^-22 * (8 + 8 |y log2 x|) relative; C's pow for zero, negative and integer arguments
    log1p            12; absolute 2^-20 for x in [-0.5, 1]
    others           native
The polynomials are weighted least-squares minimax fits to the functions in float64.
"""

from __future__ import annotations

import math

from .arithmetic import Arithmetic
from .dtypes import BOOL, F32, I32, U32, DType
from .errors import CodegenError

# function → GLSL.std.450, computed in the operand's own type
_EXACT = {
    "floor": "Floor", "ceil": "Ceil", "trunc": "Trunc", "round": "RoundEven", "nearbyint": "RoundEven",
    "rint": "RoundEven", "fabs": "FAbs", "abs": "FAbs", "sqrt": "Sqrt", "rsqrt": "InverseSqrt", "fma": "Fma",
}  # fmt: skip
_NATIVE = {
    "exp": "Exp", "exp2": "Exp2", "log": "Log", "log2": "Log2", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "atan2": "Atan2",
}  # fmt: skip

# pi/2 in pieces of 8 bits, so that a multiple below 2^16 of each but the last is exact
_HALF_PI = (1.5703125, 0.0004825592041015625, 1.2665987014770508e-06, 9.92093629470503e-10)
_SIN = (-0.16666653752326965, 0.008332131430506706, -0.00019510870333760977)  # (sin x - x) / x^3 in x^2, |x| < 0.8
_COS = (0.04166664555668831, -0.0013887305976822972, 2.4431239580735564e-05)  # (cos x - 1 + x^2/2) / x^4 in x^2
_TANH = (-0.3333328366279602, 0.13331490755081177, -0.05374349653720856, 0.020650578662753105,
         -0.005717036779969931)  # (tanh x - x) / x^3 in x^2, |x| < 0.625  # fmt: skip
_ERF = (1.1283791065216064, -0.3761262595653534, 0.11283600330352783, -0.026854444295167923, 0.005189535208046436,
        -0.0008020841050893068, 7.889119297033176e-05)  # erf x / x in x^2, |x| < 1  # fmt: skip
_LOG_ERFC = (-0.00035370892146602273, -1.1270400285720825, -0.6382256150245667, -0.10303743928670883,
             0.021805351600050926, -0.0029396158643066883, 0.0001855748996604234)  # in x, 1 <= x <= 4  # fmt: skip


class MathLibrary:
    """`call(name, dtype, ids)` emits a function of scalars."""

    def __init__(self, arithmetic: Arithmetic):
        self.a, self.m = arithmetic, arithmetic.m
        self._composed = {
            "sin": self._sin, "cos": self._cos, "tan": self._tan, "tanh": self._tanh, "erf": self._erf,
            "pow": self._pow, "log1p": self._log1p, "log10": self._log10, "exp10": self._exp10,
            "sigmoid": self._sigmoid, "hypot": self._hypot, "copysign": self._copysign, "ldexp": self._ldexp,
        }  # fmt: skip

    def knows(self, name: str) -> bool:
        return name in _EXACT or name in _NATIVE or name in self._composed or name == "fmod"

    def call(self, name: str, dtype: DType, values: list[int]) -> int:
        """The function `name` (C's names without suffix) on scalars of one type."""
        if dtype.is_integer and name in ("abs", "fabs"):
            return self.m.ext("SAbs", dtype, *values) if dtype.is_signed else values[0]
        if name == "fmod":
            return self.a.binary("Mod", dtype, *values)
        if name in _EXACT and dtype.is_float and not (dtype.bits == 16 and "sqrt" in name):
            return self.m.ext(_EXACT[name], dtype, *values)
        if dtype.bits == 64 or not (dtype.is_float or dtype.is_bfloat):
            raise CodegenError(f"{name} of {dtype.kind}{dtype.bits} is not available on Vulkan")
        wide = [self.a.cast(F32, dtype, v) for v in values]
        if name in _EXACT:
            result = self.m.ext(_EXACT[name], F32, *wide)
        elif name in _NATIVE:
            result = self.m.ext(_NATIVE[name], F32, *wide)
        else:
            result = self._composed[name](*wide)
        return self.a.cast(dtype, F32, result)

    # ---- small vocabulary: float32 only

    def _c(self, value: float) -> int:
        return self.m.constant(F32, value)

    def _f(self, name: str, a: int, b: int) -> int:
        return self.a.binary(name, F32, a, b)

    def _fma(self, a: int, b: int, c: int) -> int:
        return self.m.ext("Fma", F32, a, b, c)

    def _abs(self, x: int) -> int:
        return self.m.ext("FAbs", F32, x)

    def _less(self, a: int, b: float) -> int:
        return self.a.binary("LT", F32, a, self._c(b))

    def _select(self, condition: int, a: int, b: int) -> int:
        return self.a.select(F32, condition, a, b)

    def _polynomial(self, coefficients: tuple[float, ...], x: int) -> int:
        result = self._c(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            result = self._fma(result, x, self._c(c))
        return result

    # ---- functions

    def _reduced(self, x: int) -> tuple[int, int]:
        """x = n * pi/2 + r with |r| <= pi/4: n as int32, r."""
        n = self.m.ext("RoundEven", F32, self._f("Mul", x, self._c(2 / math.pi)))
        r = x
        for piece in _HALF_PI:
            r = self._fma(n, self._c(-piece), r)
        return self.m.scalar("ConvertFToS", I32, n), r

    def _quadrant(self, x: int, shift: int) -> int:
        """sin(x + shift * pi/2)."""
        n, r = self._reduced(x)
        n = self.a.binary("Add", I32, n, self.m.constant(I32, shift)) if shift else n
        z = self._f("Mul", r, r)
        sine = self._fma(self._f("Mul", self._polynomial(_SIN, z), z), r, r)
        half = self._fma(z, self._c(-0.5), self._c(1))
        cosine = self._fma(self._f("Mul", self._polynomial(_COS, z), z), z, half)
        value = self._select(self._bit(n, 1), cosine, sine)
        return self._select(self._bit(n, 2), self.a.negate(F32, value), value)

    def _bit(self, n: int, mask: int) -> int:
        return self.a.cast(BOOL, I32, self.a.binary("BitwiseAnd", I32, n, self.m.constant(I32, mask)))

    def _sin(self, x: int) -> int:
        return self._quadrant(x, 0)

    def _cos(self, x: int) -> int:
        return self._quadrant(x, 1)

    def _tan(self, x: int) -> int:
        return self._f("Div", self._sin(x), self._cos(x))

    def _tanh(self, x: int) -> int:
        z = self._f("Mul", x, x)
        small = self._fma(self._f("Mul", self._polynomial(_TANH, z), z), x, x)
        magnitude = self._abs(x)
        e = self.m.ext("Exp", F32, self._f("Add", magnitude, magnitude))
        large = self._f("Sub", self._c(1), self._f("Div", self._c(2), self._f("Add", e, self._c(1))))
        return self._select(self._less(magnitude, 0.625), small, self._copysign(large, x))

    def _erf(self, x: int) -> int:
        small = self._f("Mul", x, self._polynomial(_ERF, self._f("Mul", x, x)))
        magnitude = self._abs(x)
        # above 4 the result rounds to 1; min would turn NaN into 4, a comparison keeps it
        clamped = self._select(self.a.binary("GT", F32, magnitude, self._c(4)), self._c(4), magnitude)
        large = self._f("Sub", self._c(1), self.m.ext("Exp", F32, self._polynomial(_LOG_ERFC, clamped)))
        return self._select(self._less(magnitude, 1), small, self._copysign(large, x))

    def _pow(self, x: int, y: int) -> int:
        zero, one = self._c(0), self._c(1)
        power = self.m.ext("Exp2", F32, self._f("Mul", y, self.m.ext("Log2", F32, self._abs(x))))
        integer = self.a.binary("EQ", F32, y, self.m.ext("Trunc", F32, y))
        half = self._f("Mul", y, self._c(0.5))
        even = self.a.binary("EQ", F32, half, self.m.ext("Trunc", F32, half))
        odd = self.a.binary("And", BOOL, integer, self.a.logical_not(even))
        signed = self._select(odd, self._copysign(power, x), power)
        undefined = self.a.binary("And", BOOL, self._less(x, 0), self.a.logical_not(integer))
        valid = self._select(undefined, self._c(math.nan), signed)
        trivial = self.a.binary("Or", BOOL, self.a.binary("EQ", F32, y, zero), self.a.binary("EQ", F32, x, one))
        return self._select(trivial, one, valid)

    def _log1p(self, x: int) -> int:
        """log(u) * x / (u - 1) with u = 1 + x: the rounding of u cancels."""
        u = self._f("Add", x, self._c(1))
        rounded = self._f("Sub", u, self._c(1))
        value = self._f("Div", self._f("Mul", self.m.ext("Log", F32, u), x), rounded)
        tiny = self.a.binary("EQ", F32, rounded, self._c(0))
        infinite = self.a.binary("EQ", F32, u, self._c(math.inf))
        return self._select(self.a.binary("Or", BOOL, tiny, infinite), x, value)

    def _log10(self, x: int) -> int:
        return self._f("Mul", self.m.ext("Log2", F32, x), self._c(math.log10(2)))

    def _exp10(self, x: int) -> int:
        return self.m.ext("Exp2", F32, self._f("Mul", x, self._c(math.log2(10))))

    def _sigmoid(self, x: int) -> int:
        e = self.m.ext("Exp", F32, self.a.negate(F32, x))
        return self._f("Div", self._c(1), self._f("Add", e, self._c(1)))

    def _hypot(self, x: int, y: int) -> int:
        return self.m.ext("Sqrt", F32, self._fma(x, x, self._f("Mul", y, y)))

    def _ldexp(self, x: int, exponent: int) -> int:
        return self.m.ext("Ldexp", F32, x, self.m.scalar("ConvertFToS", I32, exponent))

    def _copysign(self, magnitude: int, sign: int) -> int:
        def bits(value: int, mask: int) -> int:
            word = self.m.scalar("Bitcast", U32, value)
            return self.a.binary("BitwiseAnd", U32, word, self.m.constant(U32, mask))

        word = self.a.binary("BitwiseOr", U32, bits(magnitude, 0x7FFFFFFF), bits(sign, 0x80000000))
        return self.m.scalar("Bitcast", F32, word)
