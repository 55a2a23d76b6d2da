"""Compiled kernels as the ROCm modules that a library holds."""

from __future__ import annotations

import functools
import struct

import tvm
import tvm_ffi
from tvm.script import tirx as T

from mlcrt.targets.rocm.assembly import Assembly, compile_assembly
from mlcrt.targets.rocm.bundle import bundle

HANDLE, INT32, INT64, FLOAT32, FLOAT64 = (3, 64), (0, 32), (0, 64), (2, 32), (2, 64)  # DLPack code and bits
BLOCKS = ("blockIdx.x", "threadIdx.x")


@T.prim_func(s_tir=True)
def mixed(a: T.handle, zoom: T.float32, first: T.int64, out: T.handle, n: T.int32):
    """out[i] = a[i + first] * zoom: addresses and three kinds of scalars, in no particular order."""
    T.func_attr({"tirx.noalias": True, "global_symbol": "mixed"})
    A = T.match_buffer(a, (n,), "float32")
    B = T.match_buffer(out, (64,), "float32")
    for bx in T.thread_binding(2, thread="blockIdx.x"):
        for tx in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("b"):
                T.reads(A[0:n])
                T.writes(B[0:64])
                if T.Cast("int64", bx * 32 + tx) + first < T.Cast("int64", n):
                    B[bx * 32 + tx] = A[T.Cast("int64", bx * 32 + tx) + first] * zoom


@functools.cache
def mixed_kernel(arch: str = "gfx1100") -> Assembly:
    return compile_assembly(mixed, arch)


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def payload(code: bytes, kernel: str, arguments, tags=BLOCKS) -> bytes:
    """TVM's serialised form of a device module with one kernel; arguments: (DLPack type code, bits) each."""
    types = b"".join(struct.pack("<BBH", code, bits, 1) for code, bits in arguments)
    head = text("hsaco") + struct.pack("<Q", 1) + text(kernel) + text(kernel)
    info = struct.pack("<Q", len(arguments)) + types + struct.pack("<Q", len(tags)) + b"".join(map(text, tags))
    return head + info + struct.pack("<Q", 0) + text(code)


def load(data: bytes):
    """The module that the C++ runtime makes of a payload."""
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.hip")(data)


def vector_payload(assembly: Assembly | None = None, arch: str = "gfx1100") -> bytes:
    """The module of `vector_kernel`: c = a + b over 1000 floats."""
    assembly = assembly or vector_kernel(arch)
    return payload(assembly.code, "vector_add_kernel", [HANDLE] * 3)


@functools.cache
def vector_kernel(arch: str = "gfx1100") -> Assembly:
    import rocm_kernels

    return compile_assembly(rocm_kernels.vector_add, arch)


def vector_bundle(*arches: str) -> bytes:
    codes = {arch: vector_kernel(arch).code for arch in arches}
    return payload(bundle(codes), "vector_add_kernel", [HANDLE] * 3)


def tensor(device, array):
    return tvm.runtime.tensor(array, device)
