"""Scalar ALU: one table row per mnemonic.

A row is (result type, source types, function, SCC rule). Types: u i for 32 bits, U I for 64, '-' for no result.
SCC rules: None leaves it, 'nonzero' is result != 0, 'carry' makes the function return (result, scc).
Functions get NumPy arrays [n]; 'scc' among the sources passes the current SCC as bool.
"""

from __future__ import annotations

import numpy as np

from .errors import UnknownInstruction
from .operands import EXEC_LO, NULL, SCC, Operand
from .parser import Instruction, Kernel
from .table import handles
from .valu_integer import _bfe_i32, _bfe_u32, _cls, _clz, _ctz, _reverse

U32, I32, U64, I64 = np.uint32, np.int32, np.uint64, np.int64
_TYPES = {"u": U32, "i": I32, "U": U64, "I": I64}
ROWS: dict[str, tuple] = {}


def _scalar(operand: Operand, kind: str):
    """Fetch of one source as [n] or a scalar of its type."""
    dtype = _TYPES[kind]
    width = 64 if kind in "UI" else 32
    if operand.kind == "literal":
        value = np.array([operand.bits(width)], f"u{width // 8}").view(dtype)
        return lambda w: value
    index = operand.index
    if index == NULL:
        return lambda w: np.zeros(1, dtype)
    if index == SCC:
        return lambda w: w.scc[w.where].astype(dtype)
    if width == 64:
        return lambda w: w.read_scalar64(index).view(dtype)
    return lambda w: w.read_scalar(index).view(dtype)


def row(name: str, out: str, ins: str, function, scc: str | None = None, accumulate: bool = False) -> None:
    """accumulate: the destination is also the first source (s_addk and the like)."""
    ROWS[name] = (out, ins, function, scc)

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        operands = list(instruction.operands)
        target = operands[0] if accumulate else operands.pop(0) if out != "-" else None
        kinds = [k for k in ins if k != "c"]
        if len(operands) != len(kinds):
            raise UnknownInstruction(
                f"{kernel.name} line {instruction.line}: '{name}' takes {len(kinds)} sources (`{instruction.text}`)"
            )
        getters = [_scalar(o, k) for o, k in zip(operands, kinds, strict=True)]
        if "c" in ins:
            getters.append(lambda w: w.scc[w.where])

        def step(waves):
            result = function(*(get(waves) for get in getters))
            flag = None
            if scc == "carry":
                result, flag = result
            elif scc == "nonzero":
                flag = result != 0
            if target is not None:
                if out in "UI":
                    waves.write_scalar64(target.index, np.asarray(result).view(U64))
                else:
                    waves.write_scalar(target.index, np.asarray(result).view(U32))
            if flag is not None:
                waves.scc[waves.where] = flag

        return step


def _signed_overflow(wide):
    return wide.astype(I64).astype(I32), (wide < -(2**31)) | (wide > 2**31 - 1)


def _carry(wide):
    return (wide & 0xFFFFFFFF).astype(U32), (wide < 0) | (wide > 0xFFFFFFFF)


def _w(x):
    return x.astype(I64)


# moves
row("s_mov_b32", "u", "u", lambda a: a)
row("s_mov_b64", "U", "U", lambda a: a)
row("s_movk_i32", "i", "i", lambda a: a.astype(np.int16).astype(I32))
row("s_cmov_b32", "u", "uuc", lambda old, a, c: np.where(c, a, old), accumulate=True)
row("s_cselect_b32", "u", "uuc", lambda a, b, c: np.where(c, a, b))
row("s_cselect_b64", "U", "UUc", lambda a, b, c: np.where(c, a, b))
row("s_sext_i32_i8", "i", "u", lambda a: a.astype(np.uint8).view(np.int8).astype(I32))
row("s_sext_i32_i16", "i", "u", lambda a: a.astype(np.uint16).view(np.int16).astype(I32))
row("s_brev_b32", "u", "u", _reverse)
row("s_clz_i32_u32", "i", "u", _clz)
row("s_ctz_i32_b32", "i", "u", _ctz)
row("s_cls_i32", "i", "u", _cls)
row("s_bcnt1_i32_b32", "u", "u", lambda a: np.bitwise_count(a).astype(U32), "nonzero")
row("s_bcnt1_i32_b64", "u", "U", lambda a: np.bitwise_count(a).astype(U32), "nonzero")
row("s_bitset0_b32", "u", "uu", lambda old, a: old & ~(U32(1) << (a & U32(31))), accumulate=True)
row("s_bitset1_b32", "u", "uu", lambda old, a: old | (U32(1) << (a & U32(31))), accumulate=True)
row("s_abs_i32", "i", "i", lambda a: np.abs(a), "nonzero")

# bits
_LOGIC = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
    "and_not1": lambda a, b: a & ~b,
    "or_not1": lambda a, b: a | ~b,
}
for _name, _function in _LOGIC.items():
    row(f"s_{_name}_b32", "u", "uu", _function, "nonzero")
    row(f"s_{_name}_b64", "U", "UU", _function, "nonzero")
row("s_not_b32", "u", "u", np.invert, "nonzero")
row("s_not_b64", "U", "U", np.invert, "nonzero")
row("s_lshl_b32", "u", "uu", lambda a, b: a << (b & U32(31)), "nonzero")
row("s_lshr_b32", "u", "uu", lambda a, b: a >> (b & U32(31)), "nonzero")
row("s_ashr_i32", "i", "iu", lambda a, b: a >> (b & U32(31)).view(I32), "nonzero")
row("s_lshl_b64", "U", "Uu", lambda a, b: a << (b & U32(63)).astype(U64), "nonzero")
row("s_lshr_b64", "U", "Uu", lambda a, b: a >> (b & U32(63)).astype(U64), "nonzero")
row("s_ashr_i64", "I", "Iu", lambda a, b: a >> (b & U32(63)).astype(I64), "nonzero")
row("s_bfm_b32", "u", "uu", lambda a, b: ((U32(1) << (a & U32(31))) - U32(1)) << (b & U32(31)))


def _field(function):
    """offset in bits 4:0, width in 22:16 of the second operand; a width of 32 or more takes all bits."""

    def apply(a, control):
        offset, width = control & U32(31), (control >> U32(16)) & U32(127)
        rest = (a >> offset) if function is _bfe_u32 else (a.view(I32) >> offset.view(I32))
        part = function(a, offset, np.minimum(width, U32(31)))
        return np.where(width >= 32, rest, part).astype(part.dtype)

    return apply


row("s_bfe_u32", "u", "uu", _field(_bfe_u32), "nonzero")
row("s_bfe_i32", "i", "uu", _field(_bfe_i32), "nonzero")
_LOW16, _HIGH16 = U32(0xFFFF), U32(0xFFFF0000)
row("s_pack_ll_b32_b16", "u", "uu", lambda a, b: (a & _LOW16) | (b << U32(16)))
row("s_pack_lh_b32_b16", "u", "uu", lambda a, b: (a & _LOW16) | (b & _HIGH16))
row("s_pack_hl_b32_b16", "u", "uu", lambda a, b: (a >> U32(16)) | (b << U32(16)))
row("s_pack_hh_b32_b16", "u", "uu", lambda a, b: (a >> U32(16)) | (b & _HIGH16))

# arithmetic
row("s_add_nc_u64", "U", "UU", lambda a, b: a + b)
row("s_sub_nc_u64", "U", "UU", lambda a, b: a - b)
row("s_mul_u64", "U", "UU", lambda a, b: a * b)
row("s_add_u32", "u", "uu", lambda a, b: _carry(_w(a) + _w(b)), "carry")
row("s_addc_u32", "u", "uuc", lambda a, b, c: _carry(_w(a) + _w(b) + c), "carry")
row("s_sub_u32", "u", "uu", lambda a, b: _carry(_w(a) - _w(b)), "carry")
row("s_subb_u32", "u", "uuc", lambda a, b, c: _carry(_w(a) - _w(b) - c), "carry")
row("s_add_i32", "i", "ii", lambda a, b: _signed_overflow(_w(a) + _w(b)), "carry")
row("s_sub_i32", "i", "ii", lambda a, b: _signed_overflow(_w(a) - _w(b)), "carry")
row("s_addk_i32", "i", "ii", lambda a, b: _signed_overflow(_w(a) + _w(b.astype(np.int16))), "carry", accumulate=True)
row("s_mulk_i32", "i", "ii", lambda a, b: a * b.astype(np.int16).astype(I32), accumulate=True)
row("s_absdiff_i32", "i", "ii", lambda a, b: np.abs(a - b), "nonzero")
row("s_mul_i32", "i", "ii", lambda a, b: a * b)
row("s_mul_hi_u32", "u", "uu", lambda a, b: ((a.astype(U64) * b.astype(U64)) >> U64(32)).astype(U32))
row("s_mul_hi_i32", "i", "ii", lambda a, b: ((_w(a) * _w(b)) >> 32).astype(I32))
for _shift in range(1, 5):
    row(f"s_lshl{_shift}_add_u32", "u", "uu", lambda a, b, s=_shift: _carry((_w(a) << s) + _w(b)), "carry")
for _k, _t in (("i", "i32"), ("u", "u32")):
    row(f"s_min_{_t}", _k, _k * 2, lambda a, b: (np.minimum(a, b), a < b), "carry")
    row(f"s_max_{_t}", _k, _k * 2, lambda a, b: (np.maximum(a, b), a >= b), "carry")

# comparisons
_COMPARE = {"eq": np.equal, "lg": np.not_equal, "gt": np.greater, "ge": np.greater_equal, "lt": np.less,
            "le": np.less_equal}  # fmt: skip
for _name, _function in _COMPARE.items():
    for _k, _t in (("i", "i32"), ("u", "u32")):
        row(f"s_cmp_{_name}_{_t}", "-", _k * 2, lambda a, b, f=_function: (None, f(a, b)), "carry")
        row(f"s_cmpk_{_name}_{_t}", "-", _k * 2, lambda a, b, f=_function, t=_k: (
            None, f(a, b.astype(np.int16).astype(I32) if t == "i" else b & U32(0xFFFF))), "carry")  # fmt: skip
row("s_cmp_eq_u64", "-", "UU", lambda a, b: (None, a == b), "carry")
row("s_cmp_lg_u64", "-", "UU", lambda a, b: (None, a != b), "carry")
row("s_bitcmp0_b32", "-", "uu", lambda a, b: (None, (a >> (b & U32(31))) & U32(1) == 0), "carry")
row("s_bitcmp1_b32", "-", "uu", lambda a, b: (None, (a >> (b & U32(31))) & U32(1) == 1), "carry")

# EXEC updates: D = EXEC, then EXEC = source op EXEC
_SAVE = {**_LOGIC, "and_not0": lambda s, e: ~s & e, "or_not0": lambda s, e: ~s | e}


def _save_exec(name: str, function, kind: str, save: bool) -> None:
    ROWS[name] = (kind, kind, function, "nonzero")

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        target, operand = instruction.operands
        get = _scalar(operand, kind)

        def step(waves):
            value = get(waves)
            old = np.array(waves.read_scalar(EXEC_LO) if kind == "u" else waves.read_scalar64(EXEC_LO))
            new = np.broadcast_to(function(value, old), old.shape)
            write = waves.write_scalar if kind == "u" else waves.write_scalar64
            write(target.index, old if save else new)
            write(EXEC_LO, new)
            waves.scc[waves.where] = new != 0

        return step


for _name, _function in _SAVE.items():
    _save_exec(f"s_{_name}_saveexec_b32", _function, "u", True)
    _save_exec(f"s_{_name}_saveexec_b64", _function, "U", True)
_save_exec("s_and_not1_wrexec_b32", lambda s, e: s & ~e, "u", False)
_save_exec("s_and_not0_wrexec_b32", lambda s, e: ~s & e, "u", False)
