"""Prefill's attention with cooperative matrices: causal, online softmax, one head and some tokens to a workgroup.

Each subgroup holds the queries of m tokens as matrices and meets the positions up to its last token 32 at a time: the
scores go through workgroup memory, where every lane has a part of one row; the sums stay in matrices, which a matrix
with constant rows rescales. What is written is one slice of simt's split attention, which its second kernel joins.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import BLOCK, Places, match_caches
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simt.attention import join, workspace_shape
from mlcrt.kernels.simt.common import Machine, Register, barrier, launch, local, prim_func, shared, subgroup_reduce
from mlcrt.kernels.simt.functions import tanh

_MASKED = -1e30
_SUBGROUPS, _POSITIONS = 4, 32
_PAD = 4  # words


def suits(op: Attention, splits: int) -> bool:
    """Whether the kernel serves this layer: many tokens, heads whose matrices fit the registers."""
    return (
        op.tokens is None
        and not op.paged
        and splits == 1
        and op.kv_dtype == "float16"
        and op.head_dim % 16 == 0
        and op.head_dim <= 128
    )


def attention(op: Attention, shape: tuple[int, int, int], machine: Machine, name: str = "attention"):
    """PrimFunc with the arguments of mlcrt.kernels.simt.attention.attention for many tokens and one slice."""

    def body() -> None:
        n = T.int32()
        q_handle, k_handle, v_handle = (T.arg(a, T.handle()) for a in ("q", "k_cache", "v_cache"))
        position = T.arg("position", T.Buffer((1,), "int32"))
        out_handle, space_handle = T.arg("out", T.handle()), T.arg("workspace", T.handle())
        width = (n, op.heads * op.head_dim)
        q, out = T.match_buffer(q_handle, width, "float32"), T.match_buffer(out_handle, width, "float32")
        k_cache, v_cache = match_caches(op, k_handle, v_handle)
        space = T.match_buffer(space_handle, workspace_shape(op, 1, n), "float32")
        _Flash(op, shape, machine, n).emit(q, k_cache, v_cache, position, space)
        join(op, machine, 1, _POSITIONS, n, Places(position), space, out)

    return prim_func(name, body)


def _call(name: str, *arguments) -> None:
    T.evaluate(tirx.call_extern("int32", name, *arguments))


class _Flash:
    def __init__(self, op: Attention, shape: tuple[int, int, int], machine: Machine, n):
        self.op, self.shape, self.machine, self.n = op, shape, machine, n
        self.lanes, (self.m, self.width, _) = machine.subgroup, shape
        if self.width != 16 or shape[2] != 16 or self.lanes % self.m:
            raise ValueError(f"no attention kernel for matrices {shape} and {self.lanes} lanes")
        self.threads, self.tokens = _SUBGROUPS * self.lanes, _SUBGROUPS * self.m
        self.pieces, self.steps = op.head_dim // 8, op.head_dim // 16
        self.pitch = op.head_dim // 2 + _PAD
        self.score_pitch, self.share_pitch = _POSITIONS + _PAD, _POSITIONS // 2 + _PAD

    def emit(self, q, k_cache, v_cache, position, space) -> None:
        blocks = tirx.floordiv(self.n + self.tokens - 1, self.tokens)
        with launch(bx=self.op.heads, bz=blocks, tx=self.threads) as (head, block, thread):
            self.thread, self.head = thread, head
            self.kv_head = T.bind(tirx.floordiv(head, self.op.group))
            self.lane, subgroup = T.bind(tirx.floormod(thread, self.lanes)), T.bind(tirx.floordiv(thread, self.lanes))
            self.token0 = T.bind((blocks - 1 - block) * self.tokens)  # those with most to do first
            self.first_token = T.bind(self.token0 + subgroup * self.m)
            start = T.bind(T.BufferLoad(position, [0]) + self.token0)
            self.last = T.bind(start + tirx.min(self.tokens, self.n - self.token0) - 1)
            window = self.op.window
            self.begin = T.int32(0) if window is None else T.bind(tirx.max(start - (window - 1), 0))
            each = self.lanes // self.m  # lanes of a row
            self.columns = _POSITIONS // each
            self.row, self.part = T.bind(tirx.floordiv(self.lane, each)), T.bind(tirx.floormod(self.lane, each))
            self.team = each
            self.end = T.bind(start + (self.first_token - self.token0) + self.row)  # of this lane's row
            self.tile = shared((max(2 * _POSITIONS, self.tokens) * self.pitch,), "uint32")
            own = self.m * (self.score_pitch + self.share_pitch + self.width)
            self.work = shared((_SUBGROUPS * own,), "uint32")
            self.scores = T.bind(subgroup * own)
            self.shares = T.bind(self.scores + self.m * self.score_pitch)
            self.factors = T.bind(self.shares + self.m * self.share_pitch)
            self.peak, self.weight = Register(T.float32(_MASKED)), Register(T.float32(0))
            count = -(-_POSITIONS * self.pieces // self.threads)
            self.held = [[local((4,), "uint32") for _ in range(count)] for _ in range(2)]
            _call("matrix_shape", *self.shape)
            for d in range(self.steps):
                _call("matrix_fill", d, T.float32(0))
            self.queries(q, subgroup)
            self.fetch(k_cache, v_cache, T.int32(0))
            rounds = T.bind(tirx.floordiv(self.last - self.begin, _POSITIONS) + 1)
            with T.serial(rounds) as step:
                barrier()
                self.stage()
                barrier()
                self.fetch(k_cache, v_cache, T.bind(step + 1))
                self.score()
                barrier()
                self.softmax(step)
                barrier()
                self.accumulate()
            self.store(space)

    def queries(self, q, subgroup) -> None:
        """The subgroup's queries, scaled, as matrices."""
        for i in range(-(-self.tokens * self.pieces // self.threads)):
            at, row, piece = self.place(i)
            with _Inside(at, self.tokens * self.pieces, self.threads * (i + 1)):
                token = T.bind(tirx.min(self.token0 + row, self.n - 1))
                values = []
                for j in (0, 4):
                    part, column = local((4,)), T.bind(self.head * self.op.head_dim + piece * 8 + j)
                    T.buffer_store(part, T.BufferLoad(q, [token, tirx.Ramp(column, 1, 4)]), [tirx.Ramp(0, 1, 4)])
                    values += [T.BufferLoad(part, [e]) * T.float32(self.op.scale) for e in range(4)]
                T.buffer_store(self.tile, _halves(values), [tirx.Ramp(row * self.pitch + piece * 4, 1, 4)])
        barrier()
        for d in range(self.steps):
            at = subgroup * (self.m * self.pitch) + d * 8
            _call("matrix_load_a", d, T.address_of(self.tile[at]), self.pitch)

    def place(self, i: int):
        """(index, row, 16-byte piece of it) of this thread's i-th share of a tile: eight lanes have eight rows."""
        at = T.bind(self.thread + i * self.threads)
        rest = T.bind(tirx.floordiv(at, 8))
        row = T.bind(tirx.floordiv(rest, self.pieces) * 8 + tirx.floormod(at, 8))
        return at, row, T.bind(tirx.floormod(rest, self.pieces))

    def fetch(self, k_cache, v_cache, step) -> None:
        """Issue the loads of 32 positions; beyond the last visible one that one again, which the mask leaves out."""
        for i in range(len(self.held[0])):
            at, row, piece = self.place(i)
            with _Inside(at, _POSITIONS * self.pieces, self.threads * (i + 1)):
                p = T.bind(tirx.min(self.begin + step * _POSITIONS + row, self.last))
                inside = T.bind(tirx.floormod(p, BLOCK) * self.op.head_dim + piece * 8)
                for cache, held in zip((k_cache, v_cache), self.held, strict=True):
                    index = [self.kv_head, tirx.floordiv(p, BLOCK), tirx.Ramp(inside, 1, 8)]
                    words = tirx.reinterpret("uint32x4", T.BufferLoad(cache, index))
                    T.buffer_store(held[i], words, [tirx.Ramp(0, 1, 4)])

    def stage(self) -> None:
        for i in range(len(self.held[0])):
            at, row, piece = self.place(i)
            with _Inside(at, _POSITIONS * self.pieces, self.threads * (i + 1)):
                for which, held in enumerate(self.held):
                    to = T.bind((row + which * _POSITIONS) * self.pitch + piece * 4)
                    value = T.BufferLoad(held[i], [tirx.Ramp(0, 1, 4)])
                    T.buffer_store(self.tile, value, [tirx.Ramp(to, 1, 4)])

    def score(self) -> None:
        """Queries times keys → workgroup memory."""
        for j in range(_POSITIONS // 16):
            number = self.steps + j
            _call("matrix_fill", number, T.float32(0))
            for d in range(self.steps):
                at = 16 * j * self.pitch + d * 8
                _call("matrix_load_b", 0, T.address_of(self.tile[at]), self.pitch)
                _call("matrix_multiply_add", number, d, 0)
            _call("matrix_store", number, T.address_of(self.work[self.scores + 16 * j]), self.score_pitch)

    def softmax(self, step) -> None:
        """This lane's part of a row: weights of its positions, and by how much older sums shrink."""
        op, work = self.op, self.work
        first = T.bind(self.begin + step * _POSITIONS + self.part * self.columns)
        scores, inside = [], []
        for j in range(0, self.columns, 4):
            four = local((4,), "uint32")
            at = T.bind(self.scores + self.row * self.score_pitch + self.part * self.columns + j)
            T.buffer_store(four, T.BufferLoad(work, [tirx.Ramp(at, 1, 4)]), [tirx.Ramp(0, 1, 4)])
            for e in range(4):
                score = tirx.reinterpret("float32", T.BufferLoad(four, [e]))
                if op.softcap is not None:
                    score = T.float32(op.softcap) * tanh(score * T.float32(1.0 / op.softcap))
                p = first + (j + e)
                seen = p <= self.end
                if op.window is not None:
                    seen = tirx.And(seen, p > self.end - op.window)
                inside.append(T.bind(seen))
                scores.append(T.bind(tirx.Select(inside[-1], score, T.float32(_MASKED))))
        top = T.bind(reduce(tirx.max, scores, self.peak.get()))
        top = T.bind(subgroup_reduce(self.machine, top, tirx.max, self.team))
        shrink = T.bind(tirx.exp(self.peak.get() - top))
        weights = [
            T.bind(tirx.Select(seen, tirx.exp(score - top), T.float32(0)))
            for seen, score in zip(inside, scores, strict=True)
        ]
        total = T.bind(
            subgroup_reduce(self.machine, reduce(add, weights), add, self.team)
        )
        self.peak.set(top)
        self.weight.set(self.weight.get() * shrink + total)
        for j in range(0, self.columns, 8):
            at = T.bind(self.shares + self.row * self.share_pitch + (self.part * self.columns + j) // 2)
            T.buffer_store(work, _halves(weights[j : j + 8]), [tirx.Ramp(at, 1, 4)])
        each = self.width // self.team
        factor = tirx.reinterpret("uint32", shrink)
        for j in range(0, each, 4):
            at = T.bind(self.factors + self.row * self.width + self.part * each + j)
            T.buffer_store(work, tirx.Broadcast(factor, 4), [tirx.Ramp(at, 1, 4)])

    def accumulate(self) -> None:
        """Sums = factors * sums + weights times values."""
        factors = self.steps + _POSITIONS // 16
        _call("matrix_load_c", factors, T.address_of(self.work[self.factors]), self.width)
        for d in range(self.steps):
            _call("matrix_scale", d, factors)
        for j in range(_POSITIONS // 16):
            _call("matrix_load_a", self.steps, T.address_of(self.work[self.shares + 8 * j]), self.share_pitch)
            for d in range(self.steps):
                at = (_POSITIONS + 16 * j) * self.pitch + d * 8
                _call("matrix_load_rows", 0, T.address_of(self.tile[at]), self.pitch)
                _call("matrix_multiply_add", d, self.steps, 0)

    def store(self, space) -> None:
        """Unscaled sums, peak and denominator of every token."""
        hd = self.op.head_dim
        for d in range(0, self.steps, 2):
            wide = min(2, self.steps - d) * 16
            barrier()
            for j in range(wide // 16):
                _call("matrix_store", d + j, T.address_of(self.work[self.scores + 16 * j]), self.score_pitch)
            barrier()
            with T.serial(self.m * wide // self.lanes) as i:
                at = T.bind(i * self.lanes + self.lane)
                row, column = T.bind(tirx.floordiv(at, wide)), T.bind(tirx.floormod(at, wide))
                token = T.bind(self.first_token + row)
                with T.If(token < self.n), T.Then():
                    stored = T.BufferLoad(self.work, [self.scores + row * self.score_pitch + column])
                    value = tirx.reinterpret("float32", stored)
                    T.buffer_store(space, value, [token, self.head, 0, d * 16 + column])
        token = T.bind(self.first_token + self.row)
        with T.If(tirx.And(self.part == 0, token < self.n)), T.Then():
            T.buffer_store(space, self.peak.get(), [token, self.head, 0, hd])
            T.buffer_store(space, self.weight.get(), [token, self.head, 0, hd + 1])


def _halves(values: list):
    """Eight values as four words of float16."""
    held = local((8,), "float16")
    for i, value in enumerate(values):
        T.buffer_store(held, tirx.Cast("float16", value), [i])
    return tirx.reinterpret("uint32x4", T.BufferLoad(held, [tirx.Ramp(0, 1, 8)]))


class _Inside:
    """Guard for the shares of a tile that does not divide among the threads."""

    def __init__(self, at, total: int, reached: int):
        self.frames = [] if reached <= total else [T.If(at < total), T.Then()]

    def __enter__(self) -> None:
        for frame in self.frames:
            frame.__enter__()

    def __exit__(self, *exc) -> None:
        for frame in reversed(self.frames):
            frame.__exit__(*exc)
