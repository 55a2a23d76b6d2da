"""The emulator of CUDA kernels catches what it is there to catch: small kernels, each with one fault, and without."""

from __future__ import annotations

import os
from concurrent.futures import Future

import emulate
import numpy as np
import ptx
import pytest

from mlcrt.targets.cuda import instructions, warpgroup

HELPERS = "".join(
    (
        "#include <cuda.h>\n#define uchar unsigned char\n",
        *(instructions._COPY, instructions._TRANSPOSE, instructions._MMA),
        *(warpgroup._mma_source("mlcrt_warpgroup_mma64", 64), warpgroup._BELL),
        *(warpgroup._BULK_COPY, warpgroup._AWAIT_BELL),
        *(
            instructions.statement_source(name, text)
            for name, text in {
                "mlcrt_commit": "cp.async.commit_group;",
                "landed": "cp.async.wait_group 0;",
                "publish": "fence.proxy.async.shared::cta;",
                "begin": "wgmma.fence.sync.aligned;",
                "end": "wgmma.commit_group.sync.aligned;",
                "finished": "wgmma.wait_group.sync.aligned 0;",
            }.items()
        ),
    )
)

# x: 128 floats; y: 128 floats. A warpgroup of 128 threads.
START = "extern __shared__ __align__(1024) uchar s[]; int t = threadIdx.x; float *f = (float *)s;"
COPY = "if (t < 32) mlcrt_copy16(s + 16 * t, x + 4 * t); mlcrt_commit();"
BELLS = "uchar *bell = s + 16384; if (t == 0) { mlcrt_bell(bell); publish(); } __syncthreads();"
FILL = "for (int i = 0; i < 4; ++i) mlcrt_copy16(s + 16 * (t + 128 * i), x); mlcrt_commit(); landed();"
MULTIPLY = "float c[64] = {}; unsigned a[4] = {}; begin(); mlcrt_warpgroup_mma64(c, a[0], a[1], a[2], a[3], s); end();"

RIGHT = {
    "copy": f"{COPY} landed(); __syncthreads(); y[t] = f[t];",
    "bulk": f"{BELLS} if (t == 0) mlcrt_bulk_copy(s, x, 512, bell); mlcrt_await_bell(bell, 0); y[t] = f[t];",
    "exchange": "y[t] = __shfl_xor_sync(0xFFFFFFFF, __shfl_xor_sync(0xFFFFFFFF, x[t], 5), 5);",
    "product": f"{FILL} publish(); __syncthreads(); {MULTIPLY} finished(); y[t] = x[t] + c[0];",
}
NOT_THERE = {  # what is read is not a number, or not what is in x
    "copy_not_awaited": f"{COPY} __syncthreads(); y[t] = f[t];",
    "copy_no_barrier": f"{COPY} landed(); y[t] = f[t];",
    "bulk_not_awaited": f"{BELLS} if (t == 0) mlcrt_bulk_copy(s, x, 512, bell); __syncthreads(); y[t] = f[t];",
    "bulk_other_turn": f"{BELLS} if (t == 0) mlcrt_bulk_copy(s, x, 512, bell); mlcrt_await_bell(bell, 1); y[t] = f[t];",
    "product_not_awaited": f"{FILL} publish(); __syncthreads(); {MULTIPLY} y[t] = x[t] + c[0]; finished();",
    "shared_unwritten": "y[t] = f[t];",
}
FAULTS = {
    "product_not_published": (f"{FILL} __syncthreads(); {MULTIPLY} finished();", "has not published"),
    "product_published_early": (
        FILL.replace("landed();", "publish(); landed();") + f" __syncthreads(); {MULTIPLY} finished();",
        "has not published",
    ),
    "product_during_copy": (
        f"{FILL.replace('landed();', '')} __syncthreads(); {MULTIPLY} finished(); landed();", "under way",
    ),
    "product_no_fence": (
        f"{FILL} publish(); __syncthreads(); {MULTIPLY.replace('begin();', '')} finished();", "wgmma.fence is missing",
    ),
    "product_never_awaited": (f"{FILL} publish(); __syncthreads(); {MULTIPLY}", "products under way"),
    "product_of_one_warp": (f"{FILL} publish(); __syncthreads(); if (t < 32) {{ {MULTIPLY} finished(); }}", "differ"),
    "bell_not_published": (
        f"{BELLS.replace('publish();', '')} if (t == 0) mlcrt_bulk_copy(s, x, 512, bell); mlcrt_await_bell(bell, 0);",
        "mbarrier that has not been published",
    ),
    "bell_never_rung": (f"{BELLS} mlcrt_await_bell(bell, 0);", "nobody has started"),
    "read_outside": ("y[t] = x[t + 1024];", "outside its buffer"),
    "write_outside": ("y[t - 1024] = x[t];", "outside its buffer"),
    "copy_outside": ("mlcrt_copy16(s + 16384 + 16 * t, x);", "outside the block's shared memory"),
    "store_outside": ("f[16384 / 4 + 16 + t] = 1;", "outside the block's dynamic shared memory"),
    "index_outside": ("float c[4] = {}; c[t] = 1; y[t] = c[0];", "outside its array"),
    "not_aligned": ("*(float4 *)(y + 1) = float4{1, 2, 3, 4};", "not aligned"),
    "copy_not_aligned": ("mlcrt_copy16(s, x + 1);", "not aligned"),
    "barrier_in_a_branch": ("if (t < 64) __syncthreads();", "not all threads"),
    "exchange_in_a_branch": ("if (t % 2) y[t] = __shfl_xor_sync(0xFFFFFFFF, x[t], 1);", "not all lanes"),
}  # fmt: skip
BODIES = {**RIGHT, **NOT_THERE, **{name: body for name, (body, _) in FAULTS.items()}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(name, x, reverse) → y"""
    import tvm_ffi

    missing = emulate.missing()
    if missing and os.environ.get("CI") != "true":
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("emulator")
    machine: Future = Future()
    machine.set_result(emulate.compiled_machine(folder))
    kernels = [emulate.Kernel(name, (3, 3), ("threadIdx.x", emulate.DYNAMIC)) for name in BODIES]
    source = HELPERS + "".join(
        f'extern "C" __global__ void {name}(float* x, float* y) {{\n{START} {body}\n}}\n'
        for name, body in BODIES.items()
    )
    emulate.build(kernels, source, folder / "kernels.so", machine)
    module = tvm_ffi.load_module(str(folder / "kernels.so"))

    def call(name: str, x: np.ndarray, reverse: bool) -> np.ndarray:
        emulate.order(folder / "kernels.so", reverse)
        buffers = [emulate.Fenced(a, at_end=not reverse) for a in (x, np.full(128, np.nan, np.float32))]
        module[name](*(tvm_ffi.from_dlpack(b.values).data_ptr() for b in buffers), 128, 16384 + 16)
        return buffers[1].result()

    return call


X = np.random.default_rng(0).standard_normal(128).astype(np.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_let_through(name, reverse, run):
    np.testing.assert_array_equal(run(name, X, reverse), X)


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_not_there_yet_is_not_seen(name, run):
    assert any((run(name, X, reverse) != X).any() for reverse in (False, True))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(name, run):
    with pytest.raises(RuntimeError, match=f"{name}: .*{FAULTS[name][1]}"):
        for reverse in (False, True):
            run(name, X, reverse)


def test_inline_assembly_that_is_not_known():
    with pytest.raises(ValueError, match="not an instruction"):
        ptx.translate('asm volatile("?what %0;" :: "r"(x));')
    assert ptx.translate('asm("x.y::z {%0, %1}, [%2], _, 0x1F;" : "=r"(a[0]), "=r"(b) : "r"(f(")")) : "memory");') == (
        '{ ptx_x_y_z(ptx_refs((a[0]), (b)), (f(")")), 0x1F); }'
    )
