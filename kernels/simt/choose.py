"""The token that each sequence of a batch takes next, on a GPU: biases and masks applied, then the argmax."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import choose_arguments

from .common import Machine, Register, launch, prim_func, strided
from .elementwise import _first_maximum

_PARTS = 64  # slices of a row that are searched side by side
_THREADS = 256
_LOWEST, _NONE = -3.4e38, 2**31 - 1
_MINUS_INFINITY = -(1 << 23)  # bits of a float32


def scratch(rows) -> list[tuple]:
    """Workspaces of choose: the best logit of each slice, and its index (as float32 bits)."""
    return [(rows, _PARTS), (rows, _PARTS)]


def choose(vocab: int, machine: Machine, name: str = "choose"):
    """PrimFunc(logits [rows, vocab] f32, in place, masks [k, ceil(vocab/32)] i32, mask [rows] i32, bias_starts
    [rows + 1] i32, bias_tokens [b] i32, biases [b] f32, tokens [rows] i32, best [rows] f32, workspaces of `scratch`).

    What it computes is told in kernels/simd/choose.py; the biased tokens of one row have to differ.
    """

    def body() -> None:
        a, more = choose_arguments(vocab, "bests", "wheres")
        bests, wheres = (T.match_buffer(handle, (a.rows, _PARTS), "float32") for handle in more)
        with launch(bx=a.rows, tx=_THREADS) as (row, thread):
            machine.follow()
            first, end = T.bind(T.BufferLoad(a.starts, [row])), T.bind(T.BufferLoad(a.starts, [row + 1]))
            with strided(end - first, thread, _THREADS) as i:
                at = T.bind(T.BufferLoad(a.bias_tokens, [first + i]))
                raised = T.BufferLoad(a.logits, [row, at]) + T.BufferLoad(a.biases, [first + i])
                T.buffer_store(a.logits, raised, [row, at])
        slice_ = -(-vocab // _PARTS)
        with launch(bx=_PARTS, by=a.rows, tx=_THREADS) as (part, row, thread):
            machine.follow()
            peak, where = Register(T.float32(_LOWEST)), Register(T.int32(_NONE), "int32")
            chosen = T.bind(T.BufferLoad(a.mask, [row]))
            with strided(slice_, thread, _THREADS) as i:
                at = T.bind(part * slice_ + i)
                with T.If(at < vocab), T.Then():
                    allowed = Register(T.int32(1), "int32")
                    with T.If(chosen >= 0), T.Then():
                        word = T.bind(T.BufferLoad(a.masks, [chosen, tirx.floordiv(at, 32)]))
                        bit = tirx.bitwise_and(tirx.shift_right(word, tirx.floormod(at, 32)), T.int32(1))
                        allowed.set(bit)
                    with T.If(allowed.get() == 0):
                        with T.Then():  # as bits: fast math knows no infinity; in a variable: CUDA wants its address
                            bits = Register(T.int32(_MINUS_INFINITY), "int32")
                            T.buffer_store(a.logits, tirx.reinterpret("float32", bits.get()), [row, at])
                        with T.Else():
                            value = T.bind(T.BufferLoad(a.logits, [row, at]))
                            with T.If(value > peak.get()), T.Then():
                                peak.set(value)
                                where.set(at)
            _first_maximum(machine, _THREADS, thread, peak, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(bests, peak.get(), [row, part])
                T.buffer_store(wheres, tirx.reinterpret("float32", where.get()), [row, part])
        with launch(bx=a.rows, tx=_PARTS) as (row, thread):
            machine.follow()
            peak = Register(T.BufferLoad(bests, [row, thread]))
            where = Register(tirx.reinterpret("int32", T.BufferLoad(wheres, [row, thread])), "int32")
            _first_maximum(machine, _PARTS, thread, peak, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(a.tokens, where.get(), [row])
                T.buffer_store(a.best, peak.get(), [row])

    return prim_func(name, body)
