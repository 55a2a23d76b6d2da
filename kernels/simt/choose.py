"""The token that each sequence of a batch takes next, on a GPU: biases and masks applied, then the argmax."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

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
    words = -(-vocab // 32)

    def body() -> None:
        names = ("logits", "masks", "mask", "bias_starts", "bias_tokens", "biases", "tokens", "best", "bests", "wheres")
        handles = {n: T.arg(n, T.handle()) for n in names}
        rows, count = T.int32(), T.int32()
        logits = T.match_buffer(handles["logits"], (rows, vocab), "float32")
        masks = T.match_buffer(handles["masks"], (T.int32(), words), "int32")
        mask = T.match_buffer(handles["mask"], (rows,), "int32")
        starts = T.match_buffer(handles["bias_starts"], (rows + 1,), "int32")
        bias_tokens = T.match_buffer(handles["bias_tokens"], (count,), "int32")
        biases = T.match_buffer(handles["biases"], (count,), "float32")
        tokens = T.match_buffer(handles["tokens"], (rows,), "int32")
        best = T.match_buffer(handles["best"], (rows,), "float32")
        bests, wheres = (T.match_buffer(handles[n], (rows, _PARTS), "float32") for n in ("bests", "wheres"))
        with launch(bx=rows, tx=_THREADS) as (row, thread):
            machine.follow()
            first, end = T.bind(T.BufferLoad(starts, [row])), T.bind(T.BufferLoad(starts, [row + 1]))
            with strided(end - first, thread, _THREADS) as i:
                at = T.bind(T.BufferLoad(bias_tokens, [first + i]))
                T.buffer_store(logits, T.BufferLoad(logits, [row, at]) + T.BufferLoad(biases, [first + i]), [row, at])
        slice_ = -(-vocab // _PARTS)
        with launch(bx=_PARTS, by=rows, tx=_THREADS) as (part, row, thread):
            machine.follow()
            peak, where = Register(T.float32(_LOWEST)), Register(T.int32(_NONE), "int32")
            chosen = T.bind(T.BufferLoad(mask, [row]))
            with strided(slice_, thread, _THREADS) as i:
                at = T.bind(part * slice_ + i)
                with T.If(at < vocab), T.Then():
                    allowed = Register(T.int32(1), "int32")
                    with T.If(chosen >= 0), T.Then():
                        word = T.bind(T.BufferLoad(masks, [chosen, tirx.floordiv(at, 32)]))
                        bit = tirx.bitwise_and(tirx.shift_right(word, tirx.floormod(at, 32)), T.int32(1))
                        allowed.set(bit)
                    with T.If(allowed.get() == 0):
                        with T.Then():  # as bits: fast math knows no infinity; in a variable: CUDA wants its address
                            bits = Register(T.int32(_MINUS_INFINITY), "int32")
                            T.buffer_store(logits, tirx.reinterpret("float32", bits.get()), [row, at])
                        with T.Else():
                            value = T.bind(T.BufferLoad(logits, [row, at]))
                            with T.If(value > peak.get()), T.Then():
                                peak.set(value)
                                where.set(at)
            _first_maximum(machine, _THREADS, thread, peak, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(bests, peak.get(), [row, part])
                T.buffer_store(wheres, tirx.reinterpret("float32", where.get()), [row, part])
        with launch(bx=rows, tx=_PARTS) as (row, thread):
            machine.follow()
            peak = Register(T.BufferLoad(bests, [row, thread]))
            where = Register(tirx.reinterpret("int32", T.BufferLoad(wheres, [row, thread])), "int32")
            _first_maximum(machine, _PARTS, thread, peak, where, vocab)
            with T.If(thread == 0), T.Then():
                T.buffer_store(tokens, where.get(), [row])
                T.buffer_store(best, peak.get(), [row])

    return prim_func(name, body)
