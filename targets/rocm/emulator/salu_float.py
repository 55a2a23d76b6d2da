"""Float arithmetic on scalar registers (RDNA3.5 and RDNA4): the vector unit's functions, one value a wave."""

from __future__ import annotations

import numpy as np

from . import valu_convert, valu_float  # noqa: F401  they fill ENTRIES
from .errors import UnknownInstruction
from .fetch import DTYPES
from .operands import Operand
from .parser import Instruction, Kernel
from .rounding import flush
from .table import handles
from .valu_compare import _FLOAT
from .vector import ENTRIES

FLOAT_ROWS: dict[str, str] = {}  # mnemonic → the vector instruction that computes the same


def _source(operand: Operand, kind: str):
    """waves → array [n] of a type of 32 bits."""
    if operand.kind == "literal":
        value = np.array([operand.bits(32)], np.uint32).view(DTYPES[kind])
        return lambda w: value
    if operand.neg or operand.abs:
        raise UnknownInstruction("neg and abs of scalar operands are not emulated")
    return lambda w: w.read_scalar(operand.index).view(DTYPES[kind])


def _flushed(waves, value):
    value = np.asarray(value)
    return flush(value) if waves.flush.single and value.dtype == np.float32 else value


def _as_vector(name: str, vector: str) -> None:
    """Scalar instruction `name` computes what vector instruction `vector` does."""
    table = ENTRIES[vector]
    FLOAT_ROWS[name] = vector

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        where = f"{kernel.name} line {instruction.line}"
        if instruction.modifiers:
            raise UnknownInstruction(f"{where}: `{instruction.text}` is not emulated")
        target, *operands = instruction.operands
        if table.accumulate:
            operands.append(target)
        if len(operands) != len(table.ins):
            raise UnknownInstruction(f"{where}: '{name}' takes {len(table.ins)} sources (`{instruction.text}`)")
        getters = [_source(o, k) for o, k in zip(operands, table.ins, strict=True)]

        def step(waves):
            result = table.function(*(_flushed(waves, get(waves)) for get in getters))
            waves.write_scalar(target.index, _flushed(waves, result).view(np.uint32))

        return step


for _name in ("add", "sub", "mul", "min", "max", "fmac", "fmaak", "fmamk", "floor", "ceil", "trunc", "rndne"):
    _as_vector(f"s_{_name}_f32", f"v_{_name}_f32")
for _name in ("f32_i32", "f32_u32", "i32_f32", "u32_f32"):
    _as_vector(f"s_cvt_{_name}", f"v_cvt_{_name}")
for _name in ("exp", "log", "rcp", "rsq", "sqrt"):
    _as_vector(f"v_s_{_name}_f32", f"v_{_name}_f32")


def _compare(name: str, function) -> None:
    @handles(f"s_cmp_{name}_f32")
    def binder(instruction: Instruction, kernel: Kernel):
        left, right = (_source(o, "f32") for o in instruction.operands)

        def step(waves):
            waves.scc[waves.where] = function(_flushed(waves, left(waves)), _flushed(waves, right(waves)))

        return step


for _name, _function in _FLOAT.items():
    _compare("neq" if _name == "ne" else _name, _function)
