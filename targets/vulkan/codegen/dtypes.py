"""Scalar types as the emitter sees them."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from .errors import CodegenError

_KINDS = {"bool": "bool", "float": "float", "bfloat": "bfloat", "int": "int", "uint": "uint"}
_PATTERN = re.compile(r"(bool|bfloat|float|int|uint)(\d*)(?:x(\d+))?")
_WIDTHS = {"bool": (8,), "bfloat": (16,), "float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}


class DType(NamedTuple):
    """A scalar type; `bits` is its size in device memory (8 for bool, stored as 0 or 1)."""

    kind: str
    bits: int

    @property
    def size(self) -> int:
        """Bytes in device memory."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """IEEE floating point, on which SPIR-V has arithmetic (bfloat16 is kept as its 16 bits)."""
        return self.kind == "float"

    @property
    def is_bfloat(self) -> bool:
        return self.kind == "bfloat"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        return self.kind == "int"

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"


BOOL = DType("bool", 8)
F16, F32, F64, BF16 = DType("float", 16), DType("float", 32), DType("float", 64), DType("bfloat", 16)
I8, I16, I32, I64 = (DType("int", bits) for bits in (8, 16, 32, 64))
U8, U16, U32, U64 = (DType("uint", bits) for bits in (8, 16, 32, 64))


@cache
def parse(text: str) -> tuple[DType, int]:
    """'float16x4' → (F16, 4 lanes)."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise CodegenError(f"Vulkan has no data type '{text}'")
    kind, bits, lanes = match.groups()
    if kind == "uint" and bits == "1":
        kind, bits = "bool", ""
    dtype = DType(_KINDS[kind], int(bits or 8))
    if dtype.bits not in _WIDTHS[kind]:
        raise CodegenError(f"Vulkan has no data type '{text}'")
    return dtype, int(lanes or 1)


def of(expr) -> tuple[DType, int]:
    """Scalar type and lanes of a TensorIR expression."""
    dtype = getattr(expr.ty, "dtype", None)
    if dtype is None:
        raise CodegenError(f"an expression of type {type(expr.ty).__name__} is used as a number")
    return parse(str(dtype))


def unsigned(bits: int) -> DType:
    return DType("uint", bits)
