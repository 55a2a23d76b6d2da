"""The token's own q, k and v of one KV head, normalised and rotated, in a block's shared memory."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import BLOCK, RopeAppend
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simt.common import Machine, Register, barrier, shared, strided, subgroup_reduce


class Rotated:
    """Filled by all threads of the block when it is made; ends with a barrier. K and V are rounded as the cache will
    hold them, so that a token sees itself as later tokens see it."""

    def __init__(self, op: Attention, machine: Machine, a: RopeAppend, kv_head, thread, threads: int):
        self.op, self.machine, self.a, self.kv_head = op, machine, a, kv_head
        self.thread, self.threads = thread, threads
        self.rows = shared((op.group + 2, op.head_dim))  # query heads, then k, then v
        v = T.bind((op.heads + op.kv_heads + kv_head) * op.head_dim)
        if a.norms is None and op.head_dim == op.rotary_dim:
            self._rotate_at_once(v)
        else:
            warps = threads // machine.subgroup
            lane = T.bind(tirx.floormod(thread, machine.subgroup))
            with strided(op.group + 1, T.bind(tirx.floordiv(thread, machine.subgroup)), warps) as row:
                self._rotate(row, lane)
            with strided(op.head_dim, thread, threads) as d:
                T.buffer_store(self.rows, self._rounded(T.BufferLoad(a.qkv, [0, v + d])), [op.group + 1, d])
        barrier()

    def query(self, g, d):
        return T.BufferLoad(self.rows, [g, d])

    def key(self, d):
        return T.BufferLoad(self.rows, [self.op.group, d])

    def value(self, d):
        return T.BufferLoad(self.rows, [self.op.group + 1, d])

    def append(self, value_index) -> None:
        """Write k and v to the cache."""
        op, end = self.op, T.bind(T.BufferLoad(self.a.places.position, [0]))
        block, inside = T.bind(tirx.floordiv(end, BLOCK)), T.bind(tirx.floormod(end, BLOCK))
        with strided(op.head_dim, self.thread, self.threads) as d:
            k, v = (tirx.Cast(op.kv_dtype, element(d)) for element in (self.key, self.value))
            T.buffer_store(self.a.k_cache, k, [self.kv_head, block, inside * op.head_dim + d])
            T.buffer_store(self.a.v_cache, v, [self.kv_head, block, value_index(op.head_dim, inside, d)])

    def _rounded(self, value):
        return tirx.Cast("float32", tirx.Cast(self.op.kv_dtype, value))

    def _rotate_at_once(self, v) -> None:
        """Pairs of all heads divided among all threads, which load whatever they need before they use any of it."""
        op, a, half = self.op, self.a, self.op.head_dim // 2
        pairs, places = [], []
        for first in range(0, (op.group + 1) * half, self.threads):
            at = T.bind(tirx.min(first + self.thread, (op.group + 1) * half - 1))
            row, d = T.bind(tirx.floordiv(at, half)), T.bind(tirx.floormod(at, half))
            head = tirx.Select(row == op.group, op.heads + self.kv_head, self.kv_head * op.group + row)
            start = T.bind(head * op.head_dim + d)
            loads = [(a.qkv, start), (a.qkv, start + half), (a.cos, d), (a.sin, d)]
            pairs.append([T.bind(T.BufferLoad(buffer, [0, index])) for buffer, index in loads])
            places.append((row, d))
        values = []
        for first in range(0, op.head_dim, self.threads):
            at = T.bind(tirx.min(first + self.thread, op.head_dim - 1))
            values.append((at, T.bind(T.BufferLoad(a.qkv, [0, v + at]))))
        for (row, d), (low, high, c, s) in zip(places, pairs, strict=True):
            for to, value in ((d, low * c - high * s), (d + half, high * c + low * s)):
                value = T.bind(value)
                T.buffer_store(self.rows, tirx.Select(row == op.group, self._rounded(value), value), [row, to])
        for at, value in values:
            T.buffer_store(self.rows, self._rounded(value), [op.group + 1, at])

    def _rotate(self, row, lane) -> None:
        """One subgroup, one head: dimension i rotates with i + rotary_dim/2."""
        op, a, lanes, half = self.op, self.a, self.machine.subgroup, self.op.rotary_dim // 2
        is_k = T.bind(row == op.group)
        head = tirx.Select(is_k, op.heads + self.kv_head, self.kv_head * op.group + row)
        start = T.bind(head * op.head_dim)
        inverse = Register(T.float32(1))
        if a.norms is not None:
            total = Register(T.float32(0))
            with strided(op.head_dim, lane, lanes) as d:
                value = T.bind(T.BufferLoad(a.qkv, [0, start + d]))
                total.add(value * value)
            whole = subgroup_reduce(self.machine, total.get(), lambda x, y: x + y)
            inverse.set(tirx.rsqrt(whole * T.float32(1.0 / op.head_dim) + T.float32(op.norm_eps)))

        def element(d):
            value = T.BufferLoad(a.qkv, [0, start + d])
            if a.norms is None:
                return value
            weight = tirx.Select(is_k, T.BufferLoad(a.norms[1], [d]), T.BufferLoad(a.norms[0], [d]))
            return value * inverse.get() * weight

        def put(d, value) -> None:
            value = T.bind(value)
            T.buffer_store(self.rows, tirx.Select(is_k, self._rounded(value), value), [row, d])

        with strided(half, lane, lanes) as d:
            low, high = T.bind(element(d)), T.bind(element(d + half))
            c, s = T.bind(T.BufferLoad(a.cos, [0, d])), T.bind(T.BufferLoad(a.sin, [0, d]))
            put(d, low * c - high * s)
            put(d + half, high * c + low * s)
        if op.head_dim > op.rotary_dim:
            with strided(op.head_dim - op.rotary_dim, lane, lanes) as d:
                put(op.rotary_dim + d, element(op.rotary_dim + d))
