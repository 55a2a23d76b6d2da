"""Rotary embedding with KV append, and causal attention split over the sequence, for GPUs.

K and V are contiguous per head: [kv_heads, blocks, 16*head_dim], position p at block p // 16. One block of threads
takes one KV head and one slice of the visible positions, for one token, and all query heads of the group share every K
and V row it reads; a second kernel joins the slices (flash-decoding: online softmax over partial sums).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import reduce
from operator import add

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.errors import MlcrtError
from mlcrt.kernels.arguments import BLOCK, PlaceHandles, Places, match_caches, rope_append_arguments
from mlcrt.kernels.records import Attention

from .common import Machine, Register, barrier, launch, local, prim_func, shared, strided, subgroup_reduce
from .functions import tanh

MASKED = -1e30


@dataclass(frozen=True)
class AttentionTiles:
    """subgroups: in a block; blocks: wanted when decoding, which sets the slices of the sequence; prefill_splits:
    slices for many tokens; paged_splits: slices for a token of a batched step; batch: positions whose loads a team
    keeps in flight."""

    subgroups: int = 4
    blocks: int = 384
    batch: int = 4
    prefill_splits: int = 1
    paged_splits: int = 16

    def splits_of(self, op: Attention) -> int:
        """Slices of the sequence for one layer; what a token gets must not depend on others of a batched step."""
        if op.alike:
            return self.paged_splits
        return min(64, max(8, self.blocks // op.kv_heads)) if op.tokens == 1 else self.prefill_splits


def rope_append(op: Attention, machine: Machine, name: str = "rope_append", value_index=None):
    """PrimFunc(qkv [n, (heads+2*kv_heads)*head_dim] f32, cos [n, rotary_dim/2] f32, sin, position [1] i32,
    [q_norm [head_dim], k_norm], k cache (in place), v cache (in place), q [n, heads*head_dim] f32).

    One subgroup per token and head; dimension i rotates with i + rotary_dim/2. value_index(head_dim, inside, d): where
    a block of the V cache holds element d of its position `inside`, if not in rows.
    """

    def body() -> None:
        n, qkv, cos, sin, places, norms, k_cache, v_cache, q = rope_append_arguments(op)
        lanes, half, heads = machine.subgroup, op.rotary_dim // 2, op.heads + 2 * op.kv_heads
        together = max(1, 128 // lanes) if op.tokens is None else 1  # subgroups of a block: tiny blocks start slowly
        grid = {"bx": -(-heads // together), "by": n, "tx": lanes * together}
        with launch(**grid) as (part, t, thread), contextlib.ExitStack() as guard:
            machine.follow()
            lane, head = T.bind(tirx.floormod(thread, lanes)), T.bind(part * together + tirx.floordiv(thread, lanes))
            if heads % together:
                guard.enter_context(T.If(head < heads))
                guard.enter_context(T.Then())
            at = T.bind(places.at(t))
            block = T.bind(places.block(t, tirx.floordiv(at, BLOCK)))
            inside = T.bind(tirx.floormod(at, BLOCK) * op.head_dim)
            start = T.bind(head * op.head_dim)
            is_q, is_v = head < op.heads, head >= op.heads + op.kv_heads
            inverse = Register(T.float32(1))
            if norms is not None:
                total = Register(T.float32(0))
                with strided(op.head_dim, lane, lanes) as d:
                    value = T.bind(T.BufferLoad(qkv, [t, start + d]))
                    total.add(value * value)
                whole = subgroup_reduce(machine, total.get(), lambda a, b: a + b)
                mean = whole * T.float32(1.0 / op.head_dim)
                inverse.set(tirx.rsqrt(mean + T.float32(op.norm_eps)))

            def element(d):
                value = T.BufferLoad(qkv, [t, start + d])
                if norms is None:
                    return value
                weight = tirx.Select(is_q, T.BufferLoad(norms[0], [d]), T.BufferLoad(norms[1], [d]))
                return value * inverse.get() * weight

            def put(d, value) -> None:
                with T.If(is_q):
                    with T.Then():
                        T.buffer_store(q, value, [t, start + d])
                    with T.Else():
                        index = [head - op.heads, block, inside + d]
                        T.buffer_store(k_cache, tirx.Cast(op.kv_dtype, value), index)

            with T.If(is_v):
                with T.Then(), strided(op.head_dim, lane, lanes) as d:
                    value = tirx.Cast(op.kv_dtype, T.BufferLoad(qkv, [t, start + d]))
                    place = inside + d if value_index is None else value_index(op.head_dim, tirx.floormod(at, BLOCK), d)
                    T.buffer_store(v_cache, value, [head - op.heads - op.kv_heads, block, place])
                with T.Else():
                    with strided(half, lane, lanes) as d:
                        low, high = T.bind(element(d)), T.bind(element(d + half))
                        c, s = T.bind(T.BufferLoad(cos, [t, d])), T.bind(T.BufferLoad(sin, [t, d]))
                        put(d, low * c - high * s)
                        put(d + half, high * c + low * s)
                    if op.head_dim > op.rotary_dim:
                        with strided(op.head_dim - op.rotary_dim, lane, lanes) as d:
                            put(op.rotary_dim + d, element(op.rotary_dim + d))

    return prim_func(name, body)


def workspace_shape(op: Attention, splits: int, n) -> tuple:
    """Partial results: per token, head and slice head_dim sums, then the peak and the denominator."""
    return (n, op.heads, splits, op.head_dim + 2)


def attention(op: Attention, tiles: AttentionTiles, machine: Machine, name: str = "attention"):
    """PrimFunc(q [n, heads*head_dim] f32, k cache, v cache, places, out [n, heads*head_dim] f32, workspace f32): a
    token stands where `places` says and sees its sequence up to itself, at most `window` back."""
    splits = tiles.splits_of(op)

    def body() -> None:
        n = T.int32() if op.tokens is None else op.tokens
        q_handle, k_handle, v_handle = (T.arg(a, T.handle()) for a in ("q", "k_cache", "v_cache"))
        handles = PlaceHandles(op.paged)
        out_handle, space_handle = T.arg("out", T.handle()), T.arg("workspace", T.handle())
        shape = (n, op.heads * op.head_dim)
        q, out = T.match_buffer(q_handle, shape, "float32"), T.match_buffer(out_handle, shape, "float32")
        places = handles.match(n)
        k_cache, v_cache = match_caches(op, k_handle, v_handle)
        space = T.match_buffer(space_handle, workspace_shape(op, splits, n), "float32")
        slices = Slices(op, tiles, machine, splits, n, places)
        slices.emit(q, k_cache, v_cache, space)
        join(op, machine, splits, slices.teams * slices.batch, n, places, space, out)

    return prim_func(name, body)


class Slices:
    """First kernel: one slice of positions for the query heads of one KV head.

    A K or V row is read by a team of lanes, `each` neighbouring elements (16 bytes of float16) a lane, so that a
    subgroup takes several positions at once.
    """

    def __init__(self, op: Attention, tiles: AttentionTiles, machine: Machine, splits: int, n, places: Places):
        self.op, self.machine, self.splits, self.n, self.places = op, machine, splits, n, places
        self.each = next(v for v in (8, 4, 2, 1) if op.head_dim % v == 0)
        while self.each * machine.subgroup < op.head_dim and op.head_dim % (2 * self.each) == 0:
            self.each *= 2  # small subgroups: a lane takes several loads
        self.team = 1
        while self.team * self.each < op.head_dim:
            self.team *= 2
        if self.team == op.group and op.head_dim % (2 * self.each) == 0:
            # one partial result per thread: TVM then asks for barriers of its own inside a condition, and fails
            self.each, self.team = 2 * self.each, self.team // 2
        if self.team > machine.subgroup:
            raise MlcrtError(f"head_dim {op.head_dim} does not divide among {machine.subgroup} lanes; use --target cpu")
        subgroups = tiles.subgroups
        row = 4 * op.group * (op.head_dim + 3)  # what a team hands to merge(), in bytes of shared memory
        while subgroups > 1 and row * subgroups * machine.subgroup // self.team > machine.shared_bytes:
            subgroups //= 2
        self.threads = subgroups * machine.subgroup
        self.teams = self.threads // self.team
        self.batch = tiles.batch

    def emit(self, q, k_cache, v_cache, space) -> None:
        op = self.op
        with launch(bx=self.splits, by=op.kv_heads, bz=self.n, tx=self.threads) as (split, kv_head, t, thread):
            self.machine.follow()
            self.lane = T.bind(tirx.floormod(thread, self.team))
            self.crew = T.bind(tirx.floordiv(thread, self.team))
            begin, visible, share = visible_positions(op, self.places, t, self.splits, self.teams * self.batch)
            # in registers, not lets: TVM's simplifier would look through them in every index that follows
            first = Register(begin + split * share, "int32").get()
            count = Register(tirx.min(share, visible - split * share), "int32").get()
            with T.If(count > 0), T.Then():
                self.slice(q, k_cache, v_cache, space, (t, kv_head, split), first, count)

    def slice(self, q, k_cache, v_cache, space, where, first, count) -> None:
        """Positions first … first + count - 1, at least one."""
        op, each = self.op, self.each
        t, kv_head, split = where
        query = Register(T.float32(0), count=op.group * each)
        with self.reaching() as d:
            for g in range(op.group):
                column = (kv_head * op.group + g) * op.head_dim + d
                for e in range(each):
                    query.set(T.BufferLoad(q, [t, column + e]) * T.float32(op.scale), g * each + e)
        peak = Register(T.float32(MASKED), count=op.group)
        weight = Register(T.float32(0), count=op.group)
        sums = Register(T.float32(0), count=op.group * each)
        self.walk(k_cache, v_cache, t, kv_head, first, count, query, peak, weight, sums)
        self.merge(space, t, kv_head, split, peak, weight, sums)

    def walk(self, k_cache, v_cache, t, kv_head, first, count, query, peak, weight, sums) -> None:
        """Take `count` positions of token t's sequence, from `first` on, into the sums."""
        stride = self.teams * self.batch
        with T.serial(tirx.floordiv(count + stride - 1, stride)) as step:
            at = [T.bind(step * stride + b * self.teams + self.crew) for b in range(self.batch)]
            rows = [T.bind(first + tirx.min(i, count - 1)) for i in at]
            spots = [(T.bind(self.places.block(t, tirx.floordiv(p, BLOCK))), tirx.floormod(p, BLOCK)) for p in rows]
            keys = [self.read(k_cache, kv_head, *spot) for spot in spots]
            values = [self.read(v_cache, kv_head, *spot) for spot in spots]
            self.visit(keys, values, [i < count for i in at], query, peak, weight, sums)

    @contextlib.contextmanager
    def reaching(self):
        """This lane's first element of a row, for lanes that reach into it."""
        d = T.bind(self.lane * self.each)
        if self.team * self.each == self.op.head_dim:
            yield d
        else:
            with T.If(d < self.op.head_dim), T.Then():
                yield d

    def read(self, cache, kv_head, block, inside):
        """`each` elements of the row of position `inside` of a block, zero in lanes beyond head_dim."""
        held = local((self.each,), self.op.kv_dtype)
        width = min(self.each, self.machine.vector)
        if self.team * self.each != self.op.head_dim:
            for e in range(self.each):
                T.buffer_store(held, tirx.Cast(self.op.kv_dtype, T.float32(0)), [e])
        with self.reaching() as d:
            start = inside * self.op.head_dim + d
            for e in range(0, self.each, width):
                index, whole = (tirx.Ramp(i, 1, width) if width > 1 else i for i in (start + e, e))
                T.buffer_store(held, T.BufferLoad(cache, [kv_head, block, index]), [whole])
        return [tirx.Cast("float32", T.BufferLoad(held, [e])) for e in range(self.each)]

    def visit(self, keys, values, valid, query, peak, weight, sums) -> None:
        """Some positions at once: their scores do not wait for one another, and the sums are rescaled once."""
        op = self.op
        keys, values = ([[T.bind(e) for e in row] for row in rows] for rows in (keys, values))
        for g in range(op.group):
            scores = []
            for row, inside in zip(keys, valid, strict=True):
                dot = Register(T.float32(0))
                for e, key in enumerate(row):
                    dot.add(key * query.get(g * self.each + e))
                score = T.bind(subgroup_reduce(self.machine, dot.get(), lambda a, b: a + b, self.team))
                if op.softcap is not None:
                    score = T.bind(T.float32(op.softcap) * tanh(score * T.float32(1.0 / op.softcap)))
                scores.append(T.bind(tirx.Select(inside, score, T.float32(MASKED))))
            new = T.bind(reduce(tirx.max, scores, peak.get(g)))
            shrink = T.bind(tirx.exp(peak.get(g) - new))
            shares = [
                T.bind(tirx.Select(inside, tirx.exp(score - new), T.float32(0)))
                for score, inside in zip(scores, valid, strict=True)
            ]
            peak.set(new, g)
            weight.set(reduce(add, shares, weight.get(g) * shrink), g)
            for e in range(self.each):
                i = g * self.each + e
                products = [share * row[e] for share, row in zip(shares, values, strict=True)]
                sums.set(reduce(add, products, sums.get(i) * shrink), i)

    def merge(self, space, t, kv_head, split, peak, weight, sums) -> None:
        """Join the block's teams in shared memory and write one partial result per query head."""
        op, teams = self.op, self.teams
        peaks, weights, factors = (shared((op.group * teams,)) for _ in range(3))
        rows = shared((op.group * teams, op.head_dim))
        thread = self.crew * self.team + self.lane
        with T.If(self.lane == 0), T.Then():
            for g in range(op.group):
                T.buffer_store(peaks, peak.get(g), [g * teams + self.crew])
                T.buffer_store(weights, weight.get(g), [g * teams + self.crew])
        with self.reaching() as d:
            for g in range(op.group):
                for e in range(self.each):
                    T.buffer_store(rows, sums.get(g * self.each + e), [g * teams + self.crew, d + e])
        barrier()
        with strided(op.group * teams, thread, self.threads) as i:
            g = T.bind(tirx.floordiv(i, teams))
            top = Register(T.BufferLoad(peaks, [g * teams]))
            for other in range(1, teams):
                top.set(tirx.max(top.get(), T.BufferLoad(peaks, [g * teams + other])))
            T.buffer_store(factors, tirx.exp(T.BufferLoad(peaks, [i]) - top.get()), [i])
            with T.If(i == g * teams), T.Then():
                T.buffer_store(space, top.get(), [t, kv_head * op.group + g, split, op.head_dim])
        barrier()
        with strided(op.group * op.head_dim, thread, self.threads) as i:
            g, d = T.bind(tirx.floordiv(i, op.head_dim)), T.bind(tirx.floormod(i, op.head_dim))
            total = Register(T.float32(0))
            for other in range(teams):
                total.add(T.BufferLoad(factors, [g * teams + other]) * T.BufferLoad(rows, [g * teams + other, d]))
            T.buffer_store(space, total.get(), [t, kv_head * op.group + g, split, d])
        with T.If(thread < op.group), T.Then():
            total = Register(T.float32(0))
            for other in range(teams):
                i = thread * teams + other
                total.add(T.BufferLoad(factors, [i]) * T.BufferLoad(weights, [i]))
            T.buffer_store(space, total.get(), [t, kv_head * op.group + thread, split, op.head_dim + 1])


def visible_positions(op: Attention, places: Places, t, splits: int, least: int, own: bool = False):
    """(first visible position, how many, positions of a slice) of token t; a slice has at least `least`. own: without
    the token's own position, but never none, since the first slice has that one besides."""
    end = T.bind(places.at(t))
    begin = T.int32(0) if op.window is None else T.bind(tirx.max(end - (op.window - 1), 0))
    visible = T.bind(tirx.max(end - begin, 1) if own else end - begin + 1)
    share = T.bind(tirx.max(tirx.floordiv(visible + splits - 1, splits), least))
    return begin, visible, share


def join(
    op: Attention, machine: Machine, splits: int, least: int, n, places: Places, space, out, own: bool = False
) -> None:
    """Second kernel: softmax-weighted sum of the slices that have positions."""
    threads = 64
    with launch(bx=op.heads, by=n, tx=threads) as (head, t, thread):
        machine.follow()
        # never under 16 bytes: compilers read ahead of a shorter loop, which memory checkers call out of bounds
        peaks, factors = shared((max(splits, 4),)), shared((max(splits, 4),))
        _, visible, share = visible_positions(op, places, t, splits, least, own)
        slices = T.bind(tirx.floordiv(visible + share - 1, share))
        with strided(slices, thread, threads) as i:
            T.buffer_store(peaks, T.BufferLoad(space, [t, head, i, op.head_dim]), [i])
        barrier()
        top = Register(T.float32(MASKED))
        with T.serial(slices) as i:
            top.set(tirx.max(top.get(), T.BufferLoad(peaks, [i])))
        with strided(slices, thread, threads) as i:
            T.buffer_store(factors, tirx.exp(T.BufferLoad(peaks, [i]) - top.get()), [i])
        barrier()
        with strided(op.head_dim, thread, threads) as d:
            total, weight = Register(T.float32(0)), Register(T.float32(0))
            with T.serial(slices) as i:
                factor = T.bind(T.BufferLoad(factors, [i]))
                total.add(factor * T.BufferLoad(space, [t, head, i, d]))
                weight.add(factor * T.BufferLoad(space, [t, head, i, op.head_dim + 1]))
            T.buffer_store(out, total.get() / weight.get(), [t, head * op.head_dim + d])
