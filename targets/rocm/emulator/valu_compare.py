"""v_cmp and v_cmpx: one bit per active lane into a scalar mask or EXEC."""

from __future__ import annotations

import numpy as np

from .fetch import source
from .lanes import dpp_control
from .operands import EXEC_LO
from .parser import Instruction, Kernel
from .table import handles

_INTEGER = {
    "lt": np.less, "eq": np.equal, "le": np.less_equal, "gt": np.greater, "ne": np.not_equal, "ge": np.greater_equal,
}  # fmt: skip
_FLOAT = {
    **{k: v for k, v in _INTEGER.items() if k != "ne"},
    "lg": lambda a, b: (a < b) | (a > b),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": lambda a, b: ~(a == b),
    "nlt": lambda a, b: ~(a < b),
}


def classify(x, wanted) -> np.ndarray:
    """v_cmp_class: does each number belong to a class whose bit is set in `wanted`? Bits: signalling NaN, quiet NaN,
    -infinity, -normal, -denormal, -0, +0, +denormal, +normal, +infinity."""
    x = np.asarray(x)
    bits = x.view(np.uint32 if x.dtype == np.float32 else np.uint16).astype(np.int64)
    mantissa_bits = 23 if x.dtype == np.float32 else 10
    exponent_max = 255 if x.dtype == np.float32 else 31
    mantissa, exponent = bits & ((1 << mantissa_bits) - 1), (bits >> mantissa_bits) & exponent_max
    negative = np.signbit(x)
    nan = (exponent == exponent_max) & (mantissa != 0)
    quiet = (mantissa >> (mantissa_bits - 1)) == 1
    infinite = (exponent == exponent_max) & (mantissa == 0)
    zero, denormal = (exponent == 0) & (mantissa == 0), (exponent == 0) & (mantissa != 0)
    size = np.select([infinite, denormal, zero], [0, 2, 3], 1)
    bit = np.where(nan, np.where(quiet, 1, 0), np.where(negative, 2 + size, 9 - size))
    return ((np.asarray(wanted).astype(np.int64) >> bit) & 1).astype(bool)


def _comparison(kinds: tuple[str, str], function, to_exec: bool):
    def binder(instruction: Instruction, kernel: Kernel):
        operands = instruction.operands
        target = EXEC_LO if to_exec else operands[0].index
        control = dpp_control(instruction.modifiers, kernel.lanes)
        selected = tuple(instruction.modifiers.get("op_sel", ())) + (0, 0)
        inputs = operands[-2:]
        sources = [
            source(o, kind, "h" if selected[i] else None, control.permute if control and i == 0 else None)
            for i, (o, kind) in enumerate(zip(inputs, kinds, strict=True))
        ]
        registers = [r for s in sources for r in s.registers]
        left, right = (s.get for s in sources)

        def step(waves):
            for register, half in registers:
                if register in waves.loose:
                    waves.require(register, half, None if control is None else control.read_lanes(waves))
            result = function(left(waves), right(waves))
            if control is not None:
                result = result & control.write_mask(waves)
            waves.write_mask(target, result)

        return step

    return binder


def _register(name: str, kinds: tuple[str, str], function) -> None:
    handles(f"v_cmp_{name}")(_comparison(kinds, function, False))
    handles(f"v_cmpx_{name}")(_comparison(kinds, function, True))


for _kind in ("i16", "u16", "i32", "u32", "i64", "u64"):
    for _name, _function in _INTEGER.items():
        _register(f"{_name}_{_kind}", (_kind, _kind), _function)
for _kind in ("f16", "f32"):
    for _name, _function in _FLOAT.items():
        _register(f"{_name}_{_kind}", (_kind, _kind), _function)
_register("class_f32", ("f32", "u32"), classify)
_register("class_f16", ("f16", "u16"), classify)
