"""Prefill's linear layers with cooperative matrices (VK_KHR_cooperative_matrix: float16 summed in float32).

Two kernels: `prepare` normalises the activations and writes them as float16; the product stages both operands, weights
dequantised, in workgroup memory. A workgroup computes a tile of tokens x weight rows, some columns at a time; while its
subgroups multiply one step, what the next one needs is on its way to registers.

Workgroup memory is one array of words, read and written 16 bytes at a time, so that drivers load matrices from it with
their widest instructions; rows end in 16 bytes of padding, and the eight lanes that share such an access hold eight
rows, which spreads them over all banks. Eight neighbouring columns stand in the order in which `unpack8_f16` leaves the
codes of a word; a contraction does not mind.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.common import (
    Machine,
    Register,
    barrier,
    block_reduce,
    launch,
    local,
    prim_func,
    shared,
    strided,
)
from mlcrt.kernels.simt.linear import LinearKernel

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_PREPARE_THREADS = 256
_SCALE = 16.0  # activations are divided by it, so that float16 holds values up to a million
_SLAB = 32  # weight rows of which a subgroup finishes the outputs at once
_PAD = 4  # words


@dataclass(frozen=True)
class MatrixTiles:
    """tokens, rows: of a workgroup's tile; depth: columns of a step; subgroup_tokens, subgroup_rows: what a subgroup
    multiplies; double: two steps in workgroup memory, so that one barrier a step will do; shape: a matrix product's
    m, n, k."""

    tokens: int = 128
    rows: int = 128
    depth: int = 32
    subgroup_tokens: int = 64
    subgroup_rows: int = 32
    double: bool = True
    shape: tuple[int, int, int] = (16, 16, 16)

    @property
    def subgroups(self) -> int:
        return self.tokens // self.subgroup_tokens * (self.rows // self.subgroup_rows)

    def divides(self, lanes: int) -> bool:
        """Whether the threads of a workgroup, in subgroups of `lanes`, can share the work."""
        threads = self.subgroups * lanes
        pieces, halves = self.depth // 8, self.depth // 16  # of a row that a thread stages at once
        return threads >= 8 * pieces and self.tokens * pieces % threads == 0 and self.rows * halves % threads == 0

    @property
    def pitch(self) -> int:
        """Words from row to row in workgroup memory."""
        return self.depth // 2 + _PAD


def suits(op: Linear) -> bool:
    """Whether the kernel serves this layer: many tokens in half precision, whole steps of columns."""
    return op.many_in_half and op.columns % 32 == 0 and op.units % 16 == 0


def prepared_shape(op: Linear, n) -> tuple:
    """Float32 workspace for the activations, which kernels without matrices use as such."""
    return (n, op.columns)


def linear(op: Linear, tiles: MatrixTiles, machine: Machine, name: str = "linear"):
    """PrimFunc with the arguments of mlcrt.kernels.simt.linear.linear for any number of tokens, and a workspace of
    `prepared_shape`."""

    def body() -> None:
        k = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), (k.n, op.columns // 2), "uint32")
        _prepare(k, prepared)
        _Product(k, tiles, prepared).emit()

    return prim_func(name, body)


def _prepare(k: LinearKernel, prepared) -> None:
    """Per token x / 16, or RMSNorm(x) / 16, rounded to float16 and ordered."""
    with launch(bx=k.n, tx=_PREPARE_THREADS) as (token, thread):
        factor = T.float32(1 / _SCALE)
        if k.norm is not None:
            squares = Register(T.float32(0))
            with strided(k.op.columns // 4, thread, _PREPARE_THREADS) as i:
                for value in _four(k.x, [token], i * 4):
                    squares.add(value * value)
            total = block_reduce(k.machine, squares.get(), lambda a, b: a + b, _PREPARE_THREADS, thread)
            factor = T.bind(k.inverse_rms(total) * factor)
        with strided(k.op.columns // 8, thread, _PREPARE_THREADS) as i:
            values = _four(k.x, [token], i * 8) + _four(k.x, [token], i * 8 + 4)
            if k.norm is not None:
                weights = _four(k.norm, [], i * 8) + _four(k.norm, [], i * 8 + 4)
                values = [value * weight for value, weight in zip(values, weights, strict=True)]
            T.buffer_store(prepared, _halves([v * factor for v in values]), [token, tirx.Ramp(i * 4, 1, 4)])


def _four(buffer, index: list, start) -> list:
    """Four neighbouring float32."""
    held = local((4,))
    T.buffer_store(held, T.BufferLoad(buffer, [*index, tirx.Ramp(start, 1, 4)]), [tirx.Ramp(0, 1, 4)])
    return [T.BufferLoad(held, [i]) for i in range(4)]


def _halves(values: list):
    """Eight values as four words of float16, in `ORDER`."""
    held = local((8,), "float16")
    for place, j in enumerate(ORDER):
        T.buffer_store(held, tirx.Cast("float16", values[j]), [place])
    return tirx.reinterpret("uint32x4", T.BufferLoad(held, [tirx.Ramp(0, 1, 8)]))


def _call(name: str, *arguments) -> None:
    T.evaluate(tirx.call_extern("int32", name, *arguments))


class _Product:
    """The second kernel. With a gate, groups of n rows alternate between the two parts, so that a subgroup has both."""

    def __init__(self, k: LinearKernel, tiles: MatrixTiles, prepared):
        self.k, self.op, self.w, self.tiles, self.prepared = k, k.op, k.weights, tiles, prepared
        self.lanes = k.machine.subgroup
        self.threads = tiles.subgroups * self.lanes
        self.units = tiles.rows // k.parts
        s = self.op.scheme
        self.packed = s.bits == 4 and s.zero == 8 and not s.asymmetric and not s.is_float

    def emit(self) -> None:
        k, tiles = self.k, self.tiles
        across = -(-self.op.units // self.units)
        blocks = tirx.floordiv(k.n + tiles.tokens - 1, tiles.tokens)
        with launch(bx=across, by=blocks, tx=self.threads) as (x, y, thread):
            self.thread = thread
            # neighbours in time share weights, which come from far, and have different tokens
            index = T.bind(y * across + x)
            self.token0 = T.bind(tirx.truncmod(index, blocks) * tiles.tokens)
            self.unit0 = T.bind(tirx.truncdiv(index, blocks) * self.units)
            subgroup = T.bind(tirx.floordiv(thread, self.lanes))
            wide = tiles.rows // tiles.subgroup_rows
            self.subgroup = subgroup
            self.first_token = T.bind(tirx.floordiv(subgroup, wide) * tiles.subgroup_tokens)
            self.first_row = T.bind(tirx.floormod(subgroup, wide) * tiles.subgroup_rows)
            self.prepare()
            self.loop()
            self.finish()

    def prepare(self) -> None:
        """Places of this thread in the tiles, registers for what is on its way, workgroup memory, sums of zero."""
        tiles, w = self.tiles, self.w
        pieces, halves = tiles.depth // 8, tiles.depth // 16  # of a row
        if not tiles.divides(self.lanes):
            raise ValueError(f"{self.threads} threads cannot share the work of {tiles}")
        eight, rest = T.bind(tirx.floormod(self.thread, 8)), T.bind(tirx.floordiv(self.thread, 8))
        self.piece, line = T.bind(tirx.floormod(rest, pieces)), T.bind(tirx.floordiv(rest, pieces) * 8 + eight)
        self.lines_a = [line + i for i in range(0, tiles.tokens, self.threads // pieces)]
        last = self.k.n - 1
        self.sources_a = [T.bind(tirx.min(self.token0 + at, last)) for at in self.lines_a]
        self.half, line = T.bind(tirx.floormod(rest, halves)), T.bind(tirx.floordiv(rest, halves) * 8 + eight)
        self.lines_b = [line + i for i in range(0, tiles.rows, self.threads // halves)]
        self.sources_b = [T.bind(self.weight_row(at)) for at in self.lines_b]
        self.words = 16 // w.per_word
        dtype = w.scheme.float_storage if w.scheme.is_float else "uint32"
        self.held_a = [local((4,), "uint32") for _ in self.lines_a]
        self.held_b = [local((self.words,), dtype) for _ in self.lines_b]
        self.grouped = [
            {part: local((1,), "uint32" if part == "high" else "float16") for part in w.group_parts}
            for _ in self.lines_b
        ]
        tile = (tiles.tokens + tiles.rows) * tiles.pitch
        out = tiles.subgroups * tiles.shape[0] * _SLAB
        self.slots = [shared((max(tile, out),), "uint32")]
        if tiles.double:
            self.slots.append(shared((tile,), "uint32"))
        _call("matrix_shape", *tiles.shape)
        self.across, self.down = tiles.subgroup_rows // tiles.shape[1], tiles.subgroup_tokens // tiles.shape[0]
        for i in range(self.across * self.down):
            _call("matrix_fill", i, T.float32(0))

    def weight_row(self, line):
        """The row of the weight in a line of the tile: n units of one part, then the same of the other."""
        if self.k.parts == 1:
            return tirx.min(self.unit0 + line, self.op.units - 1)
        n = self.tiles.shape[1]
        unit = self.unit0 + tirx.floordiv(line, 2 * n) * n + tirx.floormod(line, n)
        part = tirx.floordiv(tirx.floormod(line, 2 * n), n)
        return tirx.min(unit, self.op.units - 1) + part * self.op.units

    def loop(self) -> None:
        steps = self.op.columns // self.tiles.depth
        if not self.tiles.double:
            (slot,) = self.slots
            self.fetch(T.int32(0))
            with T.serial(steps) as step:
                barrier()
                self.stage(slot, step)
                barrier()
                self.fetch(T.bind(tirx.min(step + 1, steps - 1)))
                self.multiply(slot)
            return
        even, odd = self.slots
        self.fetch(T.int32(0))
        self.stage(even, T.int32(0))
        barrier()
        with T.serial(steps // 2) as pair:
            for slot, other, ahead in ((even, odd, 1), (odd, even, 2)):
                step = T.bind(tirx.min(pair * 2 + ahead, steps - 1))  # in the end the last one again, for nobody
                self.fetch(step)
                self.multiply(slot)
                self.stage(other, step)
                barrier()
        if steps % 2:
            self.multiply(even)

    def fetch(self, step) -> None:
        """Issue the loads of a step."""
        start = T.bind(step * (self.tiles.depth // 2) + self.piece * 4)
        for source, held in zip(self.sources_a, self.held_a, strict=True):
            value = T.BufferLoad(self.prepared, [source, tirx.Ramp(start, 1, 4)])
            T.buffer_store(held, value, [tirx.Ramp(0, 1, 4)])
        w = self.w
        part = w.buffers["" if w.scheme.is_float else "codes"]
        column = T.bind(step * self.tiles.depth + self.half * 16)
        word = T.bind(tirx.floordiv(column, w.per_word))
        group = T.bind(tirx.floordiv(column, w.scheme.group))
        wide = min(self.words, 8 if w.scheme.is_float else 4)
        for row, held, grouped in zip(self.sources_b, self.held_b, self.grouped, strict=True):
            for j in range(0, self.words, wide):
                index, at = (word, 0) if wide == 1 else (tirx.Ramp(word + j, 1, wide), tirx.Ramp(j, 1, wide))
                T.buffer_store(held, T.BufferLoad(part, [row, index]), [at])
            for name, register in grouped.items():
                T.buffer_store(register, T.BufferLoad(w.buffers[name], [row, group]), [0])

    def stage(self, slot, step) -> None:
        """Write what was fetched for `step` to workgroup memory."""
        w, pitch = self.w, self.tiles.pitch
        for line, held in zip(self.lines_a, self.held_a, strict=True):
            value = T.BufferLoad(held, [tirx.Ramp(0, 1, 4)])
            T.buffer_store(slot, value, [tirx.Ramp(line * pitch + self.piece * 4, 1, 4)])
        column = T.bind(step * self.tiles.depth + self.half * 16)
        first = T.bind(tirx.floordiv(column, w.per_word))
        for line, row, held, grouped in zip(self.lines_b, self.sources_b, self.held_b, self.grouped, strict=True):
            start = T.bind((line + self.tiles.tokens) * pitch + self.half * 8)
            if self.packed:
                scale = T.BufferLoad(grouped["scales"], [0])
                for j in range(2):
                    word = T.BufferLoad(held, [j])
                    words = tirx.call_pure_extern("uint32x4", "unpack8_f16", word, scale)
                    T.buffer_store(slot, words, [tirx.Ramp(start + j * 4, 1, 4)])
                continue
            w.grouped = lambda part, row, group, grouped=grouped: T.BufferLoad(grouped[part], [0])
            affine, values = w.affine(row, first), []
            for v in range(self.words):
                values += w.values(T.bind(T.BufferLoad(held, [v])), row, first + v)
            if affine is not None:
                values = [affine[0] * value + affine[1] for value in values]
            for j in range(2):
                T.buffer_store(slot, _halves(values[8 * j : 8 * j + 8]), [tirx.Ramp(start + j * 4, 1, 4)])

    def multiply(self, slot) -> None:
        tiles, (m, n, k) = self.tiles, self.tiles.shape
        pitch = tiles.pitch
        for column in range(0, tiles.depth, k):
            for i in range(self.down):
                at = (self.first_token + m * i) * pitch + column // 2
                _call("matrix_load_a", i, T.address_of(slot[at]), pitch)
            for j in range(self.across):
                at = (self.first_row + (tiles.tokens + n * j)) * pitch + column // 2
                _call("matrix_load_b", j, T.address_of(slot[at]), pitch)
                for i in range(self.down):
                    _call("matrix_multiply_add", self.across * i + j, i, j)

    def finish(self) -> None:
        """Sums → workgroup memory → the layer's epilogue, m tokens x 32 rows of every subgroup at a time."""
        (m, n, _), out = self.tiles.shape, self.slots[0]
        lane = T.bind(tirx.floormod(self.thread, self.lanes))
        place = T.bind(self.subgroup * (m * _SLAB))
        each = _SLAB // n
        for i in range(self.down):
            for first in range(0, self.across, each):
                barrier()
                for j in range(each):
                    number = self.across * i + first + j
                    _call("matrix_store", number, T.address_of(out[place + n * j]), _SLAB)
                barrier()
                self.epilogue(out, place, lane, i, first)

    def epilogue(self, out, place, lane, i: int, first: int) -> None:
        """Bias, gate, residual and store of m tokens x 32 rows."""
        k, (m, n, _) = self.k, self.tiles.shape
        per_unit = _SLAB // k.parts
        with T.serial(m * per_unit // self.lanes) as step:
            index = T.bind(step * self.lanes + lane)
            t, u = T.bind(tirx.floordiv(index, per_unit)), T.bind(tirx.floormod(index, per_unit))
            token = T.bind(self.token0 + self.first_token + m * i + t)
            unit = T.bind(self.unit0 + tirx.floordiv(self.first_row + n * first, k.parts) + u)
            column = u if k.parts == 1 else tirx.floordiv(u, n) * (2 * n) + tirx.floormod(u, n)
            at = T.bind(place + t * _SLAB + column)
            with T.If(tirx.And(token < k.n, unit < self.op.units)), T.Then():
                stored = [T.BufferLoad(out, [at + n * p]) for p in range(k.parts)]
                k.finish(token, unit, [tirx.reinterpret("float32", s) * T.float32(_SCALE) for s in stored])
