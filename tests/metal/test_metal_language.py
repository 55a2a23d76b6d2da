"""The C++ front end refuses kernels that Metal would refuse, and the machine notices what Metal leaves undefined."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import msl
import numpy as np
import pytest

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n\n"
ARGUMENTS = """  device float* x [[ buffer(0) ]],
  device half* h [[ buffer(1) ]],
  constant sizes_t& arg [[ buffer(2) ]],
  uint blockIdx [[threadgroup_position_in_grid]],
  uint threadIdx [[thread_position_in_threadgroup]]
"""


def kernel(body: str, arguments: str = ARGUMENTS, threadgroup: str = "threadgroup float shared[64];") -> msl.Kernel:
    source = f"{HEAD}struct sizes_t {{\n  int n[2];\n}};\n\nkernel void test(  {arguments.strip()}\n) {{\n"
    source += f"  {threadgroup}\n  thread float own[8];\n  {body}\n}}\n"
    return msl.Kernel("test", source, ((3, 64), (3, 64), (0, 32)), ("blockIdx.x", "threadIdx.x"))


RIGHT = """own[0] = x[threadIdx] * (float)h[threadIdx] + (float)arg.n[0];
  shared[threadIdx] = simd_shuffle_xor(own[0], (ushort)1);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  *(thread float4*)(own + 4) = *(device float4*)(x + 4);
  float4 v = float4(1.0f, 2.0f, 3.0f, own[1]) * 2.0f;
  half4 w = *(device half4*)(h + 4);
  half one = (half)v[1] + w.x + 1.0h;
  uint bits = as_type<uint>(max(own[0], v.w)) | 3;
  x[threadIdx] = select(exp(v.x), precise::sin(own[2]), bits == 0) + rsqrt(2.0f) + (float)(exp(one));
  simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_half8x8 a, b;
  simdgroup_load(a, h, 8, 0, false);
  simdgroup_load(b, h, 8, 0, true);
  simdgroup_multiply_accumulate(m, a, b, m);
  simdgroup_store(m, shared, 8, 0, false);"""

WRONG = {
    "device pointer kept as a thread pointer": "thread float* p = x; p[0] = 1.0f;",
    "threadgroup pointer kept as a device pointer": "device float* p = shared; p[0] = 1.0f;",
    "vector load cast from device to thread": "float4 v = *(thread float4*)(x + 4);",
    "vector store cast from threadgroup to device": "*(device float4*)(shared + 4) = float4(1.0f);",
    "cast without an address space": "float4 v = *(float4*)(x + 4);",
    "threadgroup variable taken for a thread array": "thread float* p = shared;",
    "writing to constant memory": "arg.n[0] = 1;",
    "double arithmetic": "x[0] = own[0] * 1.5;",
    "no exp of int": "x[0] = exp(arg.n[0]);",
    "mixed max": "x[0] = max(own[0], arg.n[0]);",
    "no such builtin": "x[0] = __shfl_xor(own[0], 1);",
    "as_type changes the size": "x[0] = as_type<float>(h[0]);",
    "shuffle of something that is no scalar": "simd_shuffle_xor(arg, (ushort)1);",
    "vectors of different lanes": "float4 v = float2(1.0f, 2.0f);",
    "half vector from a float vector": "half4 v = float4(1.0f);",
    "too many elements": "float4 v = float4(1.0f, 2.0f, 3.0f, 4.0f, 5.0f);",
    "eight lanes": "half8 v;",
    "barrier without flags": "threadgroup_barrier();",
    "matrix of another size": "simdgroup_matrix<float, 16, 16> m;",
    "matrix loaded from another type": "simdgroup_half8x8 m; simdgroup_load(m, x, 8, 0, false);",
    "matrix loaded from thread memory": "simdgroup_float8x8 m; simdgroup_load(m, own, 8, 0, false);",
}


def test_a_right_kernel_passes():
    assert msl.check([kernel(RIGHT)]) == []


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_kernel_fails(body):
    assert msl.check([kernel(body)])


def test_misspelt_attributes_fail():
    assert msl.check([kernel("", ARGUMENTS.replace("position_in_grid", "position_in_gird"))])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("device half* h [[ buffer(1) ]]", "device half* h [[ buffer(3) ]]"),  # bound elsewhere than it stands
        ("device half* h", "threadgroup half* h"),
        ("constant sizes_t& arg [[ buffer(2) ]],", ""),  # the host passes a number that nothing takes
    ],
)
def test_arguments_that_the_runtime_does_not_bind_that_way(old, new):
    with pytest.raises(ValueError):
        assert kernel("", ARGUMENTS.replace(old, new)).signature


def launch(made: msl.Kernel, x: np.ndarray, h: np.ndarray, n: int, grid: int, threads: int, order: int = 0) -> None:
    module, reverse = msl.executable([made])
    reverse(order)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, h)]
    module["test"](*pointers, n, grid, threads)


def memory(count: int = 64) -> SimpleNamespace:
    return SimpleNamespace(x=np.arange(count, dtype=np.float32), h=np.ones(count, np.float16))


def result(body: str, order: int = 0, threads: int = 64) -> np.ndarray:
    m = memory()
    launch(kernel(body), m.x, m.h, 7, 1, threads, order)
    return m.x


NEIGHBOUR = "shared[threadIdx] = x[threadIdx]; {} x[threadIdx] = shared[(threadIdx + 1) % 64];"


def test_threads_meet_at_a_barrier():
    whole = NEIGHBOUR.format("threadgroup_barrier(mem_flags::mem_threadgroup);")
    for order in (0, 1):
        np.testing.assert_array_equal(result(whole, order), np.roll(np.arange(64), -1))


def test_a_missing_barrier_shows():
    wrong = [result(NEIGHBOUR.format(""), order) for order in (0, 1)]
    assert not np.array_equal(*wrong)


def test_shuffles_exchange_within_a_simdgroup():
    got = result("x[threadIdx] = simd_shuffle_xor(x[threadIdx], (ushort)16);")
    np.testing.assert_array_equal(got, np.arange(64) ^ 16)
    got = result("x[threadIdx] = simd_shuffle_down(x[threadIdx], 1);")
    np.testing.assert_array_equal(got[:31], np.arange(1, 32))
    assert np.isnan(got[[31, 63]]).all()  # nothing is promised beyond the last lane


def test_matrices_multiply():
    body = """simdgroup_float8x8 a, b, c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(a, x, 8, 0, false); simdgroup_load(b, x, 8, 0, true);
    simdgroup_multiply_accumulate(c, a, b, c); simdgroup_store(c, x, 8, 0, false);"""
    a = np.arange(64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(result(body, threads=32).reshape(8, 8), a @ a.T + 1)


def test_fast_sine_has_no_value_outside_its_domain():
    body = "x[threadIdx] = threadIdx < 32 ? sin((float)threadIdx) : precise::sin((float)threadIdx);"
    got = result(body)
    assert np.isnan(got[4:32]).all() and np.abs(got[:4] - np.sin(np.arange(4))).max() <= 2**-13
    np.testing.assert_allclose(got[32:], np.sin(np.arange(32, 64)), atol=1e-6)


def test_threadgroup_memory_starts_undefined():
    assert np.isnan(result("x[threadIdx] = shared[threadIdx];")).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx < 40) { threadgroup_barrier(mem_flags::mem_threadgroup); }", "reach the barrier"),
        ("if (threadIdx < 8) x[threadIdx] = simd_shuffle_xor(x[threadIdx], (ushort)8);", "take part in the shuffle"),
        ("if (threadIdx != 3) { simdgroup_barrier(mem_flags::mem_none); }", "not all lanes"),
        ("shared[threadIdx + 1] = x[threadIdx];", "outside its array"),
        ("own[arg.n[0] + 1] = x[threadIdx]; x[0] = own[3];", "outside its array"),
        ("float4 v = *(device float4*)(x + 1); x[threadIdx] = v.x;", "not aligned"),
    ],
)
def test_undefined_behaviour_is_an_error(body, message):
    with pytest.raises(RuntimeError, match=message):
        result(body)
