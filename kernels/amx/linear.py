"""y = epilogue(prologue(x) @ W^T) for any number of tokens on the tile registers of AMX.

Activations are split into two bfloat16 whose sum keeps 16 bits of the float32 (https://arxiv.org/abs/1904.06376), so
two products with the exact codes of a weight give a group's dot products in float32; the group's scale multiplies them
on the way into the sum of the row. A token's result does not depend on how many others share the call. This is
also the form for batches of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simd.linear import LinearKernel, LinearTiles
from mlcrt.kernels.simd.vector import Accumulator, hold, horizontal_sum, load, opaque, splat, store

from .instructions import DEPTH, ROWS, configuration, configure, load_tile, multiply, release, store_tile, zero_tile
from .weights import WeightTiles, order

_SUMS, _HIGH, _LOW, _WEIGHTS = 0, 2, 3, 6  # tile registers
_TILE = ROWS * DEPTH  # elements
_SECTION = 16  # groups whose tiles, and what comes of them, stay in the nearest cache
TOKENS = (1, 4, 8, 16)  # of a tile: as many as needed, for fewer are faster


@dataclass(frozen=True)
class AmxTiles:
    """unit_blocks: blocks of 16 outputs that a thread takes at once, at most: it starts with memory and tiles of its
    own, which costs as much as a sixth of a small block."""

    unit_blocks: int = 6


class Activations:
    """The (normed) tokens as left-hand tiles, [tile, group, high or low, token, 32] bfloat16, and for schemes with
    minima the sums of their groups, [tile, group, token] float32. `size` tokens are in a tile, repeated to fill it."""

    def __init__(self, k: LinearKernel):
        self.k = k
        w, n = k.weights, k.n
        self.groups = w.padded // DEPTH
        size = T.int32(TOKENS[-1])
        for tokens in reversed(TOKENS[:-1]):
            size = tirx.Select(n <= tokens, T.int32(tokens), size)
        self.size = T.bind(size)
        self.count = T.bind(tirx.floordiv(n + self.size - 1, self.size))
        self.stride = self.groups * 2 * DEPTH  # uint16 per token
        places = self.count * self.size
        self.x = T.alloc_buffer((places * self.stride,), "uint16", scope="global")
        self.sums = None
        if w.scheme.asymmetric:
            self.sums = T.alloc_buffer((places * self.groups,), "float32", scope="global")

        def pack(place) -> None:
            tile, slot = opaque(tirx.floordiv(place, self.size)), opaque(tirx.floormod(place, self.size))
            self._pack(opaque(tirx.min(self.first(tile) + slot, n - 1)), tile, slot)

        with T.If(places <= 2):  # sooner done than given to other threads
            with T.Then(), T.serial(places) as place:
                pack(place)
            with T.Else(), T.parallel(places) as place:
                pack(place)

    def first(self, tile):
        """The first token of a tile; the last tile overlaps its neighbour."""
        return tirx.max(tirx.min(tile * self.size, self.k.n - self.size), 0)

    def _pack(self, token, tile, slot) -> None:
        k = self.k
        inverse = k.inverse_rms(token) if k.norm is not None else None
        columns, places = k.op.columns, order(k.weights.scheme)
        x0 = opaque(tile * self.size * self.stride + slot * DEPTH)
        half = splat(T.uint32(0x8000), ROWS)  # to the nearest, so that what is lost is below 2^-17

        def read(index, limit):
            inside = tirx.min(index, splat(T.int32(columns - 1), ROWS)) if limit else index
            value = T.BufferLoad(k.x, [token, inside])
            if inverse is not None:
                value = value * T.BufferLoad(k.norm, [inside]) * splat(inverse, ROWS)
            if limit:
                value = tirx.Select(index < splat(T.int32(columns), ROWS), value, splat(T.float32(0), ROWS))
            return hold(value)

        def group(g, limit: bool):
            halves = [read(tirx.Ramp(T.bind(g * DEPTH + at), 1, ROWS), limit) for at in (0, ROWS)]
            for i, at in enumerate((0, ROWS)):
                value = hold(tirx.Shuffle(halves, places[at : at + ROWS]))
                bits = T.bind(tirx.reinterpret(f"uint32x{ROWS}", value))
                high = T.bind(tirx.bitwise_and(bits + half, splat(T.uint32(0xFFFF0000), ROWS)))
                rest = value - tirx.reinterpret(f"float32x{ROWS}", high)
                for part, b in enumerate((high, tirx.reinterpret(f"uint32x{ROWS}", rest) + half)):
                    upper = tirx.Cast(f"uint16x{ROWS}", tirx.shift_right(b, splat(T.uint32(16), ROWS)))
                    store(self.x, upper, [], x0 + (g * 2 + part) * self.size * DEPTH + i * ROWS, ROWS)
            if self.sums is not None:
                total = horizontal_sum(T.bind(halves[0] + halves[1]), ROWS)
                T.buffer_store(self.sums, total, [(tile * self.groups + g) * self.size + slot])

        whole = columns // DEPTH
        with T.serial(whole) as g:
            group(g, False)
        if whole < self.groups:
            group(T.int32(whole), True)


class _Product:
    """Dot products of 16 rows at a time with all tokens, in three passes over a section of K.

    Unpacking to tiles, multiplying them and scaling what they gave are kept apart: a tile that is loaded right after
    its rows were stored, or rows that are loaded right after their tile was, wait two to three times as long as all of
    the arithmetic takes.
    """

    def __init__(self, k: LinearKernel, a: Activations):
        self.k, self.a = k, a
        self.w = WeightTiles(k.weights)
        self.section = -(-a.groups // -(-a.groups // _SECTION))  # sections as long as one another, or nearly so
        self.panel = T.alloc_buffer((self.section * _TILE,), "uint16", scope="global")
        self.sums = T.alloc_buffer((self.section * ROWS * ROWS,), "float32", scope="global")
        self.dots = T.alloc_buffer((a.count * a.size * k.parts * ROWS,), "float32", scope="global")

    def rows(self, row, part: int) -> None:
        """Leave in `dots` [token, part, row] those of the rows row … row + 15, of gate (0) or up (1).

        A section's passes run for all tokens before the next section's, whose tiles take the place of its own.
        """
        self.w.prepare(row)

        def choose(sizes: tuple) -> None:
            if not sizes:
                self._many_tiles(row, part)
                return
            with T.If(self.k.n <= sizes[0]):
                with T.Then():
                    self._one_tile(row, part, sizes[0])
                with T.Else():
                    choose(sizes[1:])

        choose(TOKENS)

    def _each_section(self, body) -> None:
        whole, rest = divmod(self.a.groups, self.section)
        with T.serial(whole) as i:
            body(opaque(i * self.section), self.section)
        if rest:
            body(T.int32(whole * self.section), rest)

    def _one_tile(self, row, part: int, size: int) -> None:
        accs = [Accumulator(ROWS) for _ in range(size)]

        def section(first, count: int) -> None:
            self._unpack(row, first, count)
            self._multiply(accs, T.int32(0), first, count, row)

        self._each_section(section)
        self._keep(accs, T.int32(0), part)

    def _many_tiles(self, row, part: int) -> None:
        a = self.a

        def section(first, count: int) -> None:
            self._unpack(row, first, count)
            with T.serial(a.count) as tile:
                accs = [Accumulator(ROWS) for _ in range(ROWS)]
                with T.If(first > 0), T.Then():
                    for t, acc in enumerate(accs):
                        acc.set(load(self.dots, [], self._place(tile, ROWS, t, part), ROWS))
                self._multiply(accs, tile, first, count)
                self._keep(accs, tile, part)

        self._each_section(section)

    def _unpack(self, row, first, count: int) -> None:
        with T.serial(count) as i:
            self.w.unpack(row, opaque(first + i), self.panel, opaque(i * _TILE))

    def _multiply(self, accs: list, tile, first, count: int, row=None) -> None:
        a, size = self.a, len(accs)
        with T.serial(count) as i:
            if row is not None:
                self.w.prefetch(row + ROWS, opaque(first + i))
            x = opaque((tile * a.groups + first + i) * (2 * size * DEPTH))
            load_tile(_WEIGHTS, self.panel, opaque(i * _TILE))
            load_tile(_HIGH, a.x, x)
            zero_tile(_SUMS)
            multiply(_SUMS, _HIGH, _WEIGHTS)
            load_tile(_LOW, a.x, x + size * DEPTH)
            multiply(_SUMS, _LOW, _WEIGHTS)
            store_tile(_SUMS, self.sums, opaque(i * (size * ROWS)))
        with T.serial(count) as i:
            g = opaque(first + i)
            scale = hold(self.w.vector("scales", g))
            minimum = hold(self.w.vector("mins", g)) if a.sums is not None else None
            for t, acc in enumerate(accs):
                total = acc.get()
                if minimum is not None:
                    total = total + minimum * splat(T.BufferLoad(a.sums, [(tile * a.groups + g) * size + t]), ROWS)
                acc.set(total + scale * load(self.sums, [], (i * size + t) * ROWS, ROWS))

    def _keep(self, accs: list, tile, part: int) -> None:
        for t, acc in enumerate(accs):
            store(self.dots, acc.get(), [], self._place(tile, len(accs), t, part), ROWS)

    def _place(self, tile, size: int, t: int, part: int):
        return ((tile * size + t) * self.k.parts + part) * ROWS

    def finish(self, unit) -> None:
        """The 16 outputs from `unit` on of every token."""
        k, a = self.k, self.a
        with T.serial(a.count) as tile:
            token0 = opaque(a.first(tile))
            with T.serial(tirx.min(a.size, k.n)) as t:
                at = opaque((tile * a.size + t) * (k.parts * ROWS))
                sums = [load(self.dots, [], at + p * ROWS, ROWS) for p in range(k.parts)]
                k.finish(opaque(token0 + t), unit, sums, ROWS)


def _steps(blocks: int, most: int) -> int:
    """How many blocks a thread takes at once: as many as leave the same to each of four."""
    return next((n for n in range(most, 1, -1) if blocks % (4 * n) == 0), min(2, blocks))


def _linear(k: LinearKernel, tiles: AmxTiles) -> None:
    op = k.op
    a = Activations(k)
    shapes = configuration(a.size)
    steps = _steps(op.units // ROWS, tiles.unit_blocks)
    block = steps * ROWS
    with T.parallel(-(-op.units // block)) as b:
        first = opaque(tirx.min(b * block, op.units - block))  # the last block overlaps its neighbour
        product = _Product(k, a)
        configure(shapes)
        with T.serial(steps) as step:
            unit = opaque(first + step * ROWS)
            for part in range(k.parts):
                row = opaque(k.weight_row(unit, part))
                product.rows(row, part)
            product.finish(unit)
        release()


def linear(op: Linear, vectors: LinearTiles, tiles: AmxTiles, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32)."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        _linear(LinearKernel(op, vectors), tiles)
    return builder.get()
