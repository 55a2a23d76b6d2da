"""Reading a weight row word by word on a GPU thread, whatever its scheme.

Codes become floats without the slow integer conversion: or-ing a code below 2**23 into the mantissa of 2**23 gives the
float 2**23 + code, and subtracting 2**23 is exact.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.quant.scheme import Scheme

_MAGIC_BITS, _MAGIC = 0x4B000000, 8388608.0


class Rows:
    """The stored parts of a [rows, columns] weight; `per_lane` words, at most `vector`, are what a thread loads at
    once; they belong to `lane_groups` groups."""

    def __init__(self, scheme: Scheme, rows: int, columns: int, buffers: dict, vector: int = 8):
        self.scheme, self.rows, self.columns, self.buffers = scheme, rows, columns, buffers
        self.per_word = 1 if scheme.is_float else scheme.per_word
        groups = -(-columns // scheme.group)
        self.words = columns if scheme.is_float else groups * scheme.group // scheme.per_word
        self.padded = self.words * self.per_word
        # 16 bytes where the row allows
        widest = 128 // scheme.bits if scheme.is_float else 4
        self.per_lane = next(v for v in (8, 4, 2, 1) if v <= min(widest, vector) and self.words % v == 0)
        self.groups = groups
        self.lane_groups = 1 if scheme.is_float else max(1, self.per_lane * scheme.per_word // scheme.group)
        self.grouped = lambda part, row, group: T.BufferLoad(buffers[part], [row, group])  # what is stored per group

    def place(self, word) -> tuple:
        """(what to add to a row's number, index in that row) of the word at `word` as the buffers hold it."""
        return 0, word

    def group_starts(self, word) -> list:
        """The first word of each group in the load that begins at `word`."""
        return [word + g * self.per_lane // self.lane_groups if g else word for g in range(self.lane_groups)]

    @property
    def group_parts(self) -> list[str]:
        """The parts with one value per group."""
        return [part for part in self.buffers if part in ("scales", "mins", "high")]

    def values(self, stored, row, word, zero: int = 0) -> list:
        """The per_word float32 codes, less `zero`, (or the plain weight) of one stored word at index `word`."""
        s = self.scheme
        if s.is_float:
            return [tirx.Cast("float32", stored)]
        high = None
        if s.bits == 3:
            plane = self.high(row, tirx.floordiv(word, 2))
            high = T.bind(tirx.shift_right(plane, tirx.Cast("uint32", tirx.floormod(word, 2) * 16)))
        mask = T.uint32((1 << s.plane_bits) - 1)
        result = []
        for j in range(s.per_word):
            code = tirx.bitwise_and(tirx.shift_right(stored, T.uint32(j * s.plane_bits)), mask)
            if high is not None:
                bit = tirx.bitwise_and(tirx.shift_right(high, T.uint32(j)), T.uint32(1))
                code = tirx.bitwise_or(code, tirx.shift_left(bit, T.uint32(2)))
            biased = tirx.reinterpret("float32", tirx.bitwise_or(code, T.uint32(_MAGIC_BITS)))
            result.append(biased - T.float32(_MAGIC + zero))
        return result

    def high(self, row, group):
        """The high plane of a group of 3-bit codes."""
        return self.grouped("high", row, group)

    def affine(self, row, word):
        """(scale, offset) of the group that holds `word`: weight = scale * code + offset. None for plain floats."""
        s = self.scheme
        if s.is_float:
            return None
        group = tirx.floordiv(word * s.per_word, s.group)
        scale = T.bind(tirx.Cast("float32", self.grouped("scales", row, group)))
        return scale, self.offset(row, word, scale)

    def offset(self, row, word, scale):
        """What a code of zero stands for, given its group's scale."""
        if not self.scheme.asymmetric:
            return scale * T.float32(-float(self.scheme.zero))
        group = tirx.floordiv(word * self.per_word, self.scheme.group)
        return tirx.Cast("float32", self.grouped("mins", row, group))
