"""The token that each sequence of a batch takes next: what is forbidden is struck out, what is favoured is raised."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import choose_arguments

from .vector import Accumulator, horizontal, horizontal_max, load, opaque, segments, splat, stack, store

_LOWEST, _NONE = -3.4e38, 2**31 - 1


def choose(vocab: int, lanes: int, name: str = "choose"):
    """PrimFunc(logits [rows, vocab] f32, in place, masks [k, ceil(vocab/32)] i32, mask [rows] i32, bias_starts
    [rows + 1] i32, bias_tokens [b] i32, biases [b] f32, tokens [rows] i32, best [rows] f32).

    Row r gets biases[i] added at bias_tokens[i] for bias_starts[r] <= i < bias_starts[r + 1]; where mask[r] >= 0,
    logits of tokens whose bit in masks[mask[r]] is 0 become -inf. Then tokens[r] is the argmax (the first of equals)
    and best[r] its logit. NaN among the logits gives a token of 2**31 - 1 or loses to every number.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        a, _ = choose_arguments(vocab)
        with T.parallel(a.rows) as row:
            first, end = opaque(T.BufferLoad(a.starts, [row])), opaque(T.BufferLoad(a.starts, [row + 1]))
            with T.serial(end - first) as i:
                at = T.BufferLoad(a.bias_tokens, [first + i])
                raised = T.BufferLoad(a.logits, [row, at]) + T.BufferLoad(a.biases, [first + i])
                T.buffer_store(a.logits, raised, [row, at])
            chosen = opaque(T.BufferLoad(a.mask, [row]))
            with T.If(chosen >= 0), T.Then():
                _strike_out(vocab, min(lanes, 32), a.logits, row, a.masks, chosen)
            _argmax(vocab, lanes, a.logits, row, a.tokens, a.best)
    return builder.get()


def _strike_out(vocab: int, lanes: int, logits, row, masks, chosen) -> None:
    low = T.float32(float("-inf"))
    for start, width, count in segments(vocab, lanes):
        with T.serial(count) as i:
            at = T.bind(start + i * width)  # a vector never crosses a word: widths are powers of two up to 32
            word = splat(T.BufferLoad(masks, [chosen, tirx.floordiv(at, 32)]), width)
            shift = splat(tirx.floormod(at, 32), width)
            if width > 1:
                shift = shift + tirx.Ramp(T.int32(0), T.int32(1), width)
            bit = tirx.bitwise_and(tirx.shift_right(word, shift), splat(T.int32(1), width))
            value = tirx.Select(bit == splat(T.int32(0), width), splat(low, width), load(logits, [row], at, width))
            store(logits, value, [row], at, width)


def _argmax(vocab: int, lanes: int, logits, row, tokens, best) -> None:
    peak, where = stack(1), stack(1, "int32")
    T.buffer_store(peak, T.float32(_LOWEST), [0])
    T.buffer_store(where, T.int32(_NONE), [0])
    for start, width, count in segments(vocab, lanes):
        acc = Accumulator(width, _LOWEST)
        with T.serial(count) as i:
            acc.set(tirx.max(acc.get(), load(logits, [row], start + i * width, width)))
        T.buffer_store(peak, tirx.max(T.BufferLoad(peak, [0]), horizontal_max(acc.get(), width)), [0])
    for start, width, count in segments(vocab, lanes):
        acc = Accumulator(width, None, "int32")
        acc.set(splat(T.int32(_NONE), width))
        with T.serial(count) as i:
            at = splat(start + i * width, width)
            if width > 1:
                at = at + tirx.Ramp(T.int32(0), T.int32(1), width)
            same = load(logits, [row], start + i * width, width) == splat(T.BufferLoad(peak, [0]), width)
            acc.set(tirx.min(acc.get(), tirx.Select(same, at, splat(T.int32(_NONE), width))))
        T.buffer_store(where, tirx.min(T.BufferLoad(where, [0]), _least(acc.get(), width)), [0])
    T.buffer_store(tokens, T.BufferLoad(where, [0]), [row])
    T.buffer_store(best, T.BufferLoad(peak, [0]), [row])


def _least(value, lanes: int):
    return horizontal(value, lanes, tirx.min)
