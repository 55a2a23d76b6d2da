"""A mixture-of-experts MLP for CPUs: route, then run the chosen experts of each token as matrix-vector products.

Tokens go one after another, so a long prompt reads an expert once per token that chose it; decoding, one token, reads
exactly the weights it needs.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import weight_arguments
from mlcrt.kernels.records import Moe
from mlcrt.quant.scheme import Scheme

from .functions import activation, exp
from .linear import LinearTiles, permute, row_dots, word_sums
from .vector import hold, stack
from .weights import Rows

_LOWEST = -3.0e38


def moe(op: Moe, tiles: LinearTiles, name: str = "moe"):
    """PrimFunc(x [n, hidden] f32, router logits [n, experts] f32, gate_up parts [experts, …], down parts [experts, …],
    y [n, hidden] f32): sum over the top_k experts of softmax weight * down(act(gate(x)) * up(x))."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        _Moe(op, tiles).emit()
    return builder.get()


class _Moe:
    def __init__(self, op: Moe, tiles: LinearTiles):
        self.op, self.tiles = op, tiles
        n = T.int32() if op.tokens is None else op.tokens
        x, router = T.arg("x", T.handle()), T.arg("router", T.handle())
        self.gate_up = weight_arguments(op.gate_up, 2 * op.intermediate, op.hidden, "gate_up", op.experts)
        self.down = weight_arguments(op.down, op.hidden, op.intermediate, "down", op.experts)
        y = T.arg("y", T.handle())
        self.x, self.y = (T.match_buffer(h, (n, op.hidden), "float32") for h in (x, y))
        self.router = T.match_buffer(router, (n, op.experts), "float32")
        self.n = n

    def emit(self) -> None:
        op = self.op
        chosen = T.alloc_buffer((op.top_k,), "int32", scope="global")
        weight = T.alloc_buffer((op.top_k,), "float32", scope="global")
        # as wide as the down weight's whole groups: what follows the intermediate features stays zero
        width = self._rows(op.down, op.hidden, op.intermediate, self.down).padded
        inner = T.alloc_buffer((op.top_k, width), "float32", scope="global")
        if width > op.intermediate:
            with T.serial(op.top_k) as k, T.serial(width - op.intermediate) as i:
                T.buffer_store(inner, T.float32(0), [k, op.intermediate + i])
        with T.serial(self.n) as t:
            self._route(t, chosen, weight)
            self._up(t, chosen, inner)
            self._down(t, chosen, weight, inner)

    def _rows(self, scheme: Scheme, rows: int, columns: int, buffers: dict, expert=0) -> Rows:
        return Rows(scheme, rows, columns, buffers, self.tiles.native_f16, (expert,))

    def _route(self, t, chosen, weight) -> None:
        """Softmax over all experts, then top_k rounds of argmax; each winner is struck out of a copy."""
        op = self.op
        left = T.alloc_buffer((op.experts,), "float32", scope="global")
        total, best = (stack(1) for _ in range(2))
        T.buffer_store(best, T.float32(_LOWEST), [0])
        with T.serial(op.experts) as e:
            value = T.BufferLoad(self.router, [t, e])
            T.buffer_store(left, value, [e])
            T.buffer_store(best, tirx.max(T.BufferLoad(best, [0]), value), [0])
        peak = hold(T.BufferLoad(best, [0]))
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(op.experts) as e:
            T.buffer_store(total, T.BufferLoad(total, [0]) + exp(T.BufferLoad(left, [e]) - peak, 1), [0])
        everything = hold(T.BufferLoad(total, [0]))
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(op.top_k) as k:
            T.buffer_store(best, T.float32(_LOWEST), [0])
            T.buffer_store(chosen, T.int32(0), [k])
            with T.serial(op.experts) as e, T.If(T.BufferLoad(left, [e]) > T.BufferLoad(best, [0])), T.Then():
                T.buffer_store(best, T.BufferLoad(left, [e]), [0])
                T.buffer_store(chosen, e, [k])
            T.buffer_store(left, T.float32(_LOWEST), [T.BufferLoad(chosen, [k])])
            T.buffer_store(weight, exp(T.BufferLoad(best, [0]) - peak, 1) / everything, [k])
            T.buffer_store(total, T.BufferLoad(total, [0]) + T.BufferLoad(weight, [k]), [0])
        if op.normalize:
            sum_chosen = hold(T.BufferLoad(total, [0]))
            with T.serial(op.top_k) as k:
                T.buffer_store(weight, T.BufferLoad(weight, [k]) / sum_chosen, [k])

    def _up(self, t, chosen, inner) -> None:
        op, lanes = self.op, self.tiles.lanes
        w = self._rows(op.gate_up, 2 * op.intermediate, op.hidden, self.gate_up)
        x = T.alloc_buffer((w.padded,), "float32", scope="global")
        permute(w, lanes, w.padded, lambda index, _: T.BufferLoad(self.x, [t, index]), x, [])
        sums = None
        if not op.gate_up.is_float:
            sums = T.alloc_buffer((w.words,), "float32", scope="global")
            word_sums(w, lanes, x, [], sums, [])
        with T.parallel(op.top_k * op.intermediate) as item:
            k = T.bind(tirx.floordiv(item, op.intermediate))
            unit = T.bind(tirx.floormod(item, op.intermediate))
            expert = T.bind(T.BufferLoad(chosen, [k]))
            stacked = self._rows(op.gate_up, 2 * op.intermediate, op.hidden, self.gate_up, expert)
            gate, up = row_dots([(stacked, unit), (stacked, unit + op.intermediate)], lanes, x, [], sums, [])
            T.buffer_store(inner, activation(op.activation, gate, 1) * up, [k, unit])

    def _down(self, t, chosen, weight, inner) -> None:
        op, lanes = self.op, self.tiles.lanes
        w = self._rows(op.down, op.hidden, op.intermediate, self.down)
        whole = self._rows(op.down, op.hidden, w.padded, self.down)
        x = T.alloc_buffer((op.top_k, w.padded), "float32", scope="global")
        sums = None if op.down.is_float else T.alloc_buffer((op.top_k, w.words), "float32", scope="global")
        with T.serial(op.top_k) as k:
            permute(whole, lanes, w.padded, lambda index, _: T.BufferLoad(inner, [k, index]), x, [k])
            if sums is not None:
                word_sums(w, lanes, x, [k], sums, [k])
        with T.parallel(op.hidden) as row:
            total = stack(1)
            T.buffer_store(total, T.float32(0), [0])
            with T.serial(op.top_k) as k:
                stacked = self._rows(op.down, op.hidden, op.intermediate, self.down, T.BufferLoad(chosen, [k]))
                (dot,) = row_dots([(stacked, row)], lanes, x, [k], sums, [k])
                T.buffer_store(total, T.BufferLoad(total, [0]) + T.BufferLoad(weight, [k]) * dot, [0])
            T.buffer_store(self.y, T.BufferLoad(total, [0]), [t, row])
