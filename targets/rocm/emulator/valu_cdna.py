"""What CDNA's vector unit has beyond RDNA's: pairs of float32, 64-bit moves and adds, accumulation registers."""

from __future__ import annotations

import numpy as np

from .errors import UnknownInstruction
from .operands import Operand
from .parser import Instruction, Kernel
from .rounding import flush, fma32
from .table import handles
from .valu_integer import _shift
from .vector import entry

F32, U32, U64 = np.float32, np.uint32, np.uint64
PAIRS: dict[str, int] = {}  # mnemonic → number of sources
_ALLOWED = {"op_sel", "op_sel_hi", "neg_lo", "neg_hi", "clamp"}


def _part(operand: Operand, high: int, where: str):
    """uint32 [n, lanes] of the low or high float of a pair."""
    if operand.kind == "literal":
        if high:
            raise UnknownInstruction(f"{where}: the upper half of a constant is not known")
        value = np.full((1, 1), operand.bits(32), U32)
        return lambda w: value
    index = operand.index + high
    if operand.kind == "s":
        return lambda w: w.read_scalar(index)[:, None]

    def vector(w):
        w.require(index)
        return w.read_vector(index)

    return vector


def _pair(name: str, count: int, function, moves: bool = False) -> None:
    """Two results from the sources' registers that op_sel (for the low one) and op_sel_hi name."""
    PAIRS[name] = count

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        where = f"{kernel.name} line {instruction.line}: '{name}'"
        unknown = set(instruction.modifiers) - (_ALLOWED - {"clamp"})
        if unknown:
            raise UnknownInstruction(f"{where} with '{unknown.pop()}' is not known")
        target, *inputs = instruction.operands
        modifiers = instruction.modifiers
        taken = (modifiers.get("op_sel", (0,) * count), modifiers.get("op_sel_hi", (1,) * count))
        neg = (modifiers.get("neg_lo", (0,) * count), modifiers.get("neg_hi", (0,) * count))
        if moves:  # one register of either source, and which is in op_sel alone
            taken = ((taken[0][0],), (taken[0][1],))
            parts = [[_part(inputs[i], taken[i][0], where)] for i in range(2)]
        else:
            parts = [[_part(o, s, where) for o, s in zip(inputs, taken[i], strict=True)] for i in range(2)]

        def half(waves, i: int):
            values = []
            for part, negative in zip(parts[i], neg[i], strict=False):
                bits = part(waves)
                value = (bits ^ U32(0x80000000) if negative else bits).view(F32)
                values.append(flush(value) if waves.flush.single and not moves else value)
            if moves:
                return np.array(values[0].view(U32))
            result = np.asarray(function(*values))
            return (flush(result) if waves.flush.single else result).view(U32)

        def step(waves):
            low, high = half(waves, 0), half(waves, 1)
            waves.write_vector(target.index, low)
            waves.write_vector(target.index + 1, high)

        return step


_pair("v_pk_fma_f32", 3, fma32)
_pair("v_pk_mul_f32", 2, np.multiply)
_pair("v_pk_add_f32", 2, np.add)
_pair("v_pk_mov_b32", 2, None, moves=True)

entry("v_lshl_add_u64", "u64", "u64 u32 u64", lambda a, b, c: (a << (_shift(b) & U32(7)).astype(U64)) + c,
      transparent=True)  # fmt: skip
entry("v_mov_b64", "b64", "b64", lambda a: a, transparent=True, halves=lambda masks, literals, arguments: masks[0])
for _name in ("read", "write", "mov"):
    entry(f"v_accvgpr_{_name}_b32", "b32", "b32", lambda a: a, transparent=True)
