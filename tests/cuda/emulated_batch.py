"""Batched steps on tensor cores without a GPU: python tests/cuda/emulated_batch.py (three minutes).

The kernels of kernels/mma/alike.py and paged.py are compiled for gfx1100 with matrix instructions put together from
lane exchanges, and run on the ROCm emulator: against float64, and each token as if it were alone, to the bit. Tiles are
smaller than on a GPU, for the emulated instructions are long; everything else is the same code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

sys.path.append(str(Path(__file__).parents[1] / "kernels"))

from batch_case import check_attention, check_linear  # noqa: E402

from mlcrt.kernels.mma import alike, paged  # noqa: E402
from mlcrt.kernels.mma.unit import MatrixUnit  # noqa: E402
from mlcrt.kernels.records import Attention, Linear  # noqa: E402
from mlcrt.kernels.simt import Library, Machine  # noqa: E402
from mlcrt.kernels.simt.attention import AttentionTiles, workspace_shape  # noqa: E402
from mlcrt.kernels.simt.common import Register, local  # noqa: E402
from mlcrt.quant.scheme import SCHEMES  # noqa: E402
from mlcrt.targets.rocm.emulate import Emulated  # noqa: E402
from mlcrt.targets.rocm.emulator import state  # noqa: E402
from mlcrt.targets.rocm.tiles import dot8, exchange  # noqa: E402

MACHINE = Machine(32, exchange, dot8)


def _half(word, i):
    """Half i (0 or 1, may be an expression) of a uint32, as float32."""
    bits = tirx.shift_right(word, tirx.Cast("uint32", T.int32(16) * i))
    low = tirx.Cast("uint16", tirx.bitwise_and(bits, T.uint32(65535)))
    return tirx.Cast("float32", tirx.reinterpret("float16", low))


class Unit(MatrixUnit):
    """`lane`: of the warp, set before anything is emitted."""

    lane = None

    def _others(self, values: list, lanes: int = 32):
        """(row, column) of each of the `lanes` lanes around this one, and its values."""
        for mask in range(lanes):
            held = values
            for bit in (1, 2, 4, 8, 16):
                if mask & bit:
                    swapped = [exchange(tirx.reinterpret("int32", v), bit) for v in held]
                    held = [T.bind(tirx.reinterpret("uint32", v)) for v in swapped]
            other = T.bind(tirx.bitwise_xor(self.lane, T.int32(mask)))
            yield T.bind(tirx.floordiv(other, 4)), T.bind(tirx.floormod(other, 4)), held

    def mma(self, accumulator, at, a, b) -> None:
        column = T.bind(tirx.floormod(self.lane, 4))
        left, right = local((2, 16)), local((2, 16))
        for _, c, held in self._others([T.bind(v) for v in a], 4):  # those of the same row
            for reg, word in enumerate(held):
                for i in range(2):
                    T.buffer_store(left, _half(word, i), [reg % 2, reg // 2 * 8 + 2 * c + i])
        for r, c, held in self._others([T.bind(v) for v in b]):
            with T.If(tirx.floordiv(r, 2) == column), T.Then():
                for reg, word in enumerate(held):
                    for i in range(2):
                        T.buffer_store(right, _half(word, i), [tirx.floormod(r, 2), reg * 8 + 2 * c + i])
        for i in range(4):
            total = Register(T.BufferLoad(accumulator, [at + i]))
            with T.serial(16) as k:
                total.add(T.BufferLoad(left, [i // 2, k]) * T.BufferLoad(right, [i % 2, k]))
            T.buffer_store(accumulator, total.get(), [at + i])

    def pack(self, low, high):
        bits = [tirx.Cast("uint32", tirx.reinterpret("uint16", tirx.Cast("float16", v))) for v in (low, high)]
        return tirx.bitwise_or(bits[0], tirx.shift_left(bits[1], T.uint32(16)))

    def transpose(self, pairs):
        row, column = T.bind(tirx.floordiv(self.lane, 4)), T.bind(tirx.floormod(self.lane, 4))
        halves = Register(T.float32(0), count=2)
        for r, c, (word,) in self._others([T.bind(pairs)]):
            with T.If(tirx.And(tirx.floordiv(r, 2) == column, c == tirx.floordiv(row, 2))), T.Then():
                halves.set(_half(word, tirx.floormod(row, 2)), tirx.floormod(r, 2))
        return T.bind(self.pack(halves.get(0), halves.get(1)))

    def scaled_codes(self, out, word, scale) -> None:
        for place, pair in enumerate(((0, 4), (1, 5), (2, 6), (3, 7))):
            codes = [tirx.bitwise_and(tirx.shift_right(word, T.uint32(4 * j)), T.uint32(15)) for j in pair]
            values = [(tirx.Cast("float32", c) - T.float32(8)) * tirx.Cast("float32", scale) for c in codes]
            T.buffer_store(out, self.pack(*values), [place])

    def copy(self, *_) -> None:
        raise NotImplementedError

    commit = wait = arrive = copy


def _caller(build):
    with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):
        kernel = Emulated(build())

    def call(*arrays):
        copies = [array.copy() for array in arrays]
        kernel(*copies)
        return copies

    return call


class _Shapes:
    """What batch_case asks a library."""

    def alike_scratch(self, op: Linear, n) -> list:
        return alike.scratch(op, n)

    def attention_scratch(self, op: Attention, n) -> list:
        return [workspace_shape(op, 2, n)] if op.alike else []


def main() -> None:
    unit = Unit()
    row, rows = alike._Product.weight_row, paged._Rows.__init__

    def weight_row(self, local_row):
        unit.lane = tirx.floormod(self.thread, 32)
        return row(self, local_row)

    def start(self, op, machine, unit_, lane, tiles):
        unit.lane = lane
        rows(self, op, machine, unit_, lane, tiles)

    alike._Product.weight_row, paged._Rows.__init__, paged.PREFILL_TILES = weight_row, start, 1
    # the backend leaves registers of loops that are not entered undefined, and reads them
    for kind in vars(state).values():
        if hasattr(kind, "_check_scalar"):
            kind._check_scalar = lambda self, index: None
    scheme = SCHEMES["q4f16_1"]
    for shape, levels, op in (
        ((2, 32, 8, 1, 10**6), (), Linear(scheme, 48, 160, None, 1e-5, True, None, True, alike=True)),
        ((4, 16, 16, 1, 16), ((1, 2),), Linear(scheme, 40, 576, None, None, True, "silu", False, alike=True)),
        ((2, 16, 8, 2, 10**6), (), Linear(scheme, 48, 416, None, 1e-5, False, None, True, alike=True)),
    ):
        alike.WARPS, alike.WARP_ROWS, alike.TOKENS, alike.DEPTH, alike.MANY = shape
        alike.LEVELS = levels
        check_linear(_caller(lambda op=op: alike.linear(op, MACHINE, unit)), op, _Shapes(), 1e-2, [[0], [3, 4, 9]])
        print(f"linear {op.rows} x {op.columns}: right", flush=True)
    for head_dim, group, heads, window, softcap, together in (
        (32, 4, 2, None, None, False), (16, 1, 1, 20, None, False), (32, 4, 2, None, None, True),
        (16, 3, 1, 20, 3.0, True),
    ):  # fmt: skip
        op = Attention(
            heads * group, heads, head_dim, None, "float16", 0.4, window, softcap, paged=True, alike=together
        )
        tiles = AttentionTiles(paged_splits=2)
        call = _caller(lambda op=op, tiles=tiles: paged.attention(op, tiles, MACHINE, unit, "attention"))
        check_attention(call, op, _Shapes(), 4e-3)
        print(f"attention {head_dim} x {group}, {'decoding' if together else 'prompts'}: right", flush=True)


if __name__ == "__main__":
    main()
