"""Attention on tensor cores: S = Q K^T and O = P V in m16n8k16 tiles with a running softmax (Dao et al. 2022).

A warp holds tiles of eight queries and visits blocks of 16 positions. K is read as it lies, 16 bytes a lane; V is kept
in the order in which lanes want it (`value_index`), so neither passes through shared memory. Decoding packs the query
heads of a KV head into a tile, prefill packs (token, query head) pairs.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import BLOCK, match_caches, rope_append_arguments
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simt.activations import store_packed
from mlcrt.kernels.simt.attention import AttentionTiles
from mlcrt.kernels.simt.common import Machine, Register, barrier, launch, local, prim_func, shared, strided
from mlcrt.kernels.simt.functions import tanh

from .rotate import Rotated
from .unit import MatrixUnit

MASKED = -1e30
WARPS = 4
_LOG2E = 1.4426950408889634


def supports(op: Attention) -> bool:
    """Whether registers and tiles fit: others use simt's kernels."""
    return op.kv_dtype == "float16" and op.head_dim % 16 == 0 and op.head_dim <= 128 and op.group <= 16


def value_index(head_dim: int, inside, d):
    """Where element d of position `inside` lies in a block of the V cache: as A fragments of V^T."""
    tile, row = tirx.floordiv(d, 16) * (16 * BLOCK), tirx.floormod(d, 8) * 32
    half = tirx.floordiv(tirx.floormod(d, 16), 8) * 4
    return tile + row + tirx.floordiv(inside, 4) * 8 + half + tirx.floormod(inside, 4)


class Warp:
    """One warp's query columns, eight a tile: fragments of Q^T, the running softmax and the output sums.

    S^T = K Q^T has positions as rows and queries as columns, and O^T = V^T P^T elements of the head as rows: however
    few queries there are, only a tile of eight columns is computed for them. Lane (row, column) holds of a block of 16
    positions those at `position(0)` and `position(1)`, for the queries 2 * column and 2 * column + 1 of each tile.
    """

    def __init__(self, op: Attention, machine: Machine, unit: MatrixUnit, lane, tiles: int):
        self.op, self.machine, self.unit, self.tiles = op, machine, unit, tiles
        self.row, self.column = T.bind(tirx.floordiv(lane, 4)), T.bind(tirx.floormod(lane, 4))
        self.run = 8 if op.head_dim % 32 == 0 else 4  # neighbouring elements of a row that one lane holds
        self.chunks = op.head_dim // (4 * self.run)
        self.query = [local((op.head_dim // 8,), "uint32") for _ in range(tiles)]
        self.keys = [local((self.chunks, self.run // 2), "uint32") for _ in range(2)]
        self.values = local((op.head_dim // 16, 4), "uint32")
        self.sums = [local((op.head_dim // 16 * 4,)) for _ in range(tiles)]
        self.peak, self.weight = Register(T.float32(MASKED), count=2 * tiles), Register(T.float32(0), count=2 * tiles)
        for sums in self.sums:
            for i in range(op.head_dim // 16 * 4):
                T.buffer_store(sums, T.float32(0), [i])

    def dims(self, chunk: int):
        """First of the `run` elements that this lane holds of a chunk."""
        return chunk * 4 * self.run + self.column * self.run

    def position(self, half: int):
        """Position in the block of row `row` + 8 * half of S^T: V has positions 4c .. 4c+3 together."""
        return tirx.floordiv(self.row, 2) * 4 + tirx.floormod(self.row, 2) + 2 * half

    def set_query(self, tile: int, element) -> None:
        """Fragments of query `row` of a tile; element(d) is a float32 already scaled."""
        for chunk in range(self.chunks):
            for pair in range(self.run // 2):
                d = self.dims(chunk) + 2 * pair
                packed = self.unit.pack(element(d), element(d + 1))
                T.buffer_store(self.query[tile], packed, [chunk * (self.run // 2) + pair])

    def fetch_keys(self, cache, kv_head, block) -> None:
        for half, held in enumerate(self.keys):
            for chunk in range(self.chunks):
                start = T.bind(self.position(half) * self.op.head_dim + self.dims(chunk))
                loaded = T.BufferLoad(cache, [kv_head, block, tirx.Ramp(start, 1, self.run)])
                words = tirx.reinterpret(f"uint32x{self.run // 2}", loaded)
                T.buffer_store(held, words, [chunk, tirx.Ramp(0, 1, self.run // 2)])

    def fetch_values(self, cache, kv_head, block) -> None:
        for pair in range(self.op.head_dim // 16):
            start = T.bind(pair * 16 * BLOCK + self.row * 32 + self.column * 8)
            words = tirx.reinterpret("uint32x4", T.BufferLoad(cache, [kv_head, block, tirx.Ramp(start, 1, 8)]))
            T.buffer_store(self.values, words, [pair, tirx.Ramp(0, 1, 4)])

    def scores(self) -> list:
        """Per tile registers [4]: (row, 2c), (row, 2c+1), (row+8, 2c), (row+8, 2c+1) of S^T."""
        results = [Register(T.float32(0), count=4) for _ in range(self.tiles)]
        for chunk in range(self.chunks):
            for pair in range(0, self.run // 2, 2):
                k = [T.BufferLoad(held, [chunk, pair + i]) for i in range(2) for held in self.keys]
                for result, query in zip(results, self.query, strict=True):
                    at = chunk * (self.run // 2) + pair
                    self.unit.mma(result.buffer, 0, k, [T.BufferLoad(query, [at]), T.BufferLoad(query, [at + 1])])
        return results

    def softmax(self, scores: list, visible) -> list:
        """Take a block's scores into the running softmax; per tile the probabilities as a B fragment.

        visible(tile, i, half): whether query 2 * column + i of the tile sees position(half) of the block.
        """
        fragments = []
        for tile, score in enumerate(scores):
            shares = [[], []]
            for i in range(2):
                seen = [T.bind(visible(tile, i, half)) for half in range(2)]
                held = [
                    T.bind(tirx.Select(seen[half], self.cap(score.get(2 * half + i)), T.float32(MASKED)))
                    for half in range(2)
                ]
                top, at = self.over_rows(tirx.max(held[0], held[1]), tirx.max), 2 * tile + i
                new = T.bind(tirx.max(top, self.peak.get(at)))
                shrink = T.bind(tirx.exp2(self.peak.get(at) - new))
                for half in range(2):
                    share = tirx.Select(seen[half], tirx.exp2(held[half] - new), T.float32(0))
                    shares[half].append(T.bind(share))
                self.peak.set(new, at)
                self.weight.set(self.weight.get(at) * shrink + shares[0][i] + shares[1][i], at)
                for place in range(i, self.op.head_dim // 16 * 4, 2):
                    sums = self.sums[tile]
                    T.buffer_store(sums, T.BufferLoad(sums, [place]) * shrink, [place])
            fragments.append([T.bind(self.unit.transpose(self.unit.pack(*pair))) for pair in shares])
        return fragments

    def over_rows(self, value, combine):
        """Combine over the eight lanes of a column."""
        total = Register(value)
        for mask in (4, 8, 16):
            total.set(combine(total.get(), self.machine.exchange(total.get(), mask)))
        return total.get()

    def cap(self, score):
        """Scores come in base 2, or plain where a soft cap bends them first."""
        if self.op.softcap is None:
            return score
        bent = T.float32(self.op.softcap) * tanh(score * T.float32(1.0 / self.op.softcap))
        return bent * T.float32(_LOG2E)

    def add_values(self, fragments: list) -> None:
        for pair in range(self.op.head_dim // 16):
            v = [T.BufferLoad(self.values, [pair, i]) for i in (0, 2, 1, 3)]
            for sums, fragment in zip(self.sums, fragments, strict=True):
                self.unit.mma(sums, 4 * pair, v, fragment)

    def finish_weight(self) -> None:
        """Lanes have summed their own rows: join the eight of a column."""
        for at in range(2 * self.tiles):
            self.weight.set(self.over_rows(self.weight.get(at), lambda a, b: a + b), at)

    def join(self, index, thread, arrays: tuple, put) -> None:
        """Join the block's WARPS warps, of which this is number `index`, through shared memory: `arrays` are peaks and
        weights [WARPS * group] and rows [WARPS * group, head_dim]. put(head of the group, element, sum, weight, peak)
        is emitted once per element of the result, in which sum / weight is what the warps together have found."""
        (peaks, weights, rows), group = arrays, self.op.group
        for tile in range(self.tiles):
            for i in range(2):
                g = T.bind(8 * tile + 2 * self.column + i)
                with T.If(g < group), T.Then():
                    at = T.bind(index * group + g)
                    with T.If(self.row == 0), T.Then():
                        T.buffer_store(peaks, self.peak.get(2 * tile + i), [at])
                        T.buffer_store(weights, self.weight.get(2 * tile + i), [at])
                    for d, place in self.results(tile, i):
                        T.buffer_store(rows, T.BufferLoad(self.sums[tile], [place]), [at, d])
        barrier()
        with strided(group * self.op.head_dim, thread, 32 * WARPS) as i:
            g, d = T.bind(tirx.floordiv(i, self.op.head_dim)), T.bind(tirx.floormod(i, self.op.head_dim))
            held = [T.bind(T.BufferLoad(peaks, [w * group + g])) for w in range(WARPS)]
            top = T.bind(tirx.max(tirx.max(held[0], held[1]), tirx.max(held[2], held[3])))
            total, weight = Register(T.float32(0)), Register(T.float32(0))
            for w in range(WARPS):
                factor = T.bind(tirx.exp2(held[w] - top))
                total.add(factor * T.BufferLoad(rows, [w * group + g, d]))
                weight.add(factor * T.BufferLoad(weights, [w * group + g]))
            put(g, d, total.get(), weight.get(), top)

    def results(self, tile: int, i: int):
        """(d, place in sums) of what this lane holds for query 2 * column + i of a tile."""
        for pair in range(self.op.head_dim // 16):
            for half in range(2):
                yield pair * 16 + 8 * half + self.row, 4 * pair + 2 * half + i


def query_scale(op: Attention) -> float:
    return op.scale if op.softcap is not None else op.scale * _LOG2E


PREFILL_TILES = 2  # of eight queries, for one warp


def prefill_attention(op: Attention, machine: Machine, unit: MatrixUnit, name: str):
    """PrimFunc(q [n, heads*head_dim] f32, k cache, v cache, position [1] i32, out [n, heads*head_dim] f32): token t
    stands at position + t and sees the cache up to itself, at most `window` back."""

    def body() -> None:
        n = T.int32()
        q_handle, k_handle, v_handle = (T.arg(a, T.handle()) for a in ("q", "k_cache", "v_cache"))
        position = T.arg("position", T.Buffer((1,), "int32"))
        out_handle = T.arg("out", T.handle())
        shape = (n, op.heads * op.head_dim)
        q, out = T.match_buffer(q_handle, shape, "float32"), T.match_buffer(out_handle, shape, "float32")
        k_cache, v_cache = match_caches(op, k_handle, v_handle)
        rows = 8 * PREFILL_TILES
        blocks = tirx.floordiv(n * op.group + rows * WARPS - 1, rows * WARPS)
        with launch(bx=blocks, by=op.kv_heads, tx=32 * WARPS) as (block, kv_head, thread):
            machine.follow()
            first = T.bind((block * WARPS + tirx.floordiv(thread, 32)) * rows)
            with T.If(first < n * op.group), T.Then():
                warp = Warp(op, machine, unit, T.bind(tirx.floormod(thread, 32)), PREFILL_TILES)
                _Prefill(warp, first, kv_head, n, position).emit(q, k_cache, v_cache, out)

    return prim_func(name, body)


class _Prefill:
    """Queries are (token, head of the KV head's group) pairs in this order."""

    def __init__(self, warp: Warp, first, kv_head, n, position):
        self.warp, self.op, self.kv_head = warp, warp.op, kv_head
        self.first, self.total = first, n * warp.op.group
        self.past = T.bind(T.BufferLoad(position, [0]))

    def token_and_start(self, index):
        """(token, first column of the head) of a query, the last one for those beyond."""
        at = T.bind(tirx.min(index, self.total - 1))
        head = self.kv_head * self.op.group + tirx.floormod(at, self.op.group)
        return T.bind(tirx.floordiv(at, self.op.group)), T.bind(head * self.op.head_dim)

    def emit(self, q, k_cache, v_cache, out) -> None:
        op, warp = self.op, self.warp
        scale = T.float32(query_scale(op))
        for tile in range(warp.tiles):
            token, start = self.token_and_start(self.first + 8 * tile + warp.row)
            warp.set_query(tile, lambda d, t=token, s=start: T.BufferLoad(q, [t, s + d]) * scale)
        columns = [
            [self.token_and_start(self.first + 8 * tile + 2 * warp.column + i) for i in range(2)]
            for tile in range(warp.tiles)
        ]
        last = T.bind(self.past + tirx.floordiv(tirx.min(self.first + 8 * warp.tiles, self.total) - 1, op.group))
        begin = T.int32(0)
        if op.window is not None:
            begin = T.bind(tirx.max(self.past + tirx.floordiv(self.first, op.group) - (op.window - 1), 0))
        block0 = T.bind(tirx.floordiv(begin, BLOCK))
        with T.serial(tirx.floordiv(last, BLOCK) - block0 + 1) as step:
            block = T.bind(block0 + step)
            warp.fetch_keys(k_cache, self.kv_head, block)
            warp.fetch_values(v_cache, self.kv_head, block)
            at = [T.bind(block * BLOCK + warp.position(half)) for half in range(2)]

            def visible(tile: int, i: int, half: int):
                end = self.past + columns[tile][i][0]
                inside = at[half] <= end
                return inside if op.window is None else tirx.And(inside, at[half] > end - op.window)

            warp.add_values(warp.softmax(warp.scores(), visible))
        warp.finish_weight()
        for tile in range(warp.tiles):
            for i in range(2):
                with T.If(self.first + 8 * tile + 2 * warp.column + i < self.total), T.Then():
                    (token, start), sums = columns[tile][i], warp.sums[tile]
                    inverse = T.bind(T.float32(1) / warp.weight.get(2 * tile + i))
                    for d, place in warp.results(tile, i):
                        T.buffer_store(out, T.BufferLoad(sums, [place]) * inverse, [token, start + d])


def decode_spaces(op: Attention, tiles: AttentionTiles) -> list:
    """Partial sums per head and slice, and their peak and denominator."""
    splits = tiles.splits_of(op)
    return [(op.heads, splits, op.head_dim), (op.heads, splits, 2)]


def rope_attention(op: Attention, tiles: AttentionTiles, machine: Machine, unit: MatrixUnit, name: str):
    """PrimFunc(arguments of rope_append, with the result [1, heads*head_dim] f32 in the place of q, and the workspaces
    of decode_spaces): rotate, append and attend for one token in one kernel.

    A block takes a slice of the cached positions for one KV head. The token's own K and V never make the way through
    memory: the first slice starts from them. The last block to arrive joins the slices.
    """

    def body() -> None:
        a = rope_append_arguments(op)
        spaces = [T.arg(f"space{i}", T.Buffer(s, "float32")) for i, s in enumerate(decode_spaces(op, tiles))]
        splits = tiles.splits_of(op)
        with launch(bx=splits, by=op.kv_heads, tx=32 * WARPS) as (split, kv_head, thread):
            _Decode(op, machine, unit, a, spaces, splits, split, kv_head, thread).emit()

    return prim_func(name, body)


class _Decode:
    def __init__(self, op, machine, unit, a, spaces, splits: int, split, kv_head, thread):
        self.op, self.machine, self.unit, self.a, self.spaces = op, machine, unit, a, spaces
        self.splits, self.split, self.kv_head, self.thread = splits, split, kv_head, thread
        self.tiles = 2 if op.group > 8 else 1
        self.index = T.bind(tirx.floordiv(thread, 32))  # of the warp in its block
        self.end = T.bind(T.BufferLoad(a.places.position, [0]))
        self.begin = T.int32(0)
        if op.window is not None:
            self.begin = T.bind(tirx.max(self.end - (op.window - 1), 0))
        block0 = T.bind(tirx.floordiv(self.begin, BLOCK))
        stop = T.bind(tirx.floordiv(self.end + BLOCK - 1, BLOCK))
        blocks = T.bind(tirx.max(stop - block0, 0))
        share = T.bind(tirx.max(tirx.floordiv(blocks + splits * WARPS - 1, splits * WARPS), 1) * WARPS)
        self.slices = T.bind(tirx.max(tirx.floordiv(blocks + share - 1, share), 1))
        self.first = T.bind(block0 + split * share)
        self.stop = T.bind(tirx.min(self.first + share, stop))

    def emit(self) -> None:
        with T.If(self.split < self.slices), T.Then():
            warp = Warp(self.op, self.machine, self.unit, T.bind(tirx.floormod(self.thread, 32)), self.tiles)
            block = Register(self.first + self.index, "int32")
            self.fetch(warp, block.get())  # older than the kernel in front: no need to wait for it
            self.machine.follow()
            rotated = Rotated(self.op, self.machine, self.a, self.kv_head, self.thread, 32 * WARPS)
            with T.If(self.split == 0), T.Then():
                rotated.append(value_index)
            scale = T.float32(query_scale(self.op))
            for tile in range(self.tiles):
                row = T.bind(tirx.min(warp.row + 8 * tile, self.op.group - 1))
                warp.set_query(tile, lambda d, r=row: rotated.query(r, d) * scale)
            with T.If(tirx.And(self.split == 0, self.index == 0)), T.Then():
                self.start(warp, rotated)
            with T.While(block.get() < self.stop):
                at = [T.bind(block.get() * BLOCK + warp.position(half)) for half in range(2)]
                seen = [T.bind(tirx.And(p >= self.begin, p < self.end)) for p in at]
                fragments = warp.softmax(warp.scores(), lambda tile, i, half, seen=seen: seen[half])
                warp.add_values(fragments)
                block.set(block.get() + WARPS)
                self.fetch(warp, block.get())
            warp.finish_weight()
            self.merge(warp)

    def fetch(self, warp: Warp, block) -> None:
        with T.If(block < self.stop), T.Then():
            warp.fetch_keys(self.a.k_cache, self.kv_head, block)
            warp.fetch_values(self.a.v_cache, self.kv_head, block)

    def start(self, warp: Warp, rotated: Rotated) -> None:
        """The token sees itself: its score is the first peak, its V the first sums."""
        op = self.op
        for tile in range(self.tiles):
            for i in range(2):
                score = Register(T.float32(0))
                g = T.bind(tirx.min(8 * tile + 2 * warp.column + i, op.group - 1))
                for d in range(-(-op.head_dim // 8)):
                    score.add(rotated.query(g, 8 * d + warp.row) * rotated.key(8 * d + warp.row))
                whole = warp.over_rows(score.get(), lambda a, b: a + b)
                warp.peak.set(warp.cap(whole * T.float32(query_scale(op))), 2 * tile + i)
                warp.weight.set(tirx.Select(warp.row == 0, T.float32(1), T.float32(0)), 2 * tile + i)
                for d, place in warp.results(tile, i):
                    T.buffer_store(warp.sums[tile], rotated.value(d), [place])

    def merge(self, warp: Warp) -> None:
        """Join the block's warps; a single slice is the result, otherwise the last block joins the slices."""
        op, count = self.op, max(WARPS * self.op.group, 4)
        arrays = shared((count,)), shared((count,)), shared((WARPS * op.group, op.head_dim))
        barrier()  # the arrays may lie where the rotated q, k and v lay
        sums, stats = self.spaces

        def put(g, d, total, weight, top) -> None:
            head = T.bind(self.kv_head * op.group + g)
            with T.If(self.slices == 1):
                with T.Then():
                    self.put(T.bind(head * op.head_dim + d), total / weight)
                with T.Else():
                    T.buffer_store(sums, total, [head, self.split, d])
                    with T.If(d == 0), T.Then():
                        T.buffer_store(stats, top, [head, self.split, 0])
                        T.buffer_store(stats, weight, [head, self.split, 1])

        warp.join(self.index, self.thread, arrays, put)
        with T.If(self.slices > 1), T.Then():
            last = T.bind(self.unit.arrive(self.kv_head, self.slices))
            with T.If(last != 0), T.Then():
                self.join(sums, stats)

    def join(self, sums, stats) -> None:
        op, threads, ahead = self.op, 32 * WARPS, 8
        padded = -(-self.splits // ahead) * ahead
        factors, weights = shared((op.group, padded)), shared((max(op.group, 4),))
        barrier()
        with strided(op.group, self.index, WARPS) as g:
            head = T.bind(self.kv_head * op.group + g)
            lane = T.bind(tirx.floormod(self.thread, 32))
            top, weight = Register(T.float32(MASKED)), Register(T.float32(0))
            with strided(self.slices, lane, 32) as s:
                top.set(tirx.max(top.get(), T.BufferLoad(stats, [head, s, 0])))
            for mask in (16, 8, 4, 2, 1):
                top.set(tirx.max(top.get(), self.machine.exchange(top.get(), mask)))
            with strided(padded, lane, 32) as s:
                at = T.bind(tirx.min(s, self.slices - 1))
                factor = tirx.exp2(T.BufferLoad(stats, [head, at, 0]) - top.get())
                factor = T.bind(tirx.Select(s < self.slices, factor, T.float32(0)))
                weight.add(factor * T.BufferLoad(stats, [head, at, 1]))
                T.buffer_store(factors, factor, [g, s])
            for mask in (16, 8, 4, 2, 1):
                weight.add(self.machine.exchange(weight.get(), mask))
            with T.If(lane == 0), T.Then():
                T.buffer_store(weights, weight.get(), [g])
        barrier()
        width = 4
        with strided(op.group * op.head_dim // width, self.thread, threads) as i:
            at = T.bind(i * width)
            g, d = T.bind(tirx.floordiv(at, op.head_dim)), T.bind(tirx.floormod(at, op.head_dim))
            head = T.bind(self.kv_head * op.group + g)
            total = Register(T.float32(0), count=width)
            with T.serial(tirx.floordiv(self.slices + ahead - 1, ahead)) as step:
                held = [local((width,)) for _ in range(ahead)]
                for j in range(ahead):
                    s = tirx.min(step * ahead + j, self.slices - 1)
                    part = T.BufferLoad(sums, [head, s, tirx.Ramp(d, 1, width)])
                    T.buffer_store(held[j], part, [tirx.Ramp(0, 1, width)])
                for j in range(ahead):
                    factor = T.bind(T.BufferLoad(factors, [g, step * ahead + j]))
                    for e in range(width):
                        total.add(factor * T.BufferLoad(held[j], [e]), e)
            for e in range(width):
                self.put(T.bind(head * op.head_dim + d + e), total.get(e) / T.BufferLoad(weights, [g]))

    def put(self, at, value) -> None:
        """Store element `at` of the result."""
        if self.op.packed_out:
            store_packed(self.a.q, at, value)
        else:
            T.buffer_store(self.a.q, value, [0, at])
