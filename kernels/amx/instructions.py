"""AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18): eight tile registers of up
to 16 rows of 64 bytes, and a product of bfloat16 tiles that adds to a float32 one.

A process has to ask its kernel for the registers before the first of these runs: see targets/cpu/amx.py.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

ROWS = 16  # of a tile
ROW_BYTES = 64
DEPTH = 32  # bfloat16 in a row of a tile: how far one product goes along K
_TILES = 8


def configuration(tokens):
    """Tiles 0 to 5 (sums and activations) with `tokens` (int32) rows of 64 bytes, 6 and 7 (weights) with 16, for
    `configure`. Outside of the loop that uses it, so that it shares no memory with accumulators, which could then not
    stay in registers."""
    words = [1, 0, 0, 0, *[ROW_BYTES << 16 | ROW_BYTES] * (_TILES // 2), *[0] * 4]
    words += [tokens * 0x01010101, tokens * 0x0101 + (ROWS << 16 | ROWS << 24), 0, 0]
    buffer = T.alloc_buffer((len(words),), "int32", scope="global")
    for i, word in enumerate(words):
        T.buffer_store(buffer, word if hasattr(word, "ty") else T.int32(word), [i])
    return buffer


def configure(configuration) -> None:
    """Give this thread's tiles their shapes."""
    _call("ldtilecfg", tirx.address_of(T.BufferLoad(configuration, [0])))


def release() -> None:
    """Put the tile registers back into their initial state, in which they cost nothing at a change of threads."""
    _call("tilerelease")


def load_tile(tile: int, buffer, at) -> None:
    """Rows that lie 64 bytes apart, from element `at` of the buffer on."""
    _call("tileloadd64", _tile(tile), tirx.address_of(T.BufferLoad(buffer, [at])), T.int64(ROW_BYTES))


def store_tile(tile: int, buffer, at) -> None:
    _call("tilestored64", _tile(tile), tirx.address_of(T.BufferLoad(buffer, [at])), T.int64(ROW_BYTES))


def zero_tile(tile: int) -> None:
    _call("tilezero", _tile(tile))


def multiply(sums: int, left: int, right: int) -> None:
    """sums[m, n] += left[m, 2p] * right[p, 2n] + left[m, 2p + 1] * right[p, 2n + 1] over p, in the order of p."""
    _call("tdpbf16ps", _tile(sums), _tile(left), _tile(right))


def look_up(table: list[int], index):
    """uint16x32: table[index % 32] of each lane (VPERMW); table has 32 constants."""
    constants = tirx.Shuffle([tirx.IntImm("uint16", v) for v in table], list(range(32)))
    return tirx.call_llvm_pure_intrin("uint16x32", "llvm.x86.avx512.permvar.hi.512", constants, index)


def _tile(number: int):
    return tirx.IntImm("int8", number)


def _call(name: str, *arguments) -> None:
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
