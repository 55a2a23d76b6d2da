"""Loops, conditionals, jumps, workgroup memory, atomics, arguments: through TVM's own lowering."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.script import ir as I
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from mlcrt.targets.vulkan.codegen import CodegenError, compile_kernels, lower

# ---- random loop nests over small integers, as nested tuples

condition = st.tuples(st.sampled_from(["lt", "eq", "ge"]), st.integers(0, 2), st.integers(0, 12))
statement = st.recursive(
    st.tuples(st.just("add"), st.integers(0, 3), st.integers(-5, 5))
    | st.tuples(st.just("scale"), st.integers(-3, 3))
    | st.tuples(st.just("mix"), st.integers(0, 2)),
    lambda s: st.tuples(st.just("for"), st.integers(0, 4), st.lists(s, min_size=1, max_size=3))
    | st.tuples(st.just("while"), st.integers(1, 5), st.lists(s, min_size=1, max_size=2))
    | st.tuples(st.just("unroll"), st.integers(1, 3), st.lists(s, min_size=1, max_size=2))
    | st.tuples(st.just("if"), condition, st.lists(s, min_size=1, max_size=2), st.lists(s, max_size=2))
    | st.tuples(st.just("leave"), st.sampled_from(["break", "continue"]), condition, s),
    max_leaves=8,
)
program = st.lists(statement, min_size=1, max_size=4)
COMPARE = {"lt": lambda a, b: a < b, "eq": lambda a, b: a == b, "ge": lambda a, b: a >= b}
MODULUS = 1009


def build(code) -> object:
    """Thread t runs `code` on an array of four accumulators that starts as x[t], t, 1, 2; y[t] is their mixture."""
    with IRBuilder() as builder, B.prim_func(s_tir=True):
        B.func_name("main")
        B.func_attr({"global_symbol": "main", "tirx.noalias": True})
        x, y = B.arg("x", B.Buffer((64,), "int32")), B.arg("y", B.Buffer((64,), "int32"))
        with B.thread_binding(64, thread="threadIdx.x") as t:
            acc = B.alloc_buffer((4,), "int32", scope="local")
            spare = B.alloc_buffer((64,), "int32", scope="local")
            for i, value in enumerate((B.BufferLoad(x, [t]), t, B.int32(1), B.int32(2))):
                B.buffer_store(acc, value, [i])
            emit(code, acc, spare, t, [t], 0, False)
            total = B.BufferLoad(acc, [0])
            for i in (1, 2, 3):
                total = tirx.floormod(total * 31 + B.BufferLoad(acc, [i]), MODULUS)
            B.buffer_store(y, total, [t])
    return builder.get()


def emit(code, acc, spare, t, scope: list, depth: int, jumps: bool) -> None:
    for part in code:
        kind = part[0]
        innermost = scope[-1]
        if kind == "add":
            B.buffer_store(acc, tirx.floormod(B.BufferLoad(acc, [part[1]]) + part[2] * innermost, MODULUS), [part[1]])
        elif kind == "scale":
            index = tirx.floormod(innermost, 4)  # a computed index into private memory
            B.buffer_store(acc, tirx.floormod(B.BufferLoad(acc, [index]) * part[1] + 1, MODULUS), [index])
        elif kind == "mix":
            value = B.BufferLoad(acc, [part[1]]) - B.BufferLoad(acc, [part[1] + 1])
            B.buffer_store(acc, tirx.floormod(value, MODULUS), [part[1]])
        elif kind in ("for", "unroll"):
            loop = B.serial(part[1]) if kind == "for" else B.unroll(part[1])
            with loop as i:
                emit(part[2], acc, spare, t, [*scope, i], depth + 1, kind == "for")
        elif kind == "while":
            B.buffer_store(spare, B.int32(0), [depth])
            with B.While(B.BufferLoad(spare, [depth]) < part[1]):
                B.buffer_store(spare, B.BufferLoad(spare, [depth]) + 1, [depth])
                emit(part[2], acc, spare, t, scope, depth + 1, True)
        elif kind == "if":
            test = COMPARE[part[1][0]](B.BufferLoad(acc, [part[1][1]]), innermost + part[1][2])
            with B.If(test):
                with B.Then():
                    emit(part[2], acc, spare, t, scope, depth + 1, jumps)
                if part[3]:
                    with B.Else():
                        emit(part[3], acc, spare, t, scope, depth + 1, jumps)
        elif kind == "leave":
            if jumps:
                test = COMPARE[part[2][0]](B.BufferLoad(acc, [part[2][1]]), innermost + part[2][2])
                with B.If(test), B.Then():
                    B.evaluate(tirx.break_loop() if part[1] == "break" else tirx.continue_loop())
            emit([part[3]], acc, spare, t, scope, depth, jumps)


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def interpret(code, acc: list[int], scope: list[int], jumps: bool) -> None:
    for part in code:
        kind = part[0]
        innermost = scope[-1]
        if kind == "add":
            acc[part[1]] = (acc[part[1]] + part[2] * innermost) % MODULUS
        elif kind == "scale":
            acc[innermost % 4] = (acc[innermost % 4] * part[1] + 1) % MODULUS
        elif kind == "mix":
            acc[part[1]] = (acc[part[1]] - acc[part[1] + 1]) % MODULUS
        elif kind in ("for", "unroll", "while"):
            for i in range(part[1]):
                try:
                    interpret(part[2], acc, scope if kind == "while" else [*scope, i], kind != "unroll")
                except _Break:
                    break
                except _Continue:
                    continue
        elif kind == "if":
            taken = COMPARE[part[1][0]](acc[part[1][1]], innermost + part[1][2])
            interpret(part[2] if taken else part[3], acc, scope, jumps)
        elif kind == "leave":
            if jumps and COMPARE[part[2][0]](acc[part[2][1]], innermost + part[2][2]):
                raise _Break if part[1] == "break" else _Continue
            interpret([part[3]], acc, scope, jumps)


def test_random_programs(execute):
    import tvm

    x = np.random.default_rng(1).integers(-500, 500, 64).astype(np.int32)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(program)
    def check(code):
        got = execute(tvm.IRModule({"main": build(code)}), x=x, y=np.zeros(64, np.int32))["y"]
        for t in range(64):
            acc = [int(x[t]), t, 1, 2]
            interpret(code, acc, [t], False)
            total = acc[0]
            for value in acc[1:]:
                total = (total * 31 + value) % MODULUS
            assert got[t] == total, (t, code)

    check()


def test_workgroup_memory_exchanges(execute):
    """Random permutations through static and dynamic shared memory, of several types and two rounds each."""

    @I.ir_module
    class Exchange:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((512,), "float16"), p: T.Buffer((128,), "int32"), y: T.Buffer((512,), "float16"),
                 z: T.Buffer((512,), "int32"), b: T.Buffer((512,), "bool")):  # fmt: skip
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for bx in T.thread_binding(4, thread="blockIdx.x"):
                halves = T.alloc_buffer((128,), "float16", scope="shared.dyn")
                words = T.alloc_buffer((256,), "int32", scope="shared.dyn")
                flags = T.alloc_buffer((128,), "bool", scope="shared")
                for tx in T.thread_binding(128, thread="threadIdx.x"):
                    halves[tx] = x[bx * 128 + tx]
                    words[tx * 2] = bx * 1000 + tx
                    words[tx * 2 + 1] = -tx
                    flags[tx] = p[tx] < 64
                    T.tvm_storage_sync("shared")
                    y[bx * 128 + tx] = halves[p[tx]]
                    z[bx * 128 + tx] = words[p[tx] * 2] - words[p[p[tx]] * 2 + 1]
                    b[bx * 128 + tx] = flags[127 - tx]

    rng = np.random.default_rng(2)
    x, p = rng.standard_normal(512).astype(np.float16), rng.permutation(128).astype(np.int32)
    got = execute(Exchange, (4,), x=x, p=p, y=x * 0, z=np.zeros(512, np.int32), b=np.zeros(512, bool))
    np.testing.assert_array_equal(got["y"].reshape(4, 128), x.reshape(4, 128)[:, p])
    np.testing.assert_array_equal(got["z"].reshape(4, 128), np.arange(4)[:, None] * 1000 + p + p[p])
    np.testing.assert_array_equal(got["b"].reshape(4, 128), np.tile((p < 64)[::-1], (4, 1)))


def test_vector_access_to_workgroup_memory(execute):
    @I.ir_module
    class Tile:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((512,), "float32"), y: T.Buffer((512,), "float32"), n: T.int32):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for _bx in T.thread_binding(1, thread="blockIdx.x"):
                tile = T.alloc_buffer((512,), "float32", scope="shared")
                for tx in T.thread_binding(64, thread="threadIdx.x"):
                    for v in T.vectorized(8):
                        tile[tx * 8 + v] = x[tx * 8 + v]
                    T.tvm_storage_sync("shared")
                    tile[tx * 8 + n] = T.float32(-1)  # one component of a vector
                    T.tvm_storage_sync("shared")
                    for v in T.vectorized(4):
                        y[tx * 8 + v] = tile[(63 - tx) * 8 + 4 + v]
                        y[tx * 8 + 4 + v] = tile[(63 - tx) * 8 + v]

    x = np.arange(512, dtype=np.float32)
    expected = x.copy().reshape(64, 8)
    expected[:, 5] = -1
    got = execute(Tile, x=x, y=x * 0, n=5)["y"]
    np.testing.assert_array_equal(got.reshape(64, 8), np.roll(expected[::-1], 4, axis=1))


def test_global_memory_is_exchanged_across_a_barrier(execute):
    @I.ir_module
    class Reverse:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((256,), "int32")):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for _bx in T.thread_binding(1, thread="blockIdx.x"):
                held = T.alloc_buffer((1,), "int32", scope="local")
                for tx in T.thread_binding(256, thread="threadIdx.x"):
                    x[tx] = x[tx] + 1
                    T.tvm_storage_sync("shared")
                    held[0] = x[255 - tx]
                    T.tvm_storage_sync("shared")
                    x[tx] = held[0]

    x = np.arange(256, dtype=np.int32)
    np.testing.assert_array_equal(execute(Reverse, x=x)["x"], x[::-1] + 1)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "float32"])
def test_atomic_add(execute, dtype):
    @I.ir_module
    class Count:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((1024,), "int32"), bins: T.Buffer((8,), dtype)):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for bx in T.thread_binding(16, thread="blockIdx.x"):
                for tx in T.thread_binding(64, thread="threadIdx.x"):
                    T.evaluate(
                        tirx.call_intrin(dtype, "tirx.atomic_add", bins.access_ptr("rw", offset=x[bx * 64 + tx]),
                                         T.Cast(dtype, x[bx * 64 + tx] + 1)))  # fmt: skip

    x = np.random.default_rng(3).integers(0, 8, 1024).astype(np.int32)
    got = execute(Count, (16,), x=x, bins=np.zeros(8, dtype))["bins"]
    np.testing.assert_array_equal(got, (np.bincount(x, minlength=8) * np.arange(1, 9)).astype(dtype))


def test_scalars_of_every_type_arrive(execute):
    @I.ir_module
    class Scalars:
        @T.prim_func(s_tir=True)
        def main(y: T.Buffer((10,), "float32"), a: T.int8, b: T.uint8, c: T.int16, d: T.uint16, e: T.int32, f: T.uint32,
                 g: T.int64, h: T.float32, i: T.float16, j: T.bool):  # fmt: skip
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for _tx in T.thread_binding(1, thread="threadIdx.x"):
                y[0] = T.Cast("float32", a)
                y[1] = T.Cast("float32", b)
                y[2] = T.Cast("float32", c)
                y[3] = T.Cast("float32", d)
                y[4] = T.Cast("float32", e)
                y[5] = T.Cast("float32", f)
                y[6] = T.Cast("float32", g)
                y[7] = h
                y[8] = T.Cast("float32", i)
                y[9] = T.Cast("float32", j)

    values = dict(a=-7, b=250, c=-3000, d=65000, e=-(2**20), f=2**31, g=-(2**40), h=1.25, i=0.5, j=True)
    got = execute(Scalars, y=np.zeros(10, np.float32), **values)["y"]
    np.testing.assert_array_equal(got, np.array([float(v) for v in values.values()], np.float32))


def test_more_arguments_than_push_constants_go_through_a_buffer(execute):
    count = 20
    with IRBuilder() as builder, B.prim_func(s_tir=True):
        B.func_name("main")
        B.func_attr({"global_symbol": "main", "tirx.noalias": True})
        inputs = [B.arg(f"x{i}", B.Buffer((64,), "float32")) for i in range(count)]
        y = B.arg("y", B.Buffer((64,), "float32"))
        with B.thread_binding(64, thread="threadIdx.x") as t:
            total = B.BufferLoad(inputs[0], [t])
            for x in inputs[1:]:
                total = total + B.BufferLoad(x, [t])
            B.buffer_store(y, total, [t])
    import tvm

    module = tvm.IRModule({"main": builder.get()})
    (shader,) = compile_kernels(lower(module))
    assert shader.arguments_in_buffer and shader.argument_bytes == 8 * 21 and shader.push_constant_bytes == 8
    arrays = {f"x{i}": np.full(64, i, np.float32) for i in range(count)}
    got = execute(module, **arrays, y=np.zeros(64, np.float32))["y"]
    np.testing.assert_array_equal(got, np.full(64, sum(range(count)), np.float32))


def test_symbolic_shapes_and_misaligned_vectors(execute):
    """A vector access whose alignment cannot be proven is split, never wrong."""

    @I.ir_module
    class Shift:
        @T.prim_func(s_tir=True)
        def main(x_handle: T.handle, y_handle: T.handle, by: T.int32):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            n = T.int32()
            x = T.match_buffer(x_handle, (n,), "float16")
            y = T.match_buffer(y_handle, (n,), "float16")
            for bx in T.thread_binding((n + 255) // 256, thread="blockIdx.x"):
                for tx in T.thread_binding(32, thread="threadIdx.x"):
                    if bx * 256 + tx * 8 + 8 + by <= n:
                        for v in T.vectorized(8):
                            y[bx * 256 + tx * 8 + v] = x[bx * 256 + tx * 8 + by + v]

    x = np.random.default_rng(4).standard_normal(1000).astype(np.float16)
    got = execute(Shift, (4,), x=x, y=x * 0, by=3, n=1000)["y"]
    expected = np.where(np.arange(1000) < 992, np.roll(x, -3), np.float16(0))
    np.testing.assert_array_equal(got, expected)


def test_what_is_missing_is_named():
    @I.ir_module
    class Warp:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((64,), "float32")):
            T.func_attr({"global_symbol": "main"})
            for _bx in T.thread_binding(1, thread="blockIdx.x"):
                w = T.alloc_buffer((64,), "float32", scope="warp")
                for tx in T.thread_binding(64, thread="threadIdx.x"):
                    w[tx] = x[tx]
                    x[tx] = w[63 - tx]

    with pytest.raises(CodegenError, match="main_kernel cannot be compiled for Vulkan: buffer w: memory scope 'warp'"):
        compile_kernels(lower(Warp))
