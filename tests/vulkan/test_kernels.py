"""Whole kernels: what inference runs, hand-written and from TVM's stock (topi scheduled by dlight)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from tvm import te, topi
from tvm.s_tir import dlight
from tvm.script import ir as I
from tvm.script import tirx as T

from mlcrt.targets.vulkan.codegen import compile_kernels, lower, vulkan_target
from mlcrt.targets.vulkan.codegen.analysis import statements

RULES = [dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(),
         dlight.gpu.Transpose(), dlight.gpu.Fallback()]  # fmt: skip


def test_q4_gemv_with_subgroup_reduction(execute):
    """y = (codes - 8) * scale @ x: four rows a workgroup, 16-byte loads, any subgroup size."""
    rows, columns, threads = 64, 1024, 64

    @I.ir_module
    class Gemv:
        @T.prim_func(s_tir=True)
        def main(w: T.Buffer((rows, columns // 8), "uint32"), s: T.Buffer((rows, columns // 32), "float16"),
                 x: T.Buffer((columns,), "float16"), y: T.Buffer((rows,), "float32")):  # fmt: skip
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for bx in T.thread_binding(rows, thread="blockIdx.x"):
                parts = T.alloc_buffer((threads,), "float32", scope="shared")
                total = T.alloc_buffer((1,), "float32", scope="local")
                words = T.alloc_buffer((4,), "uint32", scope="local")
                for tx in T.thread_binding(threads, thread="threadIdx.x"):
                    total[0] = T.float32(0)
                    for k in range((columns // 32 + threads - 1) // threads):
                        if k * threads + tx < columns // 32:
                            for v in T.vectorized(4):
                                words[v] = w[bx, (k * threads + tx) * 4 + v]
                            for v in range(32):
                                shift = T.bind(T.uint32(4) * T.Cast("uint32", v % 8))
                                code = T.bind(T.bitwise_and(T.shift_right(words[v // 8], shift), T.uint32(15)))
                                scale = T.bind(T.Cast("float32", s[bx, k * threads + tx]))
                                value = T.bind(T.Cast("float32", x[(k * threads + tx) * 32 + v]))
                                total[0] = total[0] + (T.Cast("float32", code) - T.float32(8)) * value * scale
                    total[0] = T.call_pure_extern("float32", "subgroup_add", total[0])
                    if T.call_pure_extern("int32", "subgroup_lane") == 0:
                        parts[T.call_pure_extern("int32", "subgroup_id")] = total[0]
                    T.tvm_storage_sync("shared")
                    if tx == 0:
                        total[0] = T.float32(0)
                        for i in range(T.call_pure_extern("int32", "subgroup_count")):
                            total[0] = total[0] + parts[i]
                        y[bx] = total[0]

    rng = np.random.default_rng(1)
    w = rng.integers(0, 2**32, (rows, columns // 8), dtype=np.uint64).astype(np.uint32)
    s, x = rng.standard_normal((rows, columns // 32)).astype("f2"), rng.standard_normal(columns).astype("f2")
    codes = (w[:, :, None] >> (np.arange(8, dtype=np.uint32) * 4) & 15).reshape(rows, columns).astype(np.float64) - 8
    expected = codes * np.repeat(s.astype(np.float64), 32, 1) @ x.astype(np.float64)
    got = execute(Gemv, (rows,), w=w, s=s, x=x, y=np.zeros(rows, np.float32))["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())


def test_rms_norm(execute):
    rows, columns, threads = 5, 576, 64

    @I.ir_module
    class Norm:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((rows, columns), "float16"), g: T.Buffer((columns,), "float32"),
                 y: T.Buffer((rows, columns), "float16")):  # fmt: skip
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for bx in T.thread_binding(rows, thread="blockIdx.x"):
                parts = T.alloc_buffer((threads,), "float32", scope="shared")
                total = T.alloc_buffer((1,), "float32", scope="local")
                for tx in T.thread_binding(threads, thread="threadIdx.x"):
                    total[0] = T.float32(0)
                    for k in range(columns // threads):
                        value = T.bind(T.Cast("float32", x[bx, k * threads + tx]))
                        total[0] = total[0] + value * value
                    parts[tx] = total[0]
                    T.tvm_storage_sync("shared")
                    for step in T.unroll(6):
                        if tx < T.shift_right(32, step):
                            parts[tx] = parts[tx] + parts[tx + T.shift_right(32, step)]
                        T.tvm_storage_sync("shared")
                    total[0] = T.rsqrt(parts[0] * T.float32(1 / columns) + T.float32(1e-5))
                    for k in range(columns // threads):
                        normed = T.bind(T.Cast("float32", x[bx, k * threads + tx]) * total[0])
                        y[bx, k * threads + tx] = T.Cast("float16", normed * g[k * threads + tx])

    rng = np.random.default_rng(2)
    x, g = rng.standard_normal((rows, columns)).astype("f2"), rng.standard_normal(columns).astype("f4")
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * g
    got = execute(Norm, (rows,), x=x, g=g, y=x * 0)["y"]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)


def test_shared_memory_matrix_product(execute):
    m, n, k, tile = 64, 48, 80, 16

    @I.ir_module
    class Gemm:
        @T.prim_func(s_tir=True)
        def main(a: T.Buffer((m, k), "float16"), b: T.Buffer((k, n), "float16"), c: T.Buffer((m, n), "float32")):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            for by in T.thread_binding(m // tile, thread="blockIdx.y"):
                for bx in T.thread_binding(n // tile, thread="blockIdx.x"):
                    sa = T.alloc_buffer((tile, tile), "float16", scope="shared.dyn")
                    sb = T.alloc_buffer((tile, tile), "float32", scope="shared.dyn")
                    acc = T.alloc_buffer((1,), "float32", scope="local")
                    for ty in T.thread_binding(tile, thread="threadIdx.y"):
                        for tx in T.thread_binding(tile, thread="threadIdx.x"):
                            acc[0] = T.float32(0)
                            for ko in range(k // tile):
                                sa[ty, tx] = a[by * tile + ty, ko * tile + tx]
                                sb[ty, tx] = T.Cast("float32", b[ko * tile + ty, bx * tile + tx])
                                T.tvm_storage_sync("shared")
                                for ki in range(tile):
                                    acc[0] = acc[0] + T.Cast("float32", sa[ty, ki]) * sb[ki, tx]
                                T.tvm_storage_sync("shared")
                            c[by * tile + ty, bx * tile + tx] = acc[0]

    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((m, k)).astype("f2"), rng.standard_normal((k, n)).astype("f2")
    (shader,) = compile_kernels(lower(Gemm))
    assert shader.workgroup_size == (16, 16, 1) and shader.shared_bytes == tile * tile * (2 + 4)
    got = execute(Gemm, (n // tile, m // tile), a=a, b=b, c=np.zeros((m, n), np.float32))["c"]
    np.testing.assert_allclose(got, a.astype("f8") @ b.astype("f8"), rtol=1e-4, atol=1e-4)


# ---- stock kernels


def stock(*tensors) -> tuple[tvm.IRModule, tuple[int, ...]]:
    """A topi computation scheduled for the GPU, and its grid."""
    module = tvm.IRModule({"main": te.create_prim_func(list(tensors)).with_attr("global_symbol", "main")})
    with vulkan_target():
        module = dlight.ApplyDefaultSchedule(*RULES)(module)
    lowered = lower(module)
    (function,) = lowered.functions.values()
    grid = dict.fromkeys(("blockIdx.x", "blockIdx.y", "blockIdx.z"), 1)

    for stmt in statements(function.body):
        if type(stmt).__name__ == "AttrStmt" and stmt.attr_key == "thread_extent":
            tag = str(stmt.node.thread_tag)
            if tag in grid:
                grid[tag] = int(stmt.value)
    return lowered, tuple(grid.values())


def run_stock(execute, inputs: dict[str, np.ndarray], build, out_shape, out_dtype) -> np.ndarray:
    placeholders = [te.placeholder(v.shape, str(v.dtype), name=k) for k, v in inputs.items()]
    result = build(*placeholders)
    lowered, grid = stock(*placeholders, result)
    (function,) = lowered.functions.values()
    (output,) = {p.name.removesuffix("_ptr") for p in function.params} - set(inputs)
    return execute(lowered, grid, lowered=True, **inputs, **{output: np.zeros(out_shape, out_dtype)})[output]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 96, 80), (1, 128, 256), (33, 40, 17)])
def test_topi_matmul(execute, dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(4)
    a, b = rng.uniform(-1, 1, (m, k)).astype(dtype), rng.uniform(-1, 1, (k, n)).astype(dtype)
    got = run_stock(execute, {"a": a, "b": b}, topi.matmul, (m, n), dtype)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    np.testing.assert_allclose(got, a.astype("f8") @ b.astype("f8"), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_topi_softmax(execute, dtype):
    x = (np.random.default_rng(5).standard_normal((6, 200)) * 4).astype(dtype)
    x[2, 50:] = -np.inf  # a causal mask
    got = run_stock(execute, {"x": x}, topi.nn.softmax, x.shape, dtype)
    e = np.exp(x.astype("f8") - x.max(1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-5 if dtype == "float32" else 2e-2, atol=1e-6)


erf = np.vectorize(math.erf)
OPERATORS = {  # name → (topi, NumPy)
    "gelu": (lambda x: x * 0.5 * (1 + topi.erf(x * 0.70710678)), lambda x: x * 0.5 * (1 + erf(x * 0.70710678))),
    "silu": (lambda x: x * topi.sigmoid(x), lambda x: x / (1 + np.exp(-x))),
    "tanh": (topi.tanh, np.tanh),
    "exp": (topi.exp, np.exp),
    "sum": (lambda x: topi.sum(x, axis=1), lambda x: x.sum(1)),
    "max": (lambda x: topi.max(x, axis=1), lambda x: x.max(1)),
    "argmax": (lambda x: topi.argmax(x, axis=1), lambda x: x.argmax(1).astype(np.int32)),
    "transpose": (topi.transpose, np.transpose),
    "round": (topi.round, np.rint),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_topi_operators(execute, name):
    build, reference = OPERATORS[name]
    x = np.random.default_rng(6).standard_normal((48, 70)).astype(np.float32)
    expected = reference(x.astype(np.float64))
    dtype = expected.dtype if expected.dtype == np.int32 else np.float32
    got = run_stock(execute, {"x": x}, build, expected.shape, dtype)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_topi_take_and_gather(execute):
    table = np.random.default_rng(7).standard_normal((50, 64)).astype(np.float16)
    rows = np.random.default_rng(8).integers(0, 50, 9).astype(np.int32)
    got = run_stock(execute, {"table": table, "rows": rows}, lambda t, r: topi.take(t, r, axis=0), (9, 64), "float16")
    np.testing.assert_array_equal(got, table[rows])
