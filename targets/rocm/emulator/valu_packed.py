"""VOP3P: the same operation on both halves of 32-bit registers, and dot products of bytes."""

from __future__ import annotations

import numpy as np

from .errors import UnknownInstruction
from .operands import Operand
from .parser import Instruction, Kernel
from .rounding import flush, fma16, maximum, minimum
from .table import handles

U32 = np.uint32
_ALLOWED = {"op_sel", "op_sel_hi", "neg_lo", "neg_hi", "clamp"}
PACKED: dict[str, tuple[str, int]] = {}  # mnemonic → (element type, number of sources)


def _raw(operand: Operand, kind: str):
    """uint32 [n, lanes] of a packed source; a float literal stands in the low half."""
    if operand.kind == "literal":
        value = U32(operand.bits(16) if isinstance(operand.value, float) else operand.bits(32))
        return lambda w: np.full((1, 1), value, U32)
    if operand.kind == "s":
        return lambda w: w.read_scalar(operand.index)[:, None]
    return lambda w: w.read_vector(operand.index)


def _check(instruction: Instruction, kernel: Kernel) -> None:
    unknown = set(instruction.modifiers) - _ALLOWED
    if unknown:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' with '{unknown.pop()}' is not known"
        )


def _require(waves, instruction: Instruction, halves) -> None:
    for operand, (low, high) in zip(instruction.operands[1:], halves, strict=True):
        if operand.kind == "v" and operand.index in waves.loose:
            for half in {low, high}:
                waves.require(operand.index, "h" if half else "l")


def _packed(name: str, kind: str, count: int, function) -> None:
    dtype = np.dtype({"f16": np.float16, "i16": np.int16, "u16": np.uint16}[kind])
    PACKED[name] = (kind, count)

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        target, *inputs = instruction.operands
        modifiers = instruction.modifiers
        clamp = modifiers.get("clamp")
        if clamp and kind != "f16":
            raise UnknownInstruction(f"{kernel.name} line {instruction.line}: '{name}' with 'clamp' is not known")
        low_from = tuple(modifiers.get("op_sel", (0,) * count))
        high_from = tuple(modifiers.get("op_sel_hi", (1,) * count))
        neg = (modifiers.get("neg_lo", (0,) * count), modifiers.get("neg_hi", (0,) * count))
        raws = [_raw(o, kind) for o in inputs]

        def half(waves, part: int):
            values = []
            for i, raw in enumerate(raws):
                bits = np.ascontiguousarray(raw(waves)).view(np.uint16)[:, (high_from if part else low_from)[i] :: 2]
                values.append((bits ^ np.uint16(0x8000) if neg[part][i] else bits).view(dtype))
                if kind == "f16" and waves.flush.half:
                    values[-1] = flush(values[-1])
            result = np.asarray(function(*values)).astype(dtype)
            if clamp:
                result = np.where(np.isnan(result), dtype.type(0), np.clip(result, 0, 1))
            if kind == "f16" and waves.flush.half:
                result = flush(result)
            return result.view(np.uint16).astype(U32)

        def step(waves):
            _require(waves, instruction, list(zip(low_from, high_from, strict=True)))
            waves.write_vector(target.index, half(waves, 0) | (half(waves, 1) << U32(16)))

        return step


def _float(function):
    return lambda a, b: function(a.astype(np.float32), b.astype(np.float32))


_packed("v_pk_add_f16", "f16", 2, _float(np.add))
_packed("v_pk_mul_f16", "f16", 2, _float(np.multiply))
_packed("v_pk_fma_f16", "f16", 3, fma16)
_packed("v_pk_min_f16", "f16", 2, minimum)
_packed("v_pk_max_f16", "f16", 2, maximum)
for _k in ("u16", "i16"):
    _packed(f"v_pk_add_{_k}", _k, 2, np.add)
    _packed(f"v_pk_sub_{_k}", _k, 2, np.subtract)
    _packed(f"v_pk_min_{_k}", _k, 2, np.minimum)
    _packed(f"v_pk_max_{_k}", _k, 2, np.maximum)
    _packed(f"v_pk_mad_{_k}", _k, 3, lambda a, b, c: a * b + c)
_packed("v_pk_mul_lo_u16", "u16", 2, np.multiply)
_packed("v_pk_lshlrev_b16", "u16", 2, lambda a, b: b << (a & np.uint16(15)))
_packed("v_pk_lshrrev_b16", "u16", 2, lambda a, b: b >> (a & np.uint16(15)))
_packed("v_pk_ashrrev_i16", "i16", 2, lambda a, b: b >> (a & np.int16(15)))


def _dot4(name: str, mixed: bool) -> None:
    """Four byte products plus an accumulator; in the mixed form neg_lo says which of the two inputs is signed."""

    @handles(name)
    def binder(instruction: Instruction, kernel: Kernel):
        _check(instruction, kernel)
        target, *inputs = instruction.operands
        signed = instruction.modifiers.get("neg_lo", (0, 0, 0)) if mixed else (0, 0, 0)
        clamp = instruction.modifiers.get("clamp")
        raws = [_raw(o, "u32") for o in inputs]
        limits = np.iinfo(np.int32 if mixed else np.uint32)

        def step(waves):
            _require(waves, instruction, [(0, 1)] * 3)
            a, b, c = (np.broadcast_to(raw(waves), (waves.n, waves.lanes)) for raw in raws)
            total = (c.view(np.int32) if mixed else c).astype(np.int64)
            for byte in range(4):
                factors = []
                for x, is_signed in ((a, signed[0]), (b, signed[1])):
                    value = ((x >> U32(8 * byte)) & U32(0xFF)).astype(np.int64)
                    factors.append((value ^ 128) - 128 if is_signed else value)
                total = total + factors[0] * factors[1]
            if clamp:
                total = np.clip(total, limits.min, limits.max)
            waves.write_vector(target.index, (total & 0xFFFFFFFF).astype(U32))

        return step


_dot4("v_dot4_i32_iu8", True)
_dot4("v_dot4_u32_u8", False)


@handles("v_swap_b32")
def _swap(instruction: Instruction, kernel: Kernel):
    first, second = (o.index for o in instruction.operands)

    def step(waves):
        a, b = np.array(waves.read_vector(first)), np.array(waves.read_vector(second))
        masks = waves.defined(first), waves.defined(second)
        waves.write_vector(first, b, defined=masks[1])
        waves.write_vector(second, a, defined=masks[0])

    return step
