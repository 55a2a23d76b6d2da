"""Attention over blocks that lie anywhere, on tensor cores, for caches whose K and V are rows of positions.

As in attention.py, but V is turned in registers on its way to the A fragments of V^T, and every token has a sequence of
its own. Prefill packs (token, query head) pairs whose tokens may be of several sequences; those are visited one after
the other. A token of a batched step has a grid of slices of its own, which simt's second kernel joins.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import BLOCK, PlaceHandles, Places, match_caches
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simt.attention import AttentionTiles, join, visible_positions, workspace_shape
from mlcrt.kernels.simt.common import Machine, Register, launch, local, prim_func, shared

from .attention import PREFILL_TILES, WARPS, Warp, query_scale
from .unit import MatrixUnit

_LN2 = 0.6931471805599453


def attention(op: Attention, tiles: AttentionTiles, machine: Machine, unit: MatrixUnit, name: str):
    """PrimFunc(q [n, heads*head_dim] f32, k cache, v cache, places, out [n, heads*head_dim] f32, [workspace f32 where
    `op.alike`])."""

    def body() -> None:
        n = T.int32()
        q_handle, k_handle, v_handle = (T.arg(a, T.handle()) for a in ("q", "k_cache", "v_cache"))
        handles = PlaceHandles(True)
        out_handle = T.arg("out", T.handle())
        space_handle = T.arg("workspace", T.handle()) if op.alike else None
        shape = (n, op.heads * op.head_dim)
        q, out = T.match_buffer(q_handle, shape, "float32"), T.match_buffer(out_handle, shape, "float32")
        places = handles.match(n)
        caches = match_caches(op, k_handle, v_handle)
        if not op.alike:
            _prefill(op, machine, unit, n, q, caches, places, out)
            return
        splits = tiles.splits_of(op)
        space = T.match_buffer(space_handle, workspace_shape(op, splits, n), "float32")
        with launch(bx=splits, by=op.kv_heads, bz=n, tx=32 * WARPS) as (split, kv_head, token, thread):
            machine.follow()
            _Slice(op, machine, unit, places, splits, (split, kv_head, token), thread).emit(q, caches, space)
        join(op, machine, splits, WARPS * BLOCK, n, places, space, out)

    return prim_func(name, body)


class _Rows(Warp):
    """A warp's queries against blocks of rows: a lane loads `run` neighbouring elements of a position of V, and
    exchanging rows and columns of 8 x 8 elements makes pairs of positions of them."""

    def __init__(self, op: Attention, machine: Machine, unit: MatrixUnit, lane, tiles: int):
        super().__init__(op, machine, unit, lane, tiles)
        self.rows = [local((self.chunks, self.run // 2), "uint32") for _ in range(2)]

    def fetch_values(self, cache, kv_head, block) -> None:
        for half, held in enumerate(self.rows):
            for chunk in range(self.chunks):
                start = T.bind(self.position(half) * self.op.head_dim + self.dims(chunk))
                loaded = T.BufferLoad(cache, [kv_head, block, tirx.Ramp(start, 1, self.run)])
                words = tirx.reinterpret(f"uint32x{self.run // 2}", loaded)
                T.buffer_store(held, words, [chunk, tirx.Ramp(0, 1, self.run // 2)])

    def add_values(self, fragments: list) -> None:
        for chunk in range(self.chunks):
            for p in range(0, self.run // 2, 2):
                pairs = [T.BufferLoad(held, [chunk, p + g]) for held in self.rows for g in range(2)]
                turned = [T.bind(self.unit.transpose(T.bind(pair))) for pair in pairs]
                at = 4 * (chunk * (self.run // 4) + p // 2)
                for sums, fragment in zip(self.sums, fragments, strict=True):
                    self.unit.mma(sums, at, turned, fragment)

    def results(self, tile: int, i: int):
        for chunk in range(self.chunks):
            for p in range(self.run // 2):
                d = self.dims_of_row(chunk) + 2 * p
                yield d, 4 * (chunk * (self.run // 4) + p // 2) + 2 * (p % 2) + i

    def dims_of_row(self, chunk: int):
        """The element that row `row` of the first turned matrix of a chunk is."""
        inside = tirx.floordiv(self.row, 2) * self.run + tirx.floormod(self.row, 2)
        return chunk * 4 * self.run + inside


def _prefill(op: Attention, machine: Machine, unit: MatrixUnit, n, q, caches, places: Places, out) -> None:
    rows = 8 * PREFILL_TILES
    blocks = tirx.floordiv(n * op.group + (rows * WARPS - 1), rows * WARPS)
    with launch(bx=blocks, by=op.kv_heads, tx=32 * WARPS) as (block, kv_head, thread):
        machine.follow()
        first = T.bind((block * WARPS + tirx.floordiv(thread, 32)) * rows)
        with T.If(first < n * op.group), T.Then():
            warp = _Rows(op, machine, unit, T.bind(tirx.floormod(thread, 32)), PREFILL_TILES)
            _Tile(warp, first, kv_head, n, places).emit(q, caches, out)


class _Tile:
    """Queries are (token, head of the KV head's group) pairs in this order."""

    def __init__(self, warp: _Rows, first, kv_head, n, places: Places):
        self.warp, self.op, self.kv_head, self.places = warp, warp.op, kv_head, places
        self.first, self.total = first, n * warp.op.group

    def token_and_start(self, index):
        """(token, first column of the head) of a query, the last one for those beyond."""
        at = T.bind(tirx.min(index, self.total - 1))
        head = self.kv_head * self.op.group + tirx.floormod(at, self.op.group)
        return T.bind(tirx.floordiv(at, self.op.group)), T.bind(head * self.op.head_dim)

    def emit(self, q, caches, out) -> None:
        op, warp = self.op, self.warp
        scale = T.float32(query_scale(op))
        for tile in range(warp.tiles):
            token, start = self.token_and_start(self.first + 8 * tile + warp.row)
            warp.set_query(tile, lambda d, t=token, s=start: T.BufferLoad(q, [t, s + d]) * scale)
        self.columns = [
            [self.token_and_start(self.first + 8 * tile + 2 * warp.column + i) for i in range(2)]
            for tile in range(warp.tiles)
        ]
        self.ends = [[T.bind(self.places.at(token)) for token, _ in pair] for pair in self.columns]
        last = T.bind(tirx.floordiv(tirx.min(self.first + 8 * warp.tiles, self.total) - 1, op.group))
        cursor = Register(tirx.floordiv(self.first, op.group), "int32")
        with T.While(cursor.get() <= last):
            start = T.bind(cursor.get())
            low, high = (Register(self.places.at(start), "int32") for _ in range(2))
            cursor.set(start + 1)
            same = self.sequence(tirx.min(cursor.get(), last)) == T.bind(self.sequence(start))
            with T.While(tirx.And(cursor.get() <= last, same)):
                at = T.bind(self.places.at(cursor.get()))
                low.set(tirx.min(low.get(), at))
                high.set(tirx.max(high.get(), at))
                cursor.set(cursor.get() + 1)
            self.visit(caches, start, T.bind(cursor.get()), T.bind(low.get()), T.bind(high.get()))
        self.store(out)

    def sequence(self, token):
        return T.BufferLoad(self.places.sequence, [token])

    def visit(self, caches, start, stop, low, high) -> None:
        """What tokens start … stop - 1, of one sequence and at positions low … high, see."""
        op, warp = self.op, self.warp
        begin = T.int32(0) if op.window is None else T.bind(tirx.max(low - (op.window - 1), 0))
        block0 = T.bind(tirx.floordiv(begin, BLOCK))
        with T.serial(tirx.floordiv(high, BLOCK) - block0 + 1) as step:
            block = T.bind(block0 + step)
            stored = T.bind(self.places.block(start, block))
            warp.fetch_keys(caches[0], self.kv_head, stored)
            warp.fetch_values(caches[1], self.kv_head, stored)
            at = [T.bind(block * BLOCK + warp.position(half)) for half in range(2)]

            def visible(tile: int, i: int, half: int):
                token, end = self.columns[tile][i][0], self.ends[tile][i]
                inside = tirx.And(tirx.And(token >= start, token < stop), at[half] <= end)
                return inside if op.window is None else tirx.And(inside, at[half] > end - op.window)

            warp.add_values(warp.softmax(warp.scores(), visible))

    def store(self, out) -> None:
        warp = self.warp
        warp.finish_weight()
        for tile in range(warp.tiles):
            for i in range(2):
                with T.If(self.first + 8 * tile + 2 * warp.column + i < self.total), T.Then():
                    (token, start), sums = self.columns[tile][i], warp.sums[tile]
                    inverse = T.bind(T.float32(1) / warp.weight.get(2 * tile + i))
                    for d, place in warp.results(tile, i):
                        T.buffer_store(out, T.BufferLoad(sums, [place]) * inverse, [token, start + d])


class _Slice:
    """Some positions of one token's sequence, for the query heads of one KV head."""

    def __init__(self, op: Attention, machine: Machine, unit: MatrixUnit, places: Places, splits: int, where, thread):
        self.op, self.machine, self.unit, self.places, self.thread = op, machine, unit, places, thread
        self.split, self.kv_head, self.token = where
        self.tiles = 2 if op.group > 8 else 1
        self.index = T.bind(tirx.floordiv(thread, 32))  # of the warp in its block
        begin, visible, share = visible_positions(op, places, self.token, splits, WARPS * BLOCK)
        self.first = T.bind(begin + self.split * share)
        self.stop = T.bind(tirx.min(self.first + share, begin + visible))

    def emit(self, q, caches, space) -> None:
        op = self.op
        with T.If(self.first < self.stop), T.Then():
            warp = _Rows(op, self.machine, self.unit, T.bind(tirx.floormod(self.thread, 32)), self.tiles)
            block = Register(tirx.floordiv(self.first, BLOCK) + self.index, "int32")
            self.fetch(warp, caches, block.get())
            scale = T.float32(query_scale(op))
            for tile in range(self.tiles):
                head = self.kv_head * op.group + tirx.min(warp.row + 8 * tile, op.group - 1)
                start = T.bind(head * op.head_dim)
                warp.set_query(tile, lambda d, s=start: T.BufferLoad(q, [self.token, s + d]) * scale)
            with T.While(block.get() * BLOCK < self.stop):
                at = [T.bind(block.get() * BLOCK + warp.position(half)) for half in range(2)]
                seen = [T.bind(tirx.And(p >= self.first, p < self.stop)) for p in at]
                fragments = warp.softmax(warp.scores(), lambda tile, i, half, seen=seen: seen[half])
                warp.add_values(fragments)
                block.set(block.get() + WARPS)
                self.fetch(warp, caches, block.get())
            warp.finish_weight()
            self.merge(warp, space)

    def fetch(self, warp: _Rows, caches, block) -> None:
        with T.If(block * BLOCK < self.stop), T.Then():
            stored = T.bind(self.places.block(self.token, block))
            warp.fetch_keys(caches[0], self.kv_head, stored)
            warp.fetch_values(caches[1], self.kv_head, stored)

    def merge(self, warp: _Rows, space) -> None:
        """Join the block's warps and write one partial result per query head, its peak as simt has it."""
        op, count = self.op, max(WARPS * self.op.group, 4)
        arrays = shared((count,)), shared((count,)), shared((WARPS * op.group, op.head_dim))

        def put(g, d, total, weight, top) -> None:
            head = T.bind(self.kv_head * op.group + g)
            T.buffer_store(space, total, [self.token, head, self.split, d])
            with T.If(d == 0), T.Then():
                T.buffer_store(space, top * T.float32(_LN2), [self.token, head, self.split, op.head_dim])
                T.buffer_store(space, weight, [self.token, head, self.split, op.head_dim + 1])

        warp.join(self.index, self.thread, arrays, put)
