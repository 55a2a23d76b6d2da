"""How the one-token form holds its activations: in shared memory, as the codes they are multiplied by want them."""

from __future__ import annotations

import contextlib
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.quant.scheme import Scheme

from .common import Register, barrier, block_reduce, local, shared, strided, where

if TYPE_CHECKING:
    from .linear import LinearKernel

PACKED_SCALE = 16.0
PACKED_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight activations that belong to a word of codes, as `dot8` wants them


def takes_halves(scheme: Scheme) -> bool:
    """Whether the one-token form multiplies packed halves where the machine has a `dot8`."""
    return scheme.bits == 4 and scheme.zero == 8 and scheme.dtype == "float16"


def packs(scheme: Scheme, columns: int) -> bool:
    """Whether activations of one token may come packed: as float16, divided by PACKED_SCALE, eight to a word of codes
    in PACKED_ORDER, word w at [w % 4, w // 4], as they will lie in shared memory."""
    return takes_halves(scheme) and columns % scheme.group == 0


def store_packed(buffer, index, value) -> None:
    """buffer [1, columns] f16: put element `index` of the activations (float32) where it belongs."""
    words = int(buffer.ty.shape[1]) // 8
    word, inside = tirx.floordiv(index, 8), tirx.floormod(index, 8)
    at = (tirx.floormod(word, 4) * (words // 4) + tirx.floordiv(word, 4)) * 8
    place = tirx.floormod(inside, 4) * 2 + tirx.floordiv(inside, 4)
    T.buffer_store(buffer, tirx.Cast("float16", value * T.float32(1 / PACKED_SCALE)), [0, at + place])


class NormAhead:
    """The norm's weights that a thread will need, in registers before the kernel in front has ended: every block reads
    all of them, and so only half as much is left to be read once the activations are there."""

    MOST = 32  # registers

    def __init__(self, k: LinearKernel, thread, threads: int):
        self.n, words = k.weights.per_word, k.weights.words
        self.turns = -(-words // threads)
        self.held = local((self.turns * self.n,))
        self.thread, self.threads, self.words = thread, threads, words
        for turn, word in self.each():
            for j in range(0, self.n, 4):
                loaded = k.machine.stream(k.norm, [word * self.n + j], "uint32x4")
                at = tirx.Ramp(turn * self.n + j, 1, 4)
                T.buffer_store(self.held, tirx.reinterpret("float32x4", loaded), [at])

    @classmethod
    def fits(cls, k: LinearKernel, threads: int) -> bool:
        w = k.weights
        if k.norm is None or k.machine.stream is None or w.per_word % 4 or w.padded != w.columns:
            return False
        return -(-w.words // threads) * w.per_word <= cls.MOST

    def each(self):
        """(turn, word) of this thread; what is emitted in the loop runs only where there is such a word."""
        for turn in range(self.turns):
            word = T.bind(turn * self.threads + self.thread)
            with where(word < self.words, (turn + 1) * self.threads <= self.words):
                yield turn, word

    def values(self, turn: int) -> list:
        return [T.BufferLoad(self.held, [turn * self.n + j]) for j in range(self.n)]


class Staged:
    """The token's activations in shared memory, in the order of the packed words.

    `factor` multiplies every dot product: 1/rms, found in the same pass, and any scaling of the stored values.
    """

    def __init__(self, k: LinearKernel, thread, threads: int, norm: NormAhead | None = None):
        self.k, self.w = k, k.weights
        squares = Register(T.float32(0))
        self.allocate()
        if norm is None:
            with strided(self.w.words, thread, threads) as word:
                self.stage(word, self.read(word, squares))
        else:
            for turn, word in norm.each():
                self.stage(word, self.read(word, squares, norm.values(turn)))
        if k.norm is None:
            barrier()
            self.factor = T.float32(1)
        else:
            whole = block_reduce(k.machine, squares.get(), lambda a, b: a + b, threads, thread)
            self.factor = k.inverse_rms(whole)

    def read(self, word, squares: Register, norm: list | None = None) -> list:
        """The activations of one word, zero beyond the columns; adds their squares (before the norm's weight). `norm`:
        the norm's weights if they are here already."""
        k, w = self.k, self.w
        n = w.per_word
        start = T.bind(word * n)
        width = next(v for v in (4, 2, 1) if n % v == 0 and k.op.columns % v == 0)
        values = []
        for j in range(0, n, width):
            chunk = local((width,))
            index = start + j if width == 1 else tirx.Ramp(start + j, 1, width)
            at = 0 if width == 1 else tirx.Ramp(0, 1, width)
            inside = start + j < k.op.columns
            for i in range(width):
                T.buffer_store(chunk, T.float32(0), [i])
            weight = local((width,)) if k.norm is not None and norm is None else None
            with contextlib.ExitStack() as guard:
                if w.padded != k.op.columns:
                    guard.enter_context(T.If(inside))
                    guard.enter_context(T.Then())
                T.buffer_store(chunk, T.BufferLoad(k.x, [0, index]), [at])
                if weight is not None:
                    T.buffer_store(weight, T.BufferLoad(k.norm, [index]), [at])
                if k.norm is not None:
                    for i in range(width):
                        value = T.bind(T.BufferLoad(chunk, [i]))
                        squares.add(value * value)
                        factor = T.BufferLoad(weight, [i]) if norm is None else norm[j + i]
                        T.buffer_store(chunk, value * factor, [i])
            values += [T.BufferLoad(chunk, [i]) for i in range(width)]
        return values


class Activations(Staged):
    """Any scheme: [element of word, word] in the scheme's float type, and the sum of each word's activations where
    weights have an offset. Lane l reads words n * l + v: those with equal v lie together, against bank conflicts."""

    @staticmethod
    def bytes(k: LinearKernel) -> int:
        """Of shared memory."""
        w, scheme = k.weights, k.op.scheme
        return w.padded * (2 if scheme.dtype == "float16" else 4) + 4 * w.words * scheme.asymmetric

    def allocate(self) -> None:
        scheme = self.k.op.scheme
        self.apart = 1 if scheme.is_float else self.w.per_lane
        self.x = shared((self.w.per_word, self.w.words), scheme.dtype)
        self.sums = shared((self.w.words,)) if scheme.asymmetric else None

    def place(self, word):
        return tirx.floormod(word, self.apart) * (self.w.words // self.apart) + tirx.floordiv(word, self.apart)

    def stage(self, word, values: list) -> None:
        total, place = Register(T.float32(0)), T.bind(self.place(word))
        for j, value in enumerate(values):
            stored = T.bind(tirx.Cast(self.k.op.scheme.dtype, value))
            T.buffer_store(self.x, stored, [j, place])
            if self.sums is not None:  # of what is multiplied: rounding must not act as an offset
                total.add(tirx.Cast("float32", stored))
        if self.sums is not None:
            T.buffer_store(self.sums, total.get(), [place])

    def word(self, at) -> tuple[list, object]:
        """The activations of the word at `at` in float32, and their sum where weights have an offset."""
        at = T.bind(self.place(at))
        values = [T.bind(tirx.Cast("float32", T.BufferLoad(self.x, [j, at]))) for j in range(self.w.per_word)]
        return values, None if self.sums is None else T.BufferLoad(self.sums, [at])

    def partial_dots(self, rows: list, stored: list, scales: list, word) -> list:
        """Per row the sum over `per_lane` words from `word` of weight * activation."""
        w, dots = self.w, []
        for g, first in enumerate(w.group_starts(word)):
            partial = [Register(T.float32(0)) for _ in rows]
            offset_sum = Register(T.float32(0)) if w.scheme.asymmetric else None
            for v in range(w.per_lane // w.lane_groups):
                at = first + v
                values, total = self.word(at)
                for r, row in enumerate(rows):
                    code_word = stored[r][g * w.per_lane // w.lane_groups + v]
                    for value, code in zip(values, w.values(code_word, row, at, w.scheme.zero or 0), strict=True):
                        partial[r].add(code * value)
                if offset_sum is not None:
                    offset_sum.add(total)
            if not scales:
                return [p.get() for p in partial]
            sums = [scale[g] * p.get() for scale, p in zip(scales, partial, strict=True)]
            if offset_sum is not None:
                offsets = [w.offset(row, first, scale[g]) for row, scale in zip(rows, scales, strict=True)]
                sums = [s + o * offset_sum.get() for s, o in zip(sums, offsets, strict=True)]
            dots.append(sums)
        return [reduce(add, each) for each in zip(*dots, strict=True)]


class PackedActivations(Staged):
    """Symmetric 4-bit codes with packed half arithmetic: eight float16 a word in the order that `dot8` wants.

    Values are stored divided by 16, so that the half-precision sum of eight products cannot overflow for activations
    below 30,000. Lane l reads word 4*l + v of its row: words with equal v lie together, which avoids bank conflicts.
    """

    @staticmethod
    def bytes(k: LinearKernel) -> int:
        return 2 * k.weights.padded

    def allocate(self) -> None:
        self.x = shared((4, self.w.words // 4, 8), "float16")

    def stage(self, word, values: list) -> None:
        slot = [tirx.floormod(word, 4), tirx.floordiv(word, 4)]
        packed = local((8,), "float16")
        for i, j in enumerate(PACKED_ORDER):
            T.buffer_store(packed, tirx.Cast("float16", values[j] * T.float32(1 / PACKED_SCALE)), [i])
        T.buffer_store(self.x, T.BufferLoad(packed, [tirx.Ramp(0, 1, 8)]), [*slot, tirx.Ramp(0, 1, 8)])

    def partial_dots(self, rows: list, stored: list, scales: list, word) -> list:
        group = T.bind(tirx.floordiv(word, 4))
        partial = [Register(T.float32(0)) for _ in rows]
        for v in range(4):
            x = T.bind(T.BufferLoad(self.x, [v, group, tirx.Ramp(0, 1, 8)]))
            for r in range(len(rows)):
                partial[r].add(self.k.machine.dot8(stored[r][v], x))
        return [s[0] * p.get() * T.float32(PACKED_SCALE) for s, p in zip(scales, partial, strict=True)]


class PrepackedActivations(PackedActivations):
    """Packed by the kernel that made them (see `packs`): they are only copied."""

    def __init__(self, k: LinearKernel, thread, threads: int, norm: None = None):
        self.k, self.w, self.factor = k, k.weights, T.float32(1)
        self.allocate()
        words, held = k.weights.words, []
        for first in range(0, words, threads):  # all loads are under way before the first is used
            word = T.bind(tirx.min(first + thread, words - 1))
            eight = local((8,), "float16")
            loaded = k.machine.stream(k.x, [0, word * 8], "float16x8")
            T.buffer_store(eight, loaded, [tirx.Ramp(0, 1, 8)])
            held.append((word, eight))
        for word, eight in held:
            to = [tirx.floordiv(word, words // 4), tirx.floormod(word, words // 4), tirx.Ramp(0, 1, 8)]
            T.buffer_store(self.x, T.BufferLoad(eight, [tirx.Ramp(0, 1, 8)]), to)
        barrier()
