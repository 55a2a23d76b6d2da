"""y = epilogue(prologue(x) @ W^T) with W dequantised on the fly, for CPUs with explicit vectors.

Prologue: optional RMSNorm (https://arxiv.org/abs/1910.07467). Epilogue: optional bias, gated activation
(act(gate) * up, gate rows first) and residual add. One token runs as a matrix-vector product that reads each weight
byte once; more tokens run a register-tiled product against a small dequantised panel of rows, or, where each has to
come out as if it were alone, one-token products that share the unpacking (alike.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Linear

from .alike import Packing, Panel
from .functions import activation
from .vector import Accumulator, const, every, halves, hold, horizontal_sum, load, opaque, segments, splat, stack, store
from .weights import Rows


@dataclass(frozen=True)
class LinearTiles:
    """lanes: float32 per vector; gemv_rows: dot products in flight; gemv_block: rows a thread takes at once;
    gemm_tokens x gemm_rows: accumulators held in registers; alike_rows: weight rows unpacked at once for all tokens of
    an `alike` product, which take them in tiles of alike_tokens, the larger first, alike_block: units a thread takes at
    once; native_f16: the CPU converts float16 itself."""

    lanes: int = 16
    gemv_rows: int = 4
    gemv_block: int = 16
    gemm_tokens: int = 4
    gemm_rows: int = 6
    native_f16: bool = True
    alike_rows: int = 3
    alike_tokens: tuple[int, ...] = (4, 2)
    alike_block: int = 24


class LinearKernel:
    """Arguments, prologue and epilogue shared by the one-token and the many-token forms."""

    def __init__(self, op: Linear, tiles: LinearTiles):
        self.op, self.tiles = op, tiles
        n = T.int32() if op.tokens is None else op.tokens
        if op.tokens is None:
            x_handle = T.arg("x", T.handle())
        else:
            self.x = T.arg("x", T.Buffer((1, op.columns), "float32"))
        buffers = weight_arguments(op.scheme, op.rows, op.columns)
        self.weights = Rows(op.scheme, op.rows, op.columns, buffers, tiles.native_f16)
        self.norm = T.arg("norm", T.Buffer((op.columns,), "float32")) if op.norm_eps is not None else None
        self.bias = T.arg("bias", T.Buffer((op.rows,), "float32")) if op.bias else None
        shape = (n, op.units)
        if op.tokens is None:
            residual = T.arg("residual", T.handle()) if op.residual else None
            y = T.arg("y", T.handle())
            self.x = T.match_buffer(x_handle, (n, op.columns), "float32")
            self.residual = T.match_buffer(residual, shape, "float32") if op.residual else None
            self.y = T.match_buffer(y, shape, "float32")
        else:
            self.residual = T.arg("residual", T.Buffer(shape, "float32")) if op.residual else None
            self.y = T.arg("y", T.Buffer(shape, "float32"))
        self.n = n
        self.parts = 2 if op.gate else 1
        # raw floats are padded to whole vectors so that every product runs over full lanes
        self.padded = -(-self.weights.padded // tiles.lanes) * tiles.lanes

    def weight_row(self, unit, part: int):
        return unit + part * self.op.units

    def inverse_rms(self, row):
        """1 / sqrt(mean(x²) + eps) of one token."""
        lanes, columns = self.tiles.lanes, self.op.columns
        total = stack(1)
        T.buffer_store(total, T.float32(0), [0])
        for start, width, count in segments(columns, lanes):
            acc = Accumulator(width)
            with T.serial(count) as i:
                v = T.bind(load(self.x, [row], start + i * width, width))
                acc.add(v * v)
            T.buffer_store(total, T.BufferLoad(total, [0]) + horizontal_sum(acc.get(), width), [0])
        mean = T.BufferLoad(total, [0]) * T.float32(1.0 / columns)
        return T.bind(T.float32(1) / tirx.sqrt(mean + T.float32(self.op.norm_eps)))

    def permute(self, row, out, out_row: list, place=None) -> None:
        """Write the (normed) activations of token `row` in the lane order of the weights, zero where padded."""
        inverse = self.inverse_rms(row) if self.norm is not None else None

        def read(index, lanes: int):
            value = T.BufferLoad(self.x, [row, index])
            return value if inverse is None else value * T.BufferLoad(self.norm, [index]) * splat(inverse, lanes)

        permute(self.weights, self.tiles.lanes, self.padded, read, out, out_row, place)

    def finish(self, row, unit, sums: list, lanes: int = 1) -> None:
        """Bias, gate, residual and store of `lanes` output elements; `sums` has their dot products, one per part."""
        if self.bias is not None:
            sums = [s + load(self.bias, [], self.weight_row(unit, p), lanes) for p, s in enumerate(sums)]
        value = sums[0]
        if self.op.gate:
            value = activation(self.op.gate, sums[0], lanes) * sums[1]
        if self.residual is not None:
            value = value + load(self.residual, [row], unit, lanes)
        store(self.y, value, [row], unit, lanes)


def permute(w: Rows, lanes: int, padded: int, read, out, out_row: list, place=None) -> None:
    """Write activations in the lane order of `w`, zero beyond its columns.

    `read(index, lanes)` gives the activations at a scalar or vector index below the columns. `place(word, j, lanes)`
    tells where elements j of `lanes` words go; where it is given, nothing is written past the words.
    """
    at_end = place is None
    place = place or (lambda word, j, width: word * w.per_word + j * width)
    exact = w.padded == w.columns
    for start, width, count in segments(w.words, lanes):
        with T.serial(count) as i:
            word = T.bind(start + i * width)
            if exact and width > 1:
                starts = [word * w.per_word + v * width for v in range(w.per_word)]
                chunks = [hold(read(tirx.Ramp(s, 1, width), width)) for s in starts]
                for j, value in enumerate(every(chunks, width)):
                    store(out, value, out_row, place(word, j, width), width)
                continue
            for j in range(w.per_word):
                at = word * w.per_word + j
                index = at if width == 1 else tirx.Ramp(at, w.per_word, width)
                if exact:
                    value = read(index, width)
                else:
                    value = read(tirx.min(index, splat(T.int32(w.columns - 1), width)), width)
                    value = tirx.Select(index < splat(T.int32(w.columns), width), value, const(0.0, width))
                store(out, value, out_row, place(word, j, width), width)
    if not at_end:
        return
    for start, width, count in segments(padded - w.padded, lanes):
        with T.serial(count) as i:
            store(out, const(0.0, width), out_row, w.padded + start + i * width, width)


def word_sums(w: Rows, lanes: int, x, x_row: list, out, out_row: list, x_place=None, place=None) -> None:
    """Per word the sum of its activations (times -zero for symmetric schemes), in lane order.

    Multiplied by a group's scale or minimum it replaces subtracting the zero point from every code.
    """
    x_place = x_place or (lambda word, j, width: word * w.per_word + j * width)
    place = place or (lambda word, width: word)
    for start, width, count in segments(w.words, lanes):
        with T.serial(count) as i:
            word = T.bind(start + i * width)
            parts = [load(x, x_row, x_place(word, j, width), width) for j in range(w.per_word)]
            total = reduce(add, parts)
            if not w.scheme.asymmetric:
                total = total * const(-float(w.scheme.zero), width)
            store(out, total, out_row, place(word, width), width)


def _gemv(k: LinearKernel) -> None:
    op, tiles, w = k.op, k.tiles, k.weights
    x = T.alloc_buffer((k.padded,), "float32", scope="global")
    k.permute(0, x, [])
    sums = None
    if not op.scheme.is_float:
        sums = T.alloc_buffer((w.words,), "float32", scope="global")
        word_sums(w, tiles.lanes, x, [], sums, [])
    units = max(1, tiles.gemv_rows // k.parts)
    block = min(max(units, tiles.gemv_block // k.parts), op.units)
    block -= block % units or 0
    if block == 0:
        units = block = op.units
    with T.parallel(-(-op.units // block)) as b:
        first = T.bind(tirx.min(b * block, op.units - block))  # the last block overlaps its neighbour
        with T.serial(block // units) as step:
            unit0 = T.bind(first + step * units)
            rows = [k.weight_row(unit0 + u, p) for u in range(units) for p in range(k.parts)]
            for row in rows:
                w.prefetch(row + 4 * len(rows))
            dots = row_dots([(w, row) for row in rows], tiles.lanes, x, [], sums, [])
            for u in range(units):
                k.finish(0, unit0 + u, dots[u * k.parts : (u + 1) * k.parts])


def row_dots(rows: list, lanes: int, x, x_row: list, sums, sums_row: list) -> list:
    """Bound float32 values: dot products of weight rows, (Rows, row index) pairs, with permuted activations.

    The rows advance together, so that each vector of activations is loaded once for all and the chains of
    multiply-adds overlap.
    """
    words = rows[0][0].words
    tails = [None] * len(rows)  # per row (vector, lanes) carried into the next, narrower segment
    for start, width, count in segments(words, lanes):
        accs = [Accumulator(width) for _ in rows]
        with T.serial(count) as i:
            word = T.bind(start + i * width)
            for (w, row), acc in zip(rows, accs, strict=True):
                _add_words(acc, w, row, word, width, (x, x_row), (sums, sums_row))
        for r, acc in enumerate(accs):
            total = acc.get()
            if tails[r] is not None:
                value, wide = tails[r]
                while wide > width:
                    low, high = halves(T.bind(value), wide)
                    value, wide = low + high, wide // 2
                total = total + value
            tails[r] = (T.bind(total), width)
    return [T.bind(horizontal_sum(*tail)) for tail in tails]


def _add_words(acc: Accumulator, w: Rows, row, word, width: int, x: tuple, sums: tuple) -> None:
    """Add `width` words of one row times their activations, lane by lane: the order that alike.py keeps."""
    codes = w.codes(row, word, width)
    products = [c * load(*x, word * w.per_word + j * width, width) for j, c in enumerate(codes)]
    affine = w.affine(row, word, width)
    if affine is None:
        acc.add(reduce(add, products))
        return
    scale, offset = affine
    total = load(*sums, word, width)
    if w.scheme.asymmetric:
        acc.set(acc.get() + offset * total + scale * reduce(add, products))
    else:
        acc.add(scale * reduce(add, products, total))


def _gemm(k: LinearKernel) -> None:
    op, tiles = k.op, k.tiles
    lanes, tokens = tiles.lanes, tiles.gemm_tokens
    blocks = T.bind(tirx.floordiv(k.n + tokens - 1, tokens))
    x = T.alloc_buffer((blocks * tokens, k.padded), "float32", scope="global")
    with T.parallel(blocks * tokens) as row:
        k.permute(tirx.min(row, k.n - 1), x, [row])  # rows past the end repeat the last one and are not stored
    units = min(max(1, tiles.gemm_rows // k.parts), op.units)
    rows = units * k.parts
    with T.parallel(-(-op.units // units)) as b:
        unit0 = T.bind(tirx.min(b * units, op.units - units))
        panel = T.alloc_buffer((rows, k.padded), "float32", scope="global")
        for r in range(rows):
            _dequantise_row(k, k.weight_row(unit0 + r // k.parts, r % k.parts), panel, r)
        with T.serial(blocks) as block:
            accs = [[Accumulator(lanes) for _ in range(rows)] for _ in range(tokens)]
            with T.serial(k.padded // lanes) as step:
                at = T.bind(step * lanes)
                a = [T.bind(load(x, [block * tokens + t], at, lanes)) for t in range(tokens)]
                for r in range(rows):
                    wide = T.bind(load(panel, [r], at, lanes))
                    for t in range(tokens):
                        accs[t][r].add(a[t] * wide)
            for t in range(tokens):
                row = T.bind(block * tokens + t)
                with T.If(row < k.n), T.Then():
                    for u in range(units):
                        sums = [
                            T.bind(horizontal_sum(accs[t][u * k.parts + p].get(), lanes)) for p in range(k.parts)
                        ]
                        k.finish(row, unit0 + u, sums)


def _dequantise_row(k: LinearKernel, row, panel, panel_row: int) -> None:
    w = k.weights
    for start, lanes, count in segments(w.words, k.tiles.lanes):
        with T.serial(count) as i:
            word = T.bind(start + i * lanes)
            codes, affine = w.codes(row, word, lanes), w.affine(row, word, lanes)
            if affine is not None:
                scale, offset = affine[0], T.bind(affine[1])
                codes = [scale * c + offset for c in codes]
            for j, value in enumerate(codes):
                store(panel, value, [panel_row], word * w.per_word + j * lanes, lanes)
    for start, lanes, count in segments(k.padded - w.padded, k.tiles.lanes):
        with T.serial(count) as i:
            store(panel, const(0.0, lanes), [panel_row], w.padded + start + i * lanes, lanes)


def _gemm_alike(k: LinearKernel) -> None:
    """Like one-token products side by side, sharing what is unpacked: see alike.py."""
    with T.If(k.n == 1):
        with T.Then():
            _gemv(k)
        with T.Else():
            _tokens_alike(k)


def _tokens_alike(k: LinearKernel) -> None:
    op, tiles, w = k.op, k.tiles, k.weights
    packing = Packing(w, k.n, tiles.alike_tokens)
    with T.parallel(packing.tokens) as slot:
        token = T.bind(tirx.min(slot, k.n - 1))  # tokens past the end repeat the last one and are not stored
        x, sums = packing.places(slot)
        k.permute(token, packing.x, [], x)
        if packing.sums is not None:
            word_sums(w, tiles.lanes, packing.x, [], packing.sums, [], x, sums)
    together = min(tiles.alike_rows, op.units)
    steps = min(tiles.alike_block, op.units) // together
    block = steps * together
    with T.parallel(-(-op.units // block)) as b:
        first = T.bind(tirx.min(b * block, op.units - block))  # the last block overlaps its neighbour
        panel = Panel(w, tiles.lanes, together)
        dots = T.alloc_buffer((packing.capacity * k.parts * block,), "float32", scope="global")  # [token, part, unit]
        with T.serial(k.parts * steps) as step:
            part, unit = opaque(tirx.floordiv(step, steps)), opaque(tirx.floormod(step, steps) * together)
            row = opaque(k.weight_row(first + unit, part))
            panel.unpack([row + r for r in range(together)])
            for r in range(together):
                w.prefetch(row + 2 * together + r)

            def tile(token0, size: int) -> None:
                panel.dots(packing, token0, size, keep)

            def keep(token, r: int, value, part=part, unit=unit) -> None:
                T.buffer_store(dots, value, [(token * k.parts + part) * block + unit + r])

            packing.each_tile(tile)
        with T.serial(k.n) as token:
            for start, lanes, count in segments(block, tiles.lanes):
                with T.serial(count) as i:
                    at = start + i * lanes
                    sums = [load(dots, [], (token * k.parts + p) * block + at, lanes) for p in range(k.parts)]
                    k.finish(token, first + at, sums, lanes)


def linear(op: Linear, tiles: LinearTiles, name: str = "linear"):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32)."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        kernel = LinearKernel(op, tiles)
        (_gemv if op.tokens == 1 else _gemm_alike if op.alike else _gemm)(kernel)
    return builder.get()
