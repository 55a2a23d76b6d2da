"""Quantised weights as right-hand tiles: 16 rows of a weight by 32 columns, the codes as bfloat16.

Codes of up to 8 bits are exact in bfloat16, so scales wait until a group's sum is there. Row p of a tile holds for each
weight row n a pair of elements; which pairs is the scheme's choice (`order`), and activations follow it.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.simd.vector import LINE, load, opaque, prefetch, splat, store, to_float
from mlcrt.kernels.simd.weights import Rows

from .instructions import DEPTH, ROWS, look_up


def serves(scheme) -> bool:
    """Codes of one tile a group; schemes that compute in float32 keep all 24 bits of an activation."""
    return not scheme.is_float and scheme.group == DEPTH and scheme.dtype == "float16"


def _bfloat16(value: float) -> int:
    """Bits of a value that bfloat16 holds exactly."""
    bits = int(np.float32(value).view(np.uint32))
    assert bits & 0xFFFF == 0
    return bits >> 16


def order(scheme) -> list[int]:
    """Which element of a group of 32 stands at each place along K of a tile."""
    half = scheme.per_word // 2  # the two codes of a pair lie half a word apart
    pairs = [(word + j, word + j + half) for word in range(0, DEPTH, scheme.per_word) for j in range(half)]
    return [k for pair in pairs for k in pair]


class WeightTiles:
    """`rows` as tiles. turned: of a block of 16 rows what a group has few of, as vectors, once `prepare` has run."""

    def __init__(self, rows: Rows):
        self.w, self.scheme = rows, rows.scheme
        self.groups = rows.padded // DEPTH
        parts = {"scales": (1, "float32")}  # what `prepare` turns: vectors of a group
        if self.scheme.asymmetric:
            parts["mins"] = (1, "float32")
        if self.scheme.bits == 3:
            parts |= {"codes": (2, "uint32"), "high": (1, "uint32")}
        self.turned = {
            part: T.alloc_buffer((vectors * self.groups * ROWS,), dtype, scope="global")
            for part, (vectors, dtype) in parts.items()
        }

    def prepare(self, row0) -> None:
        """Turn what a group has few of, for rows row0 … row0 + 15: element i of row n to i * 16 + n."""
        for part, out in self.turned.items():
            self._turn(part, row0, int(out.shape[0]) // ROWS, out)

    def unpack(self, row0, group, out, at) -> None:
        """The tile of one group at uint16 element `at` of `out`."""
        codes = {8: _q8, 4: _q4, 3: _q3}[self.scheme.bits]
        for p, pairs in enumerate(codes(self, row0, group)):
            store(out, pairs, [], at + p * DEPTH, DEPTH)

    def prefetch(self, row0, group) -> None:
        """Ask for as much of 16 rows as there is of one group: group after group all of it, for rows are contiguous."""
        for buffer in self.w.buffers.values():
            row = int(buffer.shape[-1])
            size = np.dtype(str(buffer.dtype)).itemsize
            per_group = -(-row // self.groups) * ROWS
            for at in range(0, per_group, LINE // size):
                prefetch(buffer, [row0, group * per_group + at])

    def vector(self, part: str, index):
        """Vector `index` of what `prepare` turned."""
        return load(self.turned[part], [], index * ROWS, ROWS)

    def words(self, row0, first) -> list:
        """Words first … first + 3 of 16 rows: uint32x16, lane n of row0 + n."""
        return _turned([load(self.w.buffers["codes"], [row0 + r], first, 4) for r in range(ROWS)])

    def _turn(self, part: str, row0, count: int, out) -> None:
        """`count` elements of 16 rows, float16 as float32."""
        buffer = self.w.buffers[part]
        half = str(buffer.dtype) == "float16"
        width = 8 if half else 4
        if count < width:
            with T.serial(count) as i, T.serial(ROWS) as n:
                value = load(buffer, [row0 + n], i, 1)
                T.buffer_store(out, to_float(value, 1) if half else value, [i * ROWS + n])
            return
        with T.serial(-(-count // width)) as chunk:
            at = opaque(tirx.min(chunk * width, count - width))  # the last one overlaps its neighbour
            rows = [load(buffer, [row0 + r], at, width) for r in range(ROWS)]
            turned = _turned([tirx.reinterpret("uint32x4", row) for row in rows] if half else rows)
            if half:
                turned = [v for word in turned for v in _two_halves(word)]
            for i, row in enumerate(turned):
                store(out, row, [], (at + i) * ROWS, ROWS)


def _turned(rows: list) -> list:
    """16 vectors of 4 words as 4 vectors of 16: all first words, all second ones …"""
    rows = [T.bind(row) for row in rows]
    # a[i]: rows i, 4 + i, 8 + i, 12 + i one after the other; then 4 x 4 are turned in every quarter
    a = [T.bind(tirx.Shuffle(rows[i::4], list(range(16)))) for i in range(4)]
    low, high = [0, 16, 1, 17], [2, 18, 3, 19]
    pairs = [[_quarters(x, y, pick) for x, y in (a[:2], a[2:])] for pick in (low, high)]
    return [_quarters(x, y, pick) for x, y in pairs for pick in ([0, 1, 16, 17], [2, 3, 18, 19])]


def _two_halves(word) -> list:
    """The lower and the upper float16 of 16 words as float32."""
    both = [word, tirx.shift_right(word, splat(T.uint32(16), ROWS))]
    halves = [tirx.reinterpret(f"float16x{ROWS}", tirx.Cast(f"uint16x{ROWS}", v)) for v in both]
    return [to_float(half, ROWS) for half in halves]


def _quarters(x, y, pick: list[int]):
    return T.bind(tirx.Shuffle([x, y], [q + i for q in (0, 4, 8, 12) for i in pick]))


def _halves_of_words(value):
    return T.bind(tirx.reinterpret("uint16x32", value))


def _shift(value, bits: int, kind: str = "uint16", lanes: int = 32):
    return value if bits == 0 else tirx.shift_right(value, splat(tirx.IntImm(kind, bits), lanes))


def _table(scheme, codes: int) -> list[int]:
    return [_bfloat16(i % codes - (scheme.zero or 0)) for i in range(32)]


def _q4(tiles: WeightTiles, row0, group) -> list:
    """Four bits: a table of 16, twice, so that the bit above an index does not matter."""
    table, words = _table(tiles.scheme, 16), tiles.words(row0, group * 4)
    halves = [_halves_of_words(word) for word in words]
    return [look_up(table, _shift(value, 4 * j)) for value in halves for j in range(4)]


def _q3(tiles: WeightTiles, row0, group) -> list:
    """Two bits of the low plane and one of the high one make an index."""
    table = _table(tiles.scheme, 8)
    high = T.bind(tiles.vector("high", group))
    rows = []
    for word in range(2):
        low = _halves_of_words(tiles.vector("codes", group * 2 + word))
        # bits 0 to 7 of this word's 16 to the lower half of each lane, 8 to 15 to the upper
        bits = tirx.bitwise_and(_shift(high, 16 * word, "uint32", ROWS), splat(T.uint32(0xFFFF), ROWS))
        upper = tirx.shift_left(tirx.bitwise_and(bits, splat(T.uint32(0xFF00), ROWS)), splat(T.uint32(8), ROWS))
        bits = _halves_of_words(tirx.bitwise_or(tirx.bitwise_and(bits, splat(T.uint32(0xFF), ROWS)), upper))
        for j in range(8):
            two = tirx.bitwise_and(_shift(low, 2 * j), splat(tirx.IntImm("uint16", 3), 32))
            one = tirx.bitwise_and(_shift(bits, j), splat(tirx.IntImm("uint16", 1), 32))
            rows.append(look_up(table, tirx.bitwise_or(two, one * splat(tirx.IntImm("uint16", 4), 32))))
    return rows


def _q8(tiles: WeightTiles, row0, group) -> list:
    """Eight bits: behind the leading bits of 2^23 as a float32, from which 2^23 is taken; its upper half is exact."""
    first = splat(T.float32(2.0**23 + (tiles.scheme.zero or 0)), ROWS)

    def bits(word, shift: int):
        code = tirx.bitwise_and(_shift(word, shift, "uint32", ROWS), splat(T.uint32(255), ROWS))
        value = tirx.reinterpret(f"float32x{ROWS}", tirx.bitwise_or(code, splat(T.uint32(0x4B000000), ROWS)))
        return tirx.reinterpret(f"uint32x{ROWS}", value - first)

    rows = []
    for word in tiles.words(row0, group * 8) + tiles.words(row0, group * 8 + 4):
        for j in range(2):
            low = tirx.shift_right(bits(word, 8 * j), splat(T.uint32(16), ROWS))
            rows.append(tirx.reinterpret("uint16x32", tirx.bitwise_or(low, bits(word, 8 * j + 16))))
    return rows
