"""Stands in for cooperative matrices where the device has none: each lane keeps its share of the sums."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.simt.common import local

LANES = 8  # of the subgroups that run the loops, unless a kernel says otherwise


class Loops:
    """Takes the calls of a kernel. Sums are registers, an `a` is copied by every lane (its memory may be written again
    before its use), a `b` is read where it lies. `sums` says how many sums a kernel's emitter uses, `lefts` how many
    `a`."""

    def __init__(self, sums, lefts, lanes: int):
        self.sums, self.lefts, self.lanes = sums, lefts, lanes

    def begin(self, owner) -> None:
        """The calls of a kernel follow; `owner` emits it."""
        self.owner, self.right, self.c = owner, {}, None

    def __call__(self, name: str, *arguments) -> None:
        if self.c is None and name != "matrix_shape":
            self.shape(16, 16, 16)
        getattr(self, name.removeprefix("matrix_"))(*arguments)

    def shape(self, m: int, n: int, k: int) -> None:
        self.m, self.n, self.k, self.each = m, n, k, m * n // self.lanes
        self.c = local((self.sums(self.owner) * self.each,))
        self.a = local((self.lefts(self.owner) * m * k,))

    def elements(self, number: int):
        """Loop over this lane's elements of a sum: (place among the registers, row, column)."""
        with T.serial(self.each) as e:
            at = tirx.floormod(self.owner.thread, self.lanes) * self.each + e
            yield number * self.each + e, tirx.floordiv(at, self.n), tirx.floormod(at, self.n)

    def fill(self, number: int, value) -> None:
        for at, _, _ in self.elements(number):
            T.buffer_store(self.c, value, [at])

    def load_a(self, number: int, address, stride: int) -> None:
        load = address.args[0]
        with T.serial(self.m) as row, T.serial(self.k) as k:
            value = half(load, row, stride, k)
            T.buffer_store(self.a, value, [number * (self.m * self.k) + row * self.k + k])

    def load_b(self, number: int, address, stride: int) -> None:
        self.right[number] = lambda k, column: half(address.args[0], column, stride, k)

    def load_rows(self, number: int, address, stride: int) -> None:
        self.right[number] = lambda k, column: half(address.args[0], k, stride, column)

    def load_c(self, number: int, address, stride: int) -> None:
        load = address.args[0]
        for at, row, column in self.elements(number):
            value = T.BufferLoad(load.source, indices(load, row, stride, column))
            T.buffer_store(self.c, tirx.reinterpret("float32", value), [at])

    def scale(self, c: int, d: int) -> None:
        for at, _, _ in self.elements(c):
            factor = T.BufferLoad(self.c, [at + (d - c) * self.each])
            T.buffer_store(self.c, T.BufferLoad(self.c, [at]) * factor, [at])

    def multiply_add(self, c: int, a: int, b: int) -> None:
        for at, row, column in self.elements(c):
            with T.serial(self.k) as k:
                left = T.BufferLoad(self.a, [a * (self.m * self.k) + row * self.k + k])
                total = T.BufferLoad(self.c, [at]) + left * self.right[b](k, column)
                T.buffer_store(self.c, total, [at])

    def store(self, number: int, address, stride: int) -> None:
        load = address.args[0]
        for at, row, column in self.elements(number):
            value = T.BufferLoad(self.c, [at])
            value = value if load.source.dtype == "float32" else tirx.reinterpret("uint32", value)
            T.buffer_store(load.source, value, indices(load, row, stride, column))


def indices(load, line, stride: int, column) -> list:
    """Indices of the element of a line, counted from `load`, whose buffer may have rows of that stride."""
    if len(load.indices) == 2:
        return [load.indices[0] + line, load.indices[1] + column]
    return [load.indices[0] + line * stride + column]


def half(load, line, stride: int, k):
    """Element k of a line of float16, or of words that hold two of them."""
    if load.source.dtype == "float16":
        return tirx.Cast("float32", T.BufferLoad(load.source, indices(load, line, stride, k)))
    word = T.BufferLoad(load.source, indices(load, line, stride, tirx.floordiv(k, 2)))
    bits = tirx.Cast("uint16", tirx.shift_right(word, tirx.Cast("uint32", tirx.floormod(k, 2) * 16)))
    return tirx.Cast("float32", tirx.reinterpret("float16", bits))


def stand_in(monkeypatch, module, emitter: str, sums, lefts, lanes: int = LANES) -> None:
    """Let the calls of `module`, whose class `emitter` makes the kernel, be loops."""
    loops = Loops(sums, lefts, lanes)
    monkeypatch.setattr(module, "_call", loops)
    kind = getattr(module, emitter)
    emit = kind.emit

    def noting(self, *arguments):
        loops.begin(self)
        emit(self, *arguments)

    monkeypatch.setattr(kind, "emit", noting)
