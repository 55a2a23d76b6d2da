"""Wave matrix multiply-accumulate, D = A B + C on 16x16 tiles: RDNA3's and RDNA4's WMMA for wave32, CDNA's MFMA.

Layout (RDNA3 ISA guide, "Wave Matrix Multiply Accumulate"): lane l holds row l % 16 of A and column l % 16 of B, 16
elements in K order, so lanes 16–31 must repeat lanes 0–15; register r of C and D holds row 2 r + l // 16, column
l % 16. For 16-bit C and D, op_sel bit 2 picks the half that is read and written.

RDNA4 ("RDNA4 Instruction Set Architecture", WMMA) repeats nothing: lane l holds elements 8 (l // 16) to 8 (l // 16) + 7
in K order of row l % 16 of A and column l % 16 of B, and its register r of C and D holds row 8 (l // 16) + r. So does
CDNA's v_mfma_f32_16x16x16_f16 ("CDNA3 Instruction Set Architecture", MFMA) with 64 lanes and 4 in the place of 8.

Products and sums are taken in float64 and rounded once; hardware may round in between, so agreement is within the
usual bound for a sum of 16 products.
"""

from __future__ import annotations

import numpy as np

from .errors import EmulationError, UnknownInstruction
from .operands import Operand
from .parser import Instruction, Kernel
from .table import handles

_U16 = np.uint16


def _bytes(signed: bool):
    return lambda words: words.view(np.int8 if signed else np.uint8).astype(np.int64)


def _bf16(words: np.ndarray) -> np.ndarray:
    return (words.view(_U16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _f16(words: np.ndarray) -> np.ndarray:
    return words.view(np.float16).astype(np.float64)


def _nibbles(signed: bool):
    def decode(words):
        raw = words.view(np.uint8)
        values = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1).astype(np.int64)
        return (values ^ 8) - 8 if signed else values

    return decode


def _matrix(waves, operand: Operand, registers: int, decode, what: str) -> np.ndarray:
    """[n, 16, 16]: one row per lane of the first half wave."""
    words = np.stack([waves.read_vector(operand.index + r) for r in range(registers)], axis=-1)
    for r in range(registers):
        waves.require(operand.index + r)
    if (words[:, :16] != words[:, 16:]).any():
        raise EmulationError(f"lanes 16-31 of WMMA operand {what} do not repeat lanes 0-15")
    return decode(np.ascontiguousarray(words[:, :16]))


def _register(mnemonic: str, decode, registers: int, out: str) -> None:
    @handles(mnemonic)
    def binder(instruction: Instruction, kernel: Kernel):
        if kernel.generation >= 12 and mnemonic == "v_wmma_f32_16x16x16_f16":
            return _unrepeated(instruction, kernel, 2)
        if kernel.generation >= 12:
            raise UnknownInstruction(f"{kernel.name} line {instruction.line}: gfx12's '{mnemonic}' is not emulated")
        if kernel.lanes != 32:
            raise UnknownInstruction(f"{kernel.name} line {instruction.line}: WMMA is emulated in wave32 only")
        allowed = {"neg_lo", "op_sel", "clamp"} if out == "i32" else {"op_sel"}
        unknown = set(instruction.modifiers) - allowed
        if unknown:
            raise UnknownInstruction(f"{kernel.name} line {instruction.line}: WMMA with '{unknown.pop()}' is not known")
        target, a, b, c = instruction.operands
        signed = instruction.modifiers.get("neg_lo", (0, 0, 0))
        decode_a, decode_b = (decode(bool(s)) for s in signed[:2]) if out == "i32" else (decode, decode)
        half = "h" if instruction.modifiers.get("op_sel", (0, 0, 0))[2] else "l"
        clamp = instruction.modifiers.get("clamp")

        def step(waves):
            if waves.exec_mask() is not None:
                raise EmulationError("WMMA runs with inactive lanes")
            left = _matrix(waves, a, registers, decode_a, "A")
            right = _matrix(waves, b, registers, decode_b, "B")
            product = np.matmul(left, np.swapaxes(right, 1, 2))  # [n, row, column]
            # the lane order of results: register r, lane l → row 2 r + l // 16, column l % 16
            spread = product.reshape(waves.n, 8, 32)
            for r in range(8):
                total = spread[:, r] + _accumulator(waves, c, r, out, half)
                _write(waves, target.index + r, total, out, half, clamp)

        return step


def _accumulator(waves, operand: Operand, r: int, out: str, half: str):
    if operand.kind == "literal":
        if out == "i32":
            return np.int64(np.uint32(operand.bits(32)).view(np.int32))
        return np.float64(np.uint32(operand.bits(32)).view(np.float32))
    waves.require(operand.index + r, None if out in ("f32", "i32") else half)
    raw = waves.read_vector(operand.index + r)
    if out == "f32":
        return raw.view(np.float32).astype(np.float64)
    if out == "i32":
        return raw.view(np.int32).astype(np.int64)
    part = np.ascontiguousarray(raw).view(_U16)[:, (1 if half == "h" else 0) :: 2]
    if out == "f16":
        return part.view(np.float16).astype(np.float64)
    return (part.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _write(waves, index: int, total: np.ndarray, out: str, half: str, clamp) -> None:
    if out == "f32":
        waves.write_vector(index, total.astype(np.float32).view(np.uint32))
    elif out == "i32":
        if clamp:
            total = np.clip(total, -(2**31), 2**31 - 1)
        waves.write_vector(index, (total & 0xFFFFFFFF).astype(np.uint32))
    elif out == "f16":
        waves.write_vector(index, total.astype(np.float16).view(_U16), half)
    else:
        bits = total.astype(np.float32).view(np.uint32)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        waves.write_vector(index, np.where(np.isnan(total), 0x7FC0, even).astype(_U16), half)


def _split(waves, operand: Operand, parts: int) -> np.ndarray:
    """[n, 16, 16] float64 of float16 operands whose K is shared out among `parts` groups of 16 lanes."""
    registers = 8 // parts
    for r in range(registers):
        waves.require(operand.index + r)
    words = np.stack([waves.read_vector(operand.index + r) for r in range(registers)], axis=-1)
    values = _f16(np.ascontiguousarray(words))  # [n, lanes, 16 / parts]
    return values.reshape(waves.n, parts, 16, 16 // parts).swapaxes(1, 2).reshape(waves.n, 16, 16)


def _unrepeated(instruction: Instruction, kernel: Kernel, parts: int):
    """D = A B + C in float32 without repeated operands: parts of 16 lanes each hold 16 / parts rows of the result."""
    if kernel.lanes != 16 * parts:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' is not known in waves of {kernel.lanes}"
        )
    if instruction.modifiers:
        raise UnknownInstruction(f"{kernel.name} line {instruction.line}: `{instruction.text}` is not emulated")
    target, a, b, c = instruction.operands

    def step(waves):
        if waves.exec_mask() is not None:
            raise EmulationError("a matrix instruction runs with inactive lanes")
        product = np.matmul(_split(waves, a, parts), np.swapaxes(_split(waves, b, parts), 1, 2))
        rows = product.reshape(waves.n, parts, 16 // parts, 16)
        totals = [
            rows[:, :, r].reshape(waves.n, 16 * parts) + _accumulator(waves, c, r, "f32", "l")
            for r in range(16 // parts)
        ]
        for r, total in enumerate(totals):
            _write(waves, target.index + r, total, "f32", "l", None)

    return step


@handles("v_mfma_f32_16x16x16f16", "v_mfma_f32_16x16x16_f16")
def _mfma(instruction: Instruction, kernel: Kernel):
    return _unrepeated(instruction, kernel, 4)


_register("v_wmma_f32_16x16x16_f16", _f16, 8, "f32")
_register("v_wmma_f32_16x16x16_bf16", _bf16, 8, "f32")
_register("v_wmma_f16_16x16x16_f16", _f16, 8, "f16")
_register("v_wmma_bf16_16x16x16_bf16", _bf16, 8, "bf16")
_register("v_wmma_i32_16x16x16_iu8", _bytes, 4, "i32")
_register("v_wmma_i32_16x16x16_iu4", _nibbles, 2, "i32")
