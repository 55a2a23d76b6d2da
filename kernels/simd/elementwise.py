"""The small kernels of a step: embedding gather, rotary tables, and what ends a step."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Embed

from .functions import tanh
from .vector import Accumulator, const, hold, horizontal_max, load, segments, stack, store
from .weights import Rows


def embed(op: Embed, native_f16: bool, name: str = "embed"):
    """PrimFunc(weight parts, tokens [n] i32, out [n, hidden] f32): dequantised rows, times `scale`."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n = T.int32() if op.tokens is None else op.tokens
        buffers = weight_arguments(op.scheme, op.vocab, op.hidden)
        weights = Rows(op.scheme, op.vocab, op.hidden, buffers, native_f16)
        tokens_handle, out_handle = T.arg("tokens", T.handle()), T.arg("out", T.handle())
        tokens = T.match_buffer(tokens_handle, (n,), "int32")
        out = T.match_buffer(out_handle, (n, op.hidden), "float32")
        with T.serial(n) as t:
            row = hold(T.BufferLoad(tokens, [t]))
            with T.serial(weights.words) as word:
                affine = weights.affine(row, word, 1)
                for j, code in enumerate(weights.codes(row, word, 1)):
                    value = code if affine is None else affine[0] * code + affine[1]
                    at = word * weights.per_word + j
                    with T.If(at < op.hidden), T.Then():
                        T.buffer_store(out, value * T.float32(op.scale), [t, at])
    return builder.get()


def rotary_tables(half: int, tokens: int | None, factor: float, own: bool = False, name: str = "rotary_tables"):
    """PrimFunc(inv_freq [half] f32, position [1] i32, cos [n, half] f32, sin): angles (position + t) * inv_freq.

    own: positions [n] i32 instead, one for each token."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n = T.int32() if tokens is None else tokens
        inv_freq = T.arg("inv_freq", T.Buffer((half,), "float32"))
        position = T.arg("position", T.handle() if own else T.Buffer((1,), "int32"))
        cos_handle, sin_handle = T.arg("cos", T.handle()), T.arg("sin", T.handle())
        cos = T.match_buffer(cos_handle, (n, half), "float32")
        sin = T.match_buffer(sin_handle, (n, half), "float32")
        if own:
            position = T.match_buffer(position, (n,), "int32")
        with T.serial(n) as t:
            at = hold(tirx.Cast("float32", T.BufferLoad(position, [t]) if own else T.BufferLoad(position, [0]) + t))
            with T.serial(half) as i:
                angle = hold(at * T.BufferLoad(inv_freq, [i]))
                T.buffer_store(cos, tirx.cos(angle) * T.float32(factor), [t, i])
                T.buffer_store(sin, tirx.sin(angle) * T.float32(factor), [t, i])
    return builder.get()


def softcap(width: int, tokens: int | None, cap: float, lanes: int, name: str = "softcap"):
    """PrimFunc(x [n, width] f32, y): y = cap * tanh(x / cap)."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n = T.int32() if tokens is None else tokens
        x_handle, y_handle = T.arg("x", T.handle()), T.arg("y", T.handle())
        x, y = (T.match_buffer(h, (n, width), "float32") for h in (x_handle, y_handle))
        with T.serial(n) as t:
            for first, wide, count in segments(width, lanes):
                with T.serial(count) as i:
                    at = hold(first + i * wide)
                    value = tanh(load(x, [t], at, wide) * const(1.0 / cap, wide), wide)
                    store(y, const(cap, wide) * value, [t], at, wide)
    return builder.get()


def finish_step(vocab: int, count: int | None, lanes: int, name: str = "finish_step"):
    """PrimFunc(logits [1, vocab] f32, [tokens [n] i32 unless `count` is 1], out [1, vocab] f32, token [1] i32,
    position [1] i32).

    The last three are decode state, written in place: the logits, their argmax (the first of equals) and
    position + n, so that the next step can start without the host.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        n = T.int32() if count is None else count
        logits = T.arg("logits", T.Buffer((1, vocab), "float32"))
        tokens_handle = T.arg("tokens", T.handle()) if count is None else None
        out = T.arg("out", T.Buffer((1, vocab), "float32"))
        token = T.arg("token", T.Buffer((1,), "int32"))
        position = T.arg("position", T.Buffer((1,), "int32"))
        if count is None:
            T.match_buffer(tokens_handle, (n,), "int32")  # only its length counts
        best = stack(1)
        T.buffer_store(best, T.float32(-3.4e38), [0])
        for first, wide, steps in segments(vocab, lanes):
            acc = Accumulator(wide, -3.4e38)
            with T.serial(steps) as i:
                at = hold(first + i * wide)
                value = hold(load(logits, [0], at, wide))
                store(out, value, [0], at, wide)
                acc.set(tirx.max(acc.get(), value))
            T.buffer_store(best, tirx.max(T.BufferLoad(best, [0]), horizontal_max(acc.get(), wide)), [0])
        T.buffer_store(token, T.int32(vocab - 1), [0])
        with T.serial(vocab) as i:  # downwards, so that the first maximum is written last
            at = hold(vocab - 1 - i)
            with T.If(T.BufferLoad(logits, [0, at]) == T.BufferLoad(best, [0])), T.Then():
                T.buffer_store(token, at, [0])
        T.buffer_store(position, T.BufferLoad(position, [0]) + n, [0])
    return builder.get()
