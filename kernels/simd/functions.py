"""float32 vector transcendentals: LLVM would call libm once per lane, these stay in vector registers.

exp: argument reduction x = n*ln2 + r with ln2 split in two parts and a degree-6 Taylor polynomial on |r| ≤ ln2/2
(error under 2 ulp); erf: Abramowitz & Stegun 7.1.26 (absolute error under 1.5e-7).

A value used more than once is bound first: an expression is a tree, and TVM's passes walk every copy.
"""

from __future__ import annotations

from tvm import tirx

from .vector import const, hold, splat, vtype

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # high part exact in 9 bits, so n*high is exact
_EXP = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def exp(x, lanes: int):
    """exp(x), clamped to about [1e-38, 1e38]."""
    x = hold(tirx.max(tirx.min(x, const(88.3, lanes)), const(-87.3, lanes)))
    n = hold(tirx.call_intrin(vtype("float32", lanes), "tirx.floor", x * const(_LOG2E, lanes) + const(0.5, lanes)))
    r = hold(x - n * const(_LN2_HIGH, lanes) - n * const(_LN2_LOW, lanes))
    poly = const(_EXP[0], lanes)
    for c in _EXP[1:]:
        poly = poly * r + const(c, lanes)
    biased = tirx.Cast(vtype("int32", lanes), n) + splat(tirx.IntImm("int32", 127), lanes)
    power = tirx.shift_left(biased, splat(tirx.IntImm("int32", 23), lanes))
    return poly * tirx.reinterpret(vtype("float32", lanes), power)


def sigmoid(x, lanes: int):
    return const(1.0, lanes) / (const(1.0, lanes) + exp(-x, lanes))


def tanh(x, lanes: int):
    """2*sigmoid(2x) - 1, with x itself where |x| is so small that the subtraction would lose digits."""
    x = hold(x)
    big = const(2.0, lanes) * sigmoid(x * const(2.0, lanes), lanes) - const(1.0, lanes)
    small = x - x * x * x * const(1.0 / 3.0, lanes)
    return tirx.Select(tirx.abs(x) < const(0.02, lanes), small, big)


def erf(x, lanes: int):
    x = hold(x)
    a = hold(tirx.abs(x))
    t = hold(const(1.0, lanes) / (const(1.0, lanes) + const(0.3275911, lanes) * a))
    poly = const(_ERF[0], lanes)
    for c in _ERF[1:]:
        poly = poly * t + const(c, lanes)
    value = hold(const(1.0, lanes) - poly * t * exp(-a * a, lanes))
    return tirx.Select(x < const(0.0, lanes), -value, value)


def activation(name: str, x, lanes: int):
    """silu, gelu (erf form) or gelu_tanh of a float32 vector."""
    x = hold(x)
    if name == "silu":
        return x * sigmoid(x, lanes)
    if name == "gelu":
        return const(0.5, lanes) * x * (const(1.0, lanes) + erf(x * const(0.7071067811865476, lanes), lanes))
    if name == "gelu_tanh":
        inner = const(0.7978845608028654, lanes) * (x + const(0.044715, lanes) * x * x * x)
        return const(0.5, lanes) * x * (const(1.0, lanes) + tanh(inner, lanes))
    raise ValueError(f"no activation {name}")
