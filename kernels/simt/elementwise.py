"""The small kernels of a step on a GPU: embedding gather, rotary tables, soft cap, and what ends a step."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Embed

from .common import Machine, Register, barrier, launch, prim_func, shared, strided
from .functions import cos_sin, tanh
from .weights import Rows

_THREADS = 256


def embed(op: Embed, machine: Machine, name: str = "embed"):
    """PrimFunc(weight parts, tokens [n] i32, out [n, hidden] f32): dequantised rows, times `scale`."""

    def body() -> None:
        n = T.int32() if op.tokens is None else op.tokens
        w = Rows(op.scheme, op.vocab, op.hidden, weight_arguments(op.scheme, op.vocab, op.hidden))
        tokens_handle, out_handle = T.arg("tokens", T.handle()), T.arg("out", T.handle())
        tokens = T.match_buffer(tokens_handle, (n,), "int32")
        out = T.match_buffer(out_handle, (n, op.hidden), "float32")
        with launch(bx=n, tx=_THREADS) as (t, thread):
            machine.follow()
            row = T.bind(T.BufferLoad(tokens, [t]))
            with strided(w.words, thread, _THREADS) as word:
                part = "" if op.scheme.is_float else "codes"
                stored = T.bind(T.BufferLoad(w.buffers[part], [row, word]))
                affine = w.affine(row, word)
                for j, code in enumerate(w.values(stored, row, word)):
                    value = code if affine is None else affine[0] * code + affine[1]
                    at = word * w.per_word + j
                    with T.If(at < op.hidden), T.Then():
                        T.buffer_store(out, value * T.float32(op.scale), [t, at])

    return prim_func(name, body)


def rotary_tables(
    half: int, tokens: int | None, factor: float, machine: Machine, own: bool = False, name: str = "rotary_tables"
):
    """PrimFunc(inv_freq [half] f32, position [1] i32, cos [n, half] f32, sin): angles (position + t) * inv_freq.

    own: positions [n] i32 instead, one for each token."""

    def body() -> None:
        n = T.int32() if tokens is None else tokens
        inv_freq = T.arg("inv_freq", T.Buffer((half,), "float32"))
        position = T.arg("position", T.handle() if own else T.Buffer((1,), "int32"))
        cos_handle, sin_handle = T.arg("cos", T.handle()), T.arg("sin", T.handle())
        cos, sin = (T.match_buffer(h, (n, half), "float32") for h in (cos_handle, sin_handle))
        if own:
            position = T.match_buffer(position, (n,), "int32")
        with launch(bx=n, tx=64) as (t, thread):
            machine.follow()
            with strided(half, thread, 64) as i:
                at = tirx.Cast("float32", T.BufferLoad(position, [t]) if own else T.BufferLoad(position, [0]) + t)
                angle = T.bind(at * T.BufferLoad(inv_freq, [i]))
                c, s = (tirx.cos(angle), tirx.sin(angle)) if machine.any_angle else cos_sin(angle)
                T.buffer_store(cos, c * T.float32(factor), [t, i])
                T.buffer_store(sin, s * T.float32(factor), [t, i])

    return prim_func(name, body)


def softcap(width: int, tokens: int | None, cap: float, machine: Machine, name: str = "softcap"):
    """PrimFunc(x [n, width] f32, y): y = cap * tanh(x / cap)."""

    def body() -> None:
        n = T.int32() if tokens is None else tokens
        x_handle, y_handle = T.arg("x", T.handle()), T.arg("y", T.handle())
        x, y = (T.match_buffer(h, (n, width), "float32") for h in (x_handle, y_handle))
        with launch(bx=-(-width // _THREADS), by=n, tx=_THREADS) as (block, t, thread):
            machine.follow()
            at = T.bind(block * _THREADS + thread)
            with T.If(at < width), T.Then():
                T.buffer_store(y, T.float32(cap) * tanh(T.BufferLoad(x, [t, at]) * T.float32(1.0 / cap)), [t, at])

    return prim_func(name, body)


_PARTS = 256  # slices of the vocabulary that are searched side by side


def finish_scratch() -> list[tuple]:
    """Workspaces of finish_step: the best logit of each slice, and its index (as float32 bits)."""
    return [(_PARTS,), (_PARTS,)]


def finish_step(vocab: int, count: int | None, machine: Machine, name: str = "finish_step"):
    """PrimFunc(logits [1, vocab] f32, [tokens [n] i32 unless `count` is 1], out [1, vocab] f32, token [1] i32,
    position [1] i32, bests f32, wheres f32): out, token and position are decode state, written in place (the argmax is
    the first of equals); the last two are workspaces."""

    def body() -> None:
        n = T.int32() if count is None else count
        logits = T.arg("logits", T.Buffer((1, vocab), "float32"))
        tokens_handle = T.arg("tokens", T.handle()) if count is None else None
        out = T.arg("out", T.Buffer((1, vocab), "float32"))
        token = T.arg("token", T.Buffer((1,), "int32"))
        position = T.arg("position", T.Buffer((1,), "int32"))
        bests, wheres = (T.arg(a, T.Buffer((_PARTS,), "float32")) for a in ("bests", "wheres"))
        if count is None:
            T.match_buffer(tokens_handle, (n,), "int32")  # only its length counts
        slice_ = -(-vocab // _PARTS)
        with launch(bx=_PARTS, tx=_THREADS) as (part, thread):
            machine.follow()
            best, where = Register(T.float32(-3.4e38)), Register(T.int32(vocab - 1), "int32")
            with strided(slice_, thread, _THREADS) as i:
                at = T.bind(part * slice_ + i)
                with T.If(at < vocab), T.Then():
                    value = T.bind(T.BufferLoad(logits, [0, at]))
                    T.buffer_store(out, value, [0, at])
                    with T.If(value > best.get()), T.Then():
                        best.set(value)
                        where.set(at)
            _first_maximum(machine, _THREADS, thread, best, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(bests, best.get(), [part])
                T.buffer_store(wheres, tirx.reinterpret("float32", where.get()), [part])
        with launch(bx=1, tx=_PARTS) as (_, thread):
            machine.follow()
            best = Register(T.BufferLoad(bests, [thread]))
            where = Register(tirx.reinterpret("int32", T.BufferLoad(wheres, [thread])), "int32")
            _first_maximum(machine, _PARTS, thread, best, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(token, where.get(), [0])
                T.buffer_store(position, T.BufferLoad(position, [0]) + n, [0])

    return prim_func(name, body)


def _first_maximum(machine: Machine, threads: int, thread, best: Register, where: Register, vocab: int) -> None:
    """Every thread's (best, where) becomes the block's maximum and the smallest index that has it."""

    def take(value, index) -> None:
        better = tirx.Or(value > best.get(), tirx.And(value == best.get(), index < where.get()))
        with T.If(better), T.Then():
            best.set(value)
            where.set(index)

    step = machine.subgroup // 2
    while step:
        value, index = T.bind(machine.exchange(best.get(), step)), T.bind(machine.exchange(where.get(), step))
        take(value, index)
        step //= 2
    count = threads // machine.subgroup
    if count > 1:
        values, indices = shared((count,)), shared((count,), "int32")
        with T.If(tirx.floormod(thread, machine.subgroup) == 0), T.Then():
            T.buffer_store(values, best.get(), [tirx.floordiv(thread, machine.subgroup)])
            T.buffer_store(indices, where.get(), [tirx.floordiv(thread, machine.subgroup)])
        barrier()
        for i in range(count):
            take(T.bind(T.BufferLoad(values, [i])), T.bind(T.BufferLoad(indices, [i])))
