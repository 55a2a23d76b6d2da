"""Scalar operations of TensorIR on SPIR-V ids.

Integers wrap. Division truncates or floors as TensorIR says, for every sign (SRem and SMod are undefined for negative
operands in Vulkan, so remainders are computed). Division by zero, shifts by the width or more, and conversions of
floats that do not fit the integer type are undefined, as in TensorIR. Comparisons with NaN are false except !=;
min and max return the other operand when one is NaN. bfloat16 is computed in float32 and rounded to nearest even.
"""

from __future__ import annotations

from .builder import Module
from .dtypes import BOOL, F16, F32, I32, U16, U32, U64, DType, unsigned
from .errors import CodegenError
from .spirv import EXT

# TensorIR node or intrinsic → operation for signed, unsigned, float
_BINARY = {
    "Add": ("IAdd", "IAdd", "FAdd"),
    "Sub": ("ISub", "ISub", "FSub"),
    "Mul": ("IMul", "IMul", "FMul"),
    "Div": ("SDiv", "UDiv", "FDiv"),
    "LShift": ("ShiftLeftLogical", "ShiftLeftLogical", None),
    "RShift": ("ShiftRightArithmetic", "ShiftRightLogical", None),
    "BitwiseAnd": ("BitwiseAnd", "BitwiseAnd", None),
    "BitwiseOr": ("BitwiseOr", "BitwiseOr", None),
    "BitwiseXor": ("BitwiseXor", "BitwiseXor", None),
}
_COMPARE = {
    "LT": ("SLessThan", "ULessThan", "FOrdLessThan"),
    "LE": ("SLessThanEqual", "ULessThanEqual", "FOrdLessThanEqual"),
    "GT": ("SGreaterThan", "UGreaterThan", "FOrdGreaterThan"),
    "GE": ("SGreaterThanEqual", "UGreaterThanEqual", "FOrdGreaterThanEqual"),
    "EQ": ("IEqual", "IEqual", "FOrdEqual"),
    "NE": ("INotEqual", "INotEqual", "FUnordNotEqual"),
}
_EXTREME = {"Min": ("SMin", "UMin", "NMin"), "Max": ("SMax", "UMax", "NMax")}
_LOGICAL = {
    "EQ": "LogicalEqual", "NE": "LogicalNotEqual", "And": "LogicalAnd", "Or": "LogicalOr", "Min": "LogicalAnd",
    "Max": "LogicalOr", "BitwiseAnd": "LogicalAnd", "BitwiseOr": "LogicalOr", "BitwiseXor": "LogicalNotEqual",
    "Add": "LogicalOr", "Mul": "LogicalAnd",
}  # fmt: skip
_DIVISIONS = ("Mod", "FloorDiv", "FloorMod")
BINARY_NODES = (*_BINARY, *_COMPARE, *_EXTREME, *_DIVISIONS, "And", "Or")


def _column(dtype: DType) -> int:
    return 2 if dtype.is_float else 0 if dtype.is_signed else 1


class Arithmetic:
    """Operations on ids of one module."""

    def __init__(self, module: Module):
        self.m = module

    def binary(self, name: str, dtype: DType, a: int, b: int) -> int:
        """`name` is a TensorIR node name; `dtype` the operands' type."""
        if dtype.is_bool:
            if name not in _LOGICAL:
                raise CodegenError(f"{name} of booleans is not supported")
            return self.m.scalar(_LOGICAL[name], BOOL, a, b)
        if dtype.is_bfloat:
            wide = self.binary(name, F32, self.cast(F32, dtype, a), self.cast(F32, dtype, b))
            return wide if name in _COMPARE else self.cast(dtype, F32, wide)
        self.m.use(dtype)
        if name in _COMPARE:
            return self.m.scalar(_COMPARE[name][_column(dtype)], BOOL, a, b)
        if name in _EXTREME:
            return self.m.ext(_EXTREME[name][_column(dtype)], dtype, a, b)
        if name in _DIVISIONS:
            return self._division(name, dtype, a, b)
        operation = _BINARY[name][_column(dtype)]
        if operation is None:
            raise CodegenError(f"{name} of floating point values is not supported")
        return self.m.scalar(operation, dtype, a, b)

    def _division(self, name: str, dtype: DType, a: int, b: int) -> int:
        if dtype.is_float:
            if name == "Mod":
                return self.m.scalar("FRem", dtype, a, b)
            quotient = self.m.ext("Floor", dtype, self.m.scalar("FDiv", dtype, a, b))
            if name == "FloorDiv":
                return quotient
            return self.binary("Sub", dtype, a, self.binary("Mul", dtype, quotient, b))
        if not dtype.is_signed:
            return self.m.scalar("UDiv" if name == "FloorDiv" else "UMod", dtype, a, b)
        divisor = self.m.integer_value(b)
        if name != "Mod" and divisor is not None and divisor > 0 and divisor & (divisor - 1) == 0:
            if name == "FloorDiv":
                return self.binary("RShift", dtype, a, self.m.constant(dtype, divisor.bit_length() - 1))
            return self.binary("BitwiseAnd", dtype, a, self.m.constant(dtype, divisor - 1))
        quotient = self.m.scalar("SDiv", dtype, a, b)
        remainder = self.binary("Sub", dtype, a, self.binary("Mul", dtype, quotient, b))
        if name == "Mod":
            return remainder
        zero = self.m.constant(dtype, 0)
        opposite = self.binary("LT", dtype, self.binary("BitwiseXor", dtype, remainder, b), zero)
        adjust = self.binary("And", BOOL, self.binary("NE", dtype, remainder, zero), opposite)
        if name == "FloorDiv":
            return self.select(dtype, adjust, self.binary("Sub", dtype, quotient, self.m.constant(dtype, 1)), quotient)
        return self.select(dtype, adjust, self.binary("Add", dtype, remainder, b), remainder)

    def select(self, dtype: DType, condition: int, a: int, b: int) -> int:
        return a if a == b else self.m.scalar("Select", dtype, condition, a, b)

    def negate(self, dtype: DType, a: int) -> int:
        return self.m.scalar("FNegate" if dtype.is_float else "SNegate", dtype, a)

    def bit_not(self, dtype: DType, a: int) -> int:
        return self.m.scalar("LogicalNot" if dtype.is_bool else "Not", dtype, a)

    def logical_not(self, a: int) -> int:
        return self.m.scalar("LogicalNot", BOOL, a)

    # ---- conversions

    def cast(self, to: DType, of: DType, a: int) -> int:
        """Convert a value; integers wrap, floats truncate towards zero when they become integers."""
        if to == of:
            return a
        if to.is_bool:
            if of.is_bfloat:
                return self.cast(BOOL, F32, self.cast(F32, of, a))
            if of.is_integer and of.bits < 32:  # keeps 8- and 16-bit arithmetic out of it
                return self.cast(BOOL, U32, self.m.scalar("UConvert", U32, a))
            return self.binary("NE", of, a, self.m.constant(of, 0))
        if of.is_bool:
            if to.is_bfloat:
                return self.m.scalar("Select", to, a, self.m.constant(U16, 0x3F80), self.m.constant(U16, 0))
            return self.m.scalar("Select", to, a, self.m.constant(to, 1), self.m.constant(to, 0))
        if to.is_bfloat:
            return self._to_bfloat(a if of == F32 else self.cast(F32, of, a))
        if of.is_bfloat:
            bits = self.binary("LShift", U32, self.m.scalar("UConvert", U32, a), self.m.constant(U32, 16))
            wide = self.m.scalar("Bitcast", F32, bits)
            return self.cast(to, F32, wide)
        if of.is_float:
            return self._from_float(to, of, a)
        if to.is_float:
            if of.bits < 32:
                wide = I32 if of.is_signed else U32
                a, of = self.cast(wide, of, a), wide
            return self.m.scalar("ConvertSToF" if of.is_signed else "ConvertUToF", to, a)
        if to.bits == of.bits:
            return a
        return self.m.scalar("SConvert" if of.is_signed else "UConvert", to, a)

    def _from_float(self, to: DType, of: DType, a: int) -> int:
        if self.m.wide_half and F16 in (to, of):
            return self._from_or_to_half(to, of, a)
        if to.is_float:
            return self.m.scalar("FConvert", to, a)
        if of.bits == 16:
            a, of = self.m.scalar("FConvert", F32, a), F32
        self.m.use(of)
        if to.bits < 32:
            return self.m.scalar("SConvert", to, self.m.scalar("ConvertFToS", I32, a))
        return self.m.scalar("ConvertFToS" if to.is_signed else "ConvertFToU", to, a)

    def _from_or_to_half(self, to: DType, of: DType, a: int) -> int:
        """Conversions where float16 values are carried as float32."""
        if of == F16:
            return a if to in (F16, F32) else self.cast(to, F32, a)
        return self.m.scalar("QuantizeToF16", F32, a if of == F32 else self.cast(F32, of, a))

    def _wide_half_bits(self, to: DType, lanes: int, of: DType, values: list[int]) -> list[int]:
        """reinterpret where float16 values are carried as float32: by way of words with two of them."""
        pair = self.m.vector(F32, 2)
        if of == F16:
            padded = values if len(values) % 2 == 0 else [*values, self.m.constant(F32, 0.0)]
            words = [
                self.m.ext("PackHalf2x16", U32, self.m.pure("CompositeConstruct", pair, a, b))
                for a, b in zip(padded[::2], padded[1::2], strict=True)
            ]
            if len(values) == 1:
                return self.reinterpret(to, 1, U16, [self.m.scalar("UConvert", U16, words[0])])
            return self.reinterpret(to, lanes, U32, words)
        if of.bits == 16:
            words = [self.m.scalar("UConvert", U32, v) for v in self.reinterpret(U16, len(values), of, values)]
            parts = [(word, 0) for word in words]
        else:
            words = self.reinterpret(U32, len(values) * of.bits // 32, of, values)
            parts = [(word, half) for word in words for half in (0, 1)]
        unpack = {word: self.m.pure("ExtInst", pair, self.m.glsl, EXT["UnpackHalf2x16"], word) for word in words}
        return [self.m.scalar("CompositeExtract", F32, unpack[word], half) for word, half in parts]

    def _to_bfloat(self, a: int) -> int:
        """float32 → the upper half, rounded to nearest even; NaN stays NaN."""
        bits = self.m.scalar("Bitcast", U32, a)
        odd = self.binary("BitwiseAnd", U32, self.binary("RShift", U32, bits, self.m.constant(U32, 16)),
                          self.m.constant(U32, 1))  # fmt: skip
        bias = self.binary("Add", U32, odd, self.m.constant(U32, 0x7FFF))
        rounded = self.binary("Add", U32, bits, bias)
        quiet = self.binary("BitwiseOr", U32, bits, self.m.constant(U32, 0x400000))
        chosen = self.select(U32, self.m.scalar("IsNan", BOOL, a), quiet, rounded)
        return self.m.scalar("UConvert", U16, self.binary("RShift", U32, chosen, self.m.constant(U32, 16)))

    def reinterpret(self, to: DType, lanes: int, of: DType, values: list[int]) -> list[int]:
        """The same bits as `lanes` values of another type, lowest first."""
        if to.is_bool or of.is_bool or len(values) * of.bits != lanes * to.bits:
            raise CodegenError(f"cannot reinterpret {len(values)} x {of} as {lanes} x {to}")
        if self.m.wide_half and F16 in (to, of) and to != of:
            return self._wide_half_bits(to, lanes, of, values)
        if to.bits == of.bits:
            same = to.is_float == of.is_float
            if not same:
                self.m.use(of)
            return [v if same else self.m.scalar("Bitcast", to, v) for v in values]
        if max(to.bits, of.bits) == 64 and min(to.bits, of.bits) == 8:
            words = self.reinterpret(U32, lanes * to.bits // 32, of, values)
            return self.reinterpret(to, lanes, U32, words)
        self.m.use(to)
        self.m.use(of)
        if of.bits > to.bits:
            parts = of.bits // to.bits
            out = []
            for value in values:
                vector = self.m.pure("Bitcast", self.m.vector(to, parts), value)
                out += [self.m.scalar("CompositeExtract", to, vector, i) for i in range(parts)]
            return out
        parts = to.bits // of.bits
        out = []
        for start in range(0, len(values), parts):
            vector = self.m.pure("CompositeConstruct", self.m.vector(of, parts), *values[start : start + parts])
            out.append(self.m.scalar("Bitcast", to, vector))
        return out

    def bit_count(self, dtype: DType, a: int) -> int:
        """Number of one bits, as int32 (Vulkan counts 32-bit words only)."""
        words = self._words(dtype, a)
        counts = [self.m.scalar("BitCount", U32, word) for word in words]
        return counts[0] if len(counts) == 1 else self.binary("Add", U32, *counts)

    def leading_zeros(self, dtype: DType, a: int) -> int:
        """Zero bits above the highest one bit, as int32; the width for 0."""
        words = self._words(dtype, a)
        top = [self.binary("Sub", I32, self.m.constant(I32, 31), self.m.ext("FindUMsb", I32, w)) for w in words]
        if len(top) == 2:
            empty = self.binary("EQ", U32, words[1], self.m.constant(U32, 0))
            return self.select(I32, empty, self.binary("Add", I32, top[0], self.m.constant(I32, 32)), top[1])
        return self.binary("Sub", I32, top[0], self.m.constant(I32, 32 - dtype.bits)) if dtype.bits < 32 else top[0]

    def _words(self, dtype: DType, a: int) -> list[int]:
        if dtype.bits == 64:
            return self.reinterpret(U32, 2, U64, [a])
        return [self.cast(U32, unsigned(dtype.bits), a)]
