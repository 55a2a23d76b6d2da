"""Operands and modifiers of AMDGPU assembly text, as LLVM prints them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from .errors import ParseError

VCC_LO, TRAP, NULL, M0, EXEC_LO, SCC = 106, 108, 124, 125, 126, 253
ACCUMULATION = 256  # where the accumulation registers of CDNA stand among the vector registers
_NAMED = {
    "vcc_lo": (VCC_LO, 1), "vcc_hi": (VCC_LO + 1, 1), "vcc": (VCC_LO, 2), "null": (NULL, 1), "m0": (M0, 1),
    "exec_lo": (EXEC_LO, 1), "exec_hi": (EXEC_LO + 1, 1), "exec": (EXEC_LO, 2), "src_scc": (SCC, 1), "scc": (SCC, 1),
}  # fmt: skip
_REGISTER = re.compile(r"([vsa]|ttmp)(?:(\d+)|\[(\d+)(?::(\d+))?\])(?:\.([lh]))?$")
_FLOAT = re.compile(r"-?(\d+\.\d*|\d*\.\d+|\d+)(e[+-]?\d+)?$")
# 1/(2π) is an inline constant of its own and is printed with these digits
_INV_2PI = {"0.15915494", "0.15915494309189532", "0.1592"}
_INV_2PI_BITS = {16: 0x3118, 32: 0x3E22F983, 64: 0x3FC45F306DC9C882}


@dataclass(frozen=True)
class Operand:
    """kind: 'v', 's', 'literal' or 'off'. index, count: registers. half: 'l', 'h' or None. value: int or float of a
    literal (an int is raw bits, sign-extended inline integers included). neg, abs: float input modifiers."""

    kind: str
    index: int = 0
    count: int = 1
    half: str | None = None
    value: int | float = 0
    neg: bool = False
    abs: bool = False

    def bits(self, width: int) -> int:
        """The literal as `width` raw bits; floats take the format of the operand's type."""
        if isinstance(self.value, int):
            return self.value & ((1 << width) - 1)
        if abs(self.value) == abs(float("0.15915494309189532")):
            return _INV_2PI_BITS[width] | (1 << (width - 1) if self.value < 0 else 0)
        code = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[width]
        return struct.unpack(code[1], struct.pack(code[0], self.value))[0]


def parse_operand(text: str) -> Operand:
    """One operand; raises ParseError for what is none."""
    original, neg, absolute = text, False, False
    if text.startswith("neg(") and text.endswith(")"):
        neg, text = True, text[4:-1]
    elif text.startswith("-") and not _FLOAT.match(text) and not text.startswith("-0x"):
        neg, text = True, text[1:]
    if text.startswith("|") and text.endswith("|"):
        absolute, text = True, text[1:-1]
    elif text.startswith("abs(") and text.endswith(")"):
        absolute, text = True, text[4:-1]
    if text == "off":
        return Operand("off")
    half = None
    if text.startswith(("vcc_", "exec_")) and text[-2:] in (".l", ".h"):
        text, half = text[:-2], text[-1]
    if text in _NAMED:
        index, count = _NAMED[text]
        return Operand("s", index, count, half, neg=neg, abs=absolute)
    found = _REGISTER.match(text)
    if found:
        kind, single, first, last, half = found.groups()
        start = int(single if single is not None else first)
        count = int(last) - start + 1 if last is not None else 1
        kind, first = {"a": ("v", ACCUMULATION), "ttmp": ("s", TRAP)}.get(kind, (kind, 0))
        return Operand(kind, first + start, count, half, neg=neg, abs=absolute)
    if re.fullmatch(r"-?0x[0-9a-fA-F]+", text) or re.fullmatch(r"-?\d+", text):
        return Operand("literal", value=int(text, 0), neg=neg, abs=absolute)
    if text.lstrip("-") in _INV_2PI:
        return Operand("literal", value=-0.15915494309189532 if text[0] == "-" else 0.15915494309189532, neg=neg)
    if _FLOAT.match(text):
        return Operand("literal", value=float(text), neg=neg, abs=absolute)
    raise ParseError(f"'{original}' is no operand this emulator knows")


_FLAG = ("clamp", "glc", "slc", "dlc", "gds", "row_mirror", "row_half_mirror", "nv", "scc", "sc0", "sc1", "nt")
_LISTS = ("op_sel", "op_sel_hi", "neg_lo", "neg_hi", "quad_perm", "dpp8")
_NUMBERS = (
    "offset", "offset0", "offset1", "mul", "div", "row_shl", "row_shr", "row_ror", "row_share", "row_xmask",
    "row_mask", "bank_mask", "bound_ctrl", "fi", "wait_exp", "byte_sel", "index_key",
)  # fmt: skip
_WORDS = ("dst_sel", "dst_unused", "src0_sel", "src1_sel", "th", "scope")
_KEYED = re.compile(r"\s*\b(" + "|".join(_LISTS + _NUMBERS + _WORDS) + r"):(\[[^\]]*\]|swizzle\([^)]*\)|[^\s,]+)")
_FLAGS = re.compile(r"\s+(" + "|".join(_FLAG) + r")\b")


def split_operands(text: str) -> tuple[list[str], dict]:
    """The part after the mnemonic → operand texts and modifiers (flags True, numbers int, lists tuples)."""
    modifiers: dict = {}

    def keyed(match: re.Match) -> str:
        key, value = match.groups()
        if key in _LISTS:
            modifiers[key] = tuple(int(v, 0) for v in value.strip("[]").split(","))
        else:
            modifiers[key] = value if key in _WORDS or value.startswith("swizzle") else int(value, 0)
        return ""

    def flag(match: re.Match) -> str:
        modifiers[match.group(1)] = True
        return ""

    text = _FLAGS.sub(flag, _KEYED.sub(keyed, text)).strip()
    operands = [part.strip() for part in re.split(r",(?![^\[(]*[\])])", text)] if text else []
    return operands, modifiers
