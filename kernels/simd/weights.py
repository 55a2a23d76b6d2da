"""Reading a weight row as float32 vectors, whatever its scheme.

Lanes run over the *words* of a row, so that unpacking is one shift and one mask for all lanes: lane l of step j holds
element (word0 + l) * per_word + j. The activations are laid out to match once per call (`permute_index`), which makes
the order inside a row irrelevant: a dot product does not care.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.quant.scheme import Scheme

from .vector import LINE, const, load, prefetch, repeat, splat, to_float


class Rows:
    """The stored parts of a [rows, columns] weight as kernel buffers.

    `codes` yields per_word float vectors of raw codes (or plain weights), `affine` the scale and offset vectors that
    turn sums over codes into sums over weights.
    """

    def __init__(
        self, scheme: Scheme, rows: int, columns: int, buffers: dict, native_f16: bool = True, leading: tuple = ()
    ):
        self.leading = leading  # indices before the row: the expert of a stacked weight
        self.scheme, self.rows, self.columns, self.buffers = scheme, rows, columns, buffers
        self.native_f16 = native_f16
        self.per_word = 1 if scheme.is_float else scheme.per_word
        if scheme.is_float:
            self.words = columns
        else:
            self.words = -(-columns // scheme.group) * scheme.group // scheme.per_word
        self.padded = self.words * self.per_word

    def codes(self, row, word, lanes: int) -> list:
        """per_word float32 vectors: element j of each of `lanes` words starting at `word`."""
        s = self.scheme
        if s.is_float:
            return [to_float(load(self.buffers[""], [*self.leading, row], word, lanes), lanes, self.native_f16)]
        packed = T.bind(load(self.buffers["codes"], [*self.leading, row], word, lanes))
        high = self._high_words(row, word, lanes) if s.bits == 3 else None
        mask = splat(T.uint32((1 << s.plane_bits) - 1), lanes)
        result = []
        for j in range(s.per_word):
            code = self._shift(packed, j * s.plane_bits, lanes)
            if j < s.per_word - 1:
                code = tirx.bitwise_and(code, mask)
            if high is not None:
                bit = tirx.bitwise_and(self._shift(high, j, lanes), splat(T.uint32(1), lanes))
                code = tirx.bitwise_or(code, tirx.shift_left(bit, splat(T.uint32(2), lanes)))
            result.append(to_float(code, lanes))
        return result

    def affine(self, row, word, lanes: int):
        """(scale, offset) vectors with weight = scale * code + offset; None for plain floats."""
        s = self.scheme
        if s.is_float:
            return None
        words_per_group = s.group // s.per_word
        groups = max(1, lanes // words_per_group)
        times = lanes // groups

        def per_lane(part: str):
            values = load(self.buffers[part], [*self.leading, row], word // words_per_group, groups)
            values = to_float(values, groups, self.native_f16)
            return repeat(values, groups, times)

        scale = T.bind(per_lane("scales"))
        offset = per_lane("mins") if s.asymmetric else scale * const(-float(s.zero), lanes)
        return scale, offset

    def _high_words(self, row, word, lanes: int):
        """One-bit planes aligned with the 2-bit words: even words use bits 0–15 of their group's word, odd 16–31."""
        groups = max(1, lanes // 2)
        values = load(self.buffers["high"], [*self.leading, row], word // 2, groups)
        if lanes == 1:
            return T.bind(tirx.shift_right(values, tirx.Cast("uint32", (word % 2) * 16)))
        values = repeat(values, groups, 2)
        odd = tirx.Ramp(T.int32(0), T.int32(1), lanes)
        shift = tirx.bitwise_and(odd, splat(T.int32(1), lanes)) * splat(T.int32(16), lanes)
        return T.bind(tirx.shift_right(values, tirx.Cast(f"uint32x{lanes}", shift)))

    def prefetch(self, row) -> None:
        """Ask for what is stored of a row, or would be: it may be one past the last."""
        for buffer in self.buffers.values():
            per_line = LINE // np.dtype(str(buffer.dtype)).itemsize
            with T.serial(-(-int(buffer.shape[-1]) // per_line)) as line:
                prefetch(buffer, [*self.leading, row, line * per_line])

    @staticmethod
    def _shift(value, bits: int, lanes: int):
        return value if bits == 0 else tirx.shift_right(value, splat(T.uint32(bits), lanes))
