"""Activations in float32, from the functions every GPU code generator lowers."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def sigmoid(x):
    return T.float32(1) / (T.float32(1) + tirx.exp(-x))


def tanh(x):
    """1 - 2 / (exp(2x) + 1): right at both ends, where exp overflows or vanishes."""
    return T.float32(1) - T.float32(2) / (tirx.exp(x * T.float32(2)) + T.float32(1))


_TURN = (6.28125, 507 / 2**18, 1.2556659146e-06)  # 2*pi in three parts; whole turns times the first two are exact


def cos_sin(angle):
    """(cos, sin) with the whole turns taken off first: many GPUs are accurate near zero only."""
    angle = T.bind(angle)
    turns = T.bind(tirx.round(angle * T.float32(0.15915494309189535)))
    for part in _TURN:
        angle = T.bind(angle - turns * T.float32(part))
    return tirx.cos(angle), tirx.sin(angle)


def erf(x):
    """Abramowitz & Stegun 7.1.26, absolute error under 1.5e-7."""
    x = T.bind(x)
    a = T.bind(tirx.abs(x))
    t = T.bind(T.float32(1) / (T.float32(1) + T.float32(0.3275911) * a))
    poly = T.float32(_ERF[0])
    for c in _ERF[1:]:
        poly = poly * t + T.float32(c)
    value = T.bind(T.float32(1) - poly * t * tirx.exp(-a * a))
    return tirx.Select(x < T.float32(0), -value, value)


def activation(name: str, x):
    """silu, gelu (erf form) or gelu_tanh."""
    x = T.bind(x)
    if name == "silu":
        return x * sigmoid(x)
    if name == "gelu":
        return T.float32(0.5) * x * (T.float32(1) + erf(x * T.float32(0.7071067811865476)))
    if name == "gelu_tanh":
        inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
        return T.float32(0.5) * x * (T.float32(1) + tanh(inner))
    raise ValueError(f"no activation {name}")
