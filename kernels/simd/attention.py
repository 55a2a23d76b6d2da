"""Rotary embedding with KV append, and causal attention, for CPUs with explicit vectors.

KV layout of this kernel family: K is stored transposed in blocks of 16 positions, [kv_heads, blocks, head_dim*16], so a
block of scores is head_dim multiply-adds with lanes over positions and no horizontal sums; V is [kv_heads, blocks,
16*head_dim], so the weighted sum has lanes over head_dim.
Softmax runs online over blocks (https://arxiv.org/abs/1805.02867), in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import BLOCK, PlaceHandles, Places, match_caches, rope_append_arguments
from mlcrt.kernels.records import Attention

from .functions import exp, tanh
from .vector import (
    LINE,
    Accumulator,
    Sums,
    const,
    hold,
    horizontal_max,
    horizontal_sum,
    load,
    prefetch,
    segments,
    splat,
    stack,
    store,
    to_float,
    vtype,
)

_MASKED = -1e30


@dataclass(frozen=True)
class AttentionTiles:
    """lanes: float32 per vector; rows: query rows (token x head of one KV group) that share a pass over K and V."""

    lanes: int = 16
    rows: int = 4


def rope_append(op: Attention, tiles: AttentionTiles, name: str = "rope_append"):
    """PrimFunc(qkv [n, (heads+2*kv_heads)*head_dim] f32, cos [n, rotary_dim/2], sin, places, [q_norm
    [head_dim], k_norm], k cache (in place), v cache (in place), q [n, heads*head_dim] f32).

    Rotates q and k (dimension i with i + rotary_dim/2), writes k and v where `places`
    (see arguments.Places) puts each token.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n, qkv, cos, sin, places, norms, k_cache, v_cache, q = rope_append_arguments(op)
        loop = T.serial if op.tokens == 1 else T.parallel
        with loop(n) as t:
            at = hold(places.at(t))
            block, lane = hold(places.block(t, tirx.floordiv(at, BLOCK))), hold(tirx.floormod(at, BLOCK))

            def put_q(head, d, value, lanes, t=t):
                store(q, value, [t], head * op.head_dim + d, lanes)

            def put_k(head, d, value, lanes, block=block, lane=lane):
                value = value if op.kv_dtype == "float32" else tirx.Cast(vtype(op.kv_dtype, lanes), value)
                at = d * BLOCK + lane
                index = at if lanes == 1 else tirx.Ramp(at, BLOCK, lanes)
                T.buffer_store(k_cache, value, [head, block, index])

            rotate = _Rotate(op, tiles, qkv, cos, sin, t)
            with T.serial(op.heads) as head:
                rotate(head * op.head_dim, norms and norms[0], lambda d, v, w, h=head: put_q(h, d, v, w))
            with T.serial(op.kv_heads) as head:
                start = hold((op.heads + head) * op.head_dim)
                rotate(start, norms and norms[1], lambda d, v, w, h=head: put_k(h, d, v, w))
            with T.serial(op.kv_heads) as head:
                for first, lanes, count in segments(op.head_dim, tiles.lanes):
                    with T.serial(count) as i:
                        d = first + i * lanes
                        value = load(qkv, [t], (op.heads + op.kv_heads + head) * op.head_dim + d, lanes)
                        if op.kv_dtype != "float32":
                            value = tirx.Cast(vtype(op.kv_dtype, lanes), value)
                        store(v_cache, value, [head, block], lane * op.head_dim + d, lanes)
    return builder.get()


class _Rotate:
    """Norm and rotation of one head of one token; `put(d, vector, lanes)` receives the result."""

    def __init__(self, op: Attention, tiles: AttentionTiles, qkv, cos, sin, token):
        self.op, self.tiles, self.qkv, self.cos, self.sin, self.token = op, tiles, qkv, cos, sin, token

    def __call__(self, start, norm, put) -> None:
        op, half = self.op, self.op.rotary_dim // 2
        inverse = self._inverse_rms(start) if norm is not None else None

        def element(d, lanes):
            value = load(self.qkv, [self.token], start + d, lanes)
            return hold(value if norm is None else value * splat(inverse, lanes) * load(norm, [], d, lanes))

        for first, lanes, count in segments(half, self.tiles.lanes):
            with T.serial(count) as i:
                d = hold(first + i * lanes)
                low, high = element(d, lanes), element(d + half, lanes)
                c = hold(load(self.cos, [self.token], d, lanes))
                s = hold(load(self.sin, [self.token], d, lanes))
                put(d, low * c - high * s, lanes)
                put(d + half, high * c + low * s, lanes)
        for first, lanes, count in segments(op.head_dim - op.rotary_dim, self.tiles.lanes):
            with T.serial(count) as i:
                d = hold(op.rotary_dim + first + i * lanes)
                put(d, element(d, lanes), lanes)

    def _inverse_rms(self, start):
        op = self.op
        total = stack(1)
        T.buffer_store(total, T.float32(0), [0])
        for first, lanes, count in segments(op.head_dim, self.tiles.lanes):
            acc = Accumulator(lanes)
            with T.serial(count) as i:
                v = hold(load(self.qkv, [self.token], start + first + i * lanes, lanes))
                acc.add(v * v)
            T.buffer_store(total, T.BufferLoad(total, [0]) + horizontal_sum(acc.get(), lanes), [0])
        mean = T.BufferLoad(total, [0]) * T.float32(1.0 / op.head_dim)
        return hold(T.float32(1) / tirx.sqrt(mean + T.float32(op.norm_eps)))


def attention(op: Attention, tiles: AttentionTiles, name: str = "attention"):
    """PrimFunc(q [n, heads*head_dim] f32, k cache, v cache, places, out [n, heads*head_dim] f32).

    A token sees its sequence's cache up to itself, at most `window` positions back; `places` as in rope_append. What
    is computed of one token does not depend on the others, whatever form is used.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n = T.int32() if op.tokens is None else op.tokens
        q_handle, k_handle, v_handle = (T.arg(a, T.handle()) for a in ("q", "k_cache", "v_cache"))
        handles = PlaceHandles(op.paged)
        out_handle = T.arg("out", T.handle())
        shape = (n, op.heads * op.head_dim)
        q, out = T.match_buffer(q_handle, shape, "float32"), T.match_buffer(out_handle, shape, "float32")
        places = handles.match(n)
        k_cache, v_cache = match_caches(op, k_handle, v_handle)
        emit = _each_token if op.paged else _tokens_together
        emit(op, tiles, (q, k_cache, v_cache, out), places, n)
    return builder.get()


def _tokens_together(op: Attention, tiles: AttentionTiles, buffers, places: Places, n) -> None:
    """Neighbouring tokens of the one sequence share a pass."""
    total = n * op.group
    rows = tiles.rows if op.tokens is None else min(tiles.rows, op.group)
    chunks = hold(tirx.floordiv(total + rows - 1, rows)) if op.tokens is None else -(-total // rows)
    with T.parallel(chunks * op.kv_heads) as item:
        kv_head = hold(tirx.floordiv(item, chunks))
        first = hold(tirx.floormod(item, chunks) * rows)
        pass_ = _Pass(op, tiles, buffers, kv_head, places)
        indices = [hold(tirx.min(first + r, total - 1)) for r in range(rows)]
        tokens = [hold(tirx.floordiv(i, op.group)) for i in indices]
        heads = [hold(tirx.floormod(i, op.group)) for i in indices]
        pass_.run(tokens, heads, [hold(places.at(t)) for t in tokens])


def _each_token(op: Attention, tiles: AttentionTiles, buffers, places: Places, n) -> None:
    """Only heads of one token share a pass: the next token may be of another sequence."""
    rows = min(tiles.rows, op.group)
    chunks = -(-op.group // rows)
    with T.parallel(n * (op.kv_heads * chunks)) as item:
        token = hold(tirx.floordiv(item, op.kv_heads * chunks))
        kv_head = hold(tirx.floormod(tirx.floordiv(item, chunks), op.kv_heads))
        first = hold(tirx.floormod(item, chunks) * rows)
        heads = [hold(tirx.min(first + r, op.group - 1)) for r in range(rows)]
        _Pass(op, tiles, buffers, kv_head, places).run([token] * rows, heads, [hold(places.at(token))] * rows)


class _Pass:
    """Some query rows of one KV head against the whole visible cache."""

    def __init__(self, op: Attention, tiles: AttentionTiles, buffers, kv_head, places: Places):
        self.op, self.tiles, self.kv_head, self.places = op, tiles, kv_head, places
        self.q, self.k, self.v, self.out = buffers

    def run(self, tokens: list, heads: list, ends: list) -> None:
        """Per row its token, its head in the group and the last visible position, itself included."""
        op, rows = self.op, heads
        columns = [hold((self.kv_head * op.group + head) * op.head_dim) for head in heads]
        begin = T.int32(0)
        if op.window is not None:  # rows ascend, so the first row sees furthest back
            begin = hold(tirx.max(ends[0] - (op.window - 1), 0))
        first_block = hold(tirx.floordiv(begin, BLOCK))
        blocks = hold(tirx.floordiv(ends[-1], BLOCK) + 1 - first_block)
        peak = [Accumulator(1, _MASKED) for _ in rows]
        weight = [Accumulator(BLOCK) for _ in rows]  # softmax denominators, one per lane
        sums = [Sums(op.head_dim) for _ in rows]
        for acc in sums:
            self._each(lambda d, lanes, acc=acc: acc.store(const(0.0, lanes), d, lanes))
        with T.serial(blocks) as b:
            block = hold(first_block + b)
            stored = hold(self.places.block(tokens[0], block))
            if op.paged or op.tokens == 1:  # otherwise the passes before have just read it
                self._prefetch(hold(self.places.block(tokens[0], tirx.min(block + 1, first_block + blocks - 1))))
            scores = self._scores(tokens, columns, stored)
            for r in range(len(rows)):
                self._soften(scores[r], ends[r], block, peak[r], weight[r], sums[r])
            self._accumulate(scores, stored, sums)
        for r in range(len(rows)):
            inverse = hold(T.float32(1) / horizontal_sum(weight[r].get(), BLOCK))
            self._each(
                lambda d, lanes, r=r, inverse=inverse: store(
                    self.out, sums[r].load(d, lanes) * splat(inverse, lanes), [tokens[r]], columns[r] + d, lanes
                )
            )

    def _prefetch(self, block) -> None:
        """Ask for a block of keys and values: the next one of a sequence may lie anywhere."""
        per_line = LINE // np.dtype(self.op.kv_dtype).itemsize
        with T.serial(-(-self.op.head_dim * BLOCK // per_line)) as line:
            for cache in (self.k, self.v):
                prefetch(cache, [self.kv_head, block, line * per_line])

    def _each(self, body) -> None:
        """body(d, lanes) over head_dim, unrolled: the loop variable stays constant so sums live in registers."""
        for first, lanes, count in segments(self.op.head_dim, self.tiles.lanes):
            for i in range(count):
                body(first + i * lanes, lanes)

    def _scores(self, tokens, columns, block) -> list[list[Accumulator]]:
        lanes = min(self.tiles.lanes, BLOCK)
        parts = BLOCK // lanes
        scores = [[Accumulator(lanes) for _ in range(parts)] for _ in tokens]
        with T.serial(self.op.head_dim) as d:
            for p in range(parts):
                keys = hold(to_float(load(self.k, [self.kv_head, block], d * BLOCK + p * lanes, lanes), lanes))
                for r, (token, column) in enumerate(zip(tokens, columns, strict=True)):
                    scores[r][p].add(keys * splat(T.BufferLoad(self.q, [token, column + d]), lanes))
        return [self._join(parts) for parts in scores]

    @staticmethod
    def _join(parts: list[Accumulator]) -> Accumulator:
        if len(parts) == 1:
            return parts[0]
        whole = Accumulator(BLOCK, None)
        for p, part in enumerate(parts):
            store(whole.buffer, part.get(), [], p * part.lanes, part.lanes)
        return whole

    def _soften(self, score: Accumulator, end, block, peak: Accumulator, weight: Accumulator, sums) -> None:
        """Turn a row's scores into exp(score - peak), rescaling what was summed before."""
        op = self.op
        s = hold(score.get() * const(op.scale, BLOCK))
        if op.softcap is not None:
            s = hold(const(op.softcap, BLOCK) * tanh(s * const(1.0 / op.softcap, BLOCK), BLOCK))
        at = hold(tirx.Ramp(block * BLOCK, 1, BLOCK))
        visible = at <= splat(end, BLOCK)
        if op.window is not None:
            visible = tirx.And(visible, at > splat(end - op.window, BLOCK))
        s = hold(tirx.Select(visible, s, const(_MASKED, BLOCK)))
        old = hold(peak.element(0))
        new = hold(tirx.max(old, horizontal_max(s, BLOCK)))
        shrink = hold(exp(old - new, 1))
        p = hold(tirx.Select(s > const(_MASKED / 2, BLOCK), exp(s - splat(new, BLOCK), BLOCK), const(0.0, BLOCK)))
        peak.set(new)
        weight.set(weight.get() * splat(shrink, BLOCK) + p)
        score.set(p)
        self._each(
            lambda d, lanes: sums.store(sums.load(d, lanes) * splat(shrink, lanes), d, lanes)
        )

    def _accumulate(self, scores: list[Accumulator], block, sums: list) -> None:
        with T.serial(BLOCK) as lane:
            factors = [hold(s.element(lane)) for s in scores]

            def add(d, lanes):
                values = hold(to_float(load(self.v, [self.kv_head, block], lane * self.op.head_dim + d, lanes), lanes))
                for acc, factor in zip(sums, factors, strict=True):
                    acc.store(acc.load(d, lanes) + values * splat(factor, lanes), d, lanes)

            self._each(add)
