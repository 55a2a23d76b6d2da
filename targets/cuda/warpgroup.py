"""Hopper's tensor cores, driven by warpgroups; see kernels/mma/unit.py for what each statement does."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.mma import WarpgroupUnit

from .instructions import TensorCores, address, call, statement


def _mma_source(name: str, n: int) -> str:
    """wgmma with A in registers. Matrix descriptor (PTX ISA, "Matrix descriptor format"): address / 16; 1024 bytes / 16
    between eights of rows at bit 32; 128-byte swizzle at bit 62."""
    count = n // 2
    results = ", ".join(f"%{i}" for i in range(count))
    left = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(c[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void {name}(float *c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, const void *b) {{
  const unsigned at = (unsigned)__cvta_generic_to_shared(b);
  const unsigned long long tile = (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
  asm volatile("{{.reg .pred add; setp.eq.u32 add, 0, 0; "
               "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.f16.f16 "
               "{{{results}}}, {{{left}}}, %{count + 4}, add, 1, 1, 0;}}"
               : {outputs}
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(tile));
}}
"""


_BELL = r"""
__device__ __forceinline__ void mlcrt_bell(const void *bell) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"((unsigned)__cvta_generic_to_shared(bell)) : "memory");
}
"""

_BULK_COPY = r"""
__device__ __forceinline__ void mlcrt_bulk_copy(void *to, const void *from, int size, const void *bell) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(to), ring = (unsigned)__cvta_generic_to_shared(bell);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ring), "r"(size) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(at), "l"(__cvta_generic_to_global(from)), "r"(size), "r"(ring) : "memory");
}
"""

_AWAIT_BELL = r"""
__device__ __forceinline__ void mlcrt_await_bell(const void *bell, int odd) {
  asm volatile("{.reg .pred there;\n"
               "again: mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
               "@!there bra again;}"
               ::"r"((unsigned)__cvta_generic_to_shared(bell)), "r"(odd) : "memory");
}
"""


class Warpgroups(TensorCores, WarpgroupUnit):
    """wgmma, which Hopper alone has (sm_90a)."""

    def publish(self) -> None:
        statement("mlcrt_publish", "fence.proxy.async.shared::cta;")

    def begin(self) -> None:
        statement("mlcrt_warpgroup_begin", "wgmma.fence.sync.aligned;")

    def warpgroup_mma(self, accumulator, n: int, a, right, right_index) -> None:
        name = f"mlcrt_warpgroup_mma{n}"
        T.evaluate(call(name, _mma_source(name, n), address(accumulator, 0), *a, address(right, *right_index)))

    def end(self) -> None:
        statement("mlcrt_warpgroup_end", "wgmma.commit_group.sync.aligned;")

    def finished(self, pending: int) -> None:
        statement(f"mlcrt_warpgroup_finished{pending}", f"wgmma.wait_group.sync.aligned {pending};")

    def bell(self, bells, index) -> None:
        T.evaluate(call("mlcrt_bell", _BELL, address(bells, *index)))

    def bulk_copy(self, to, to_index, source, source_index, size, bells, bell) -> None:
        places = address(to, *to_index), address(source, *source_index)
        T.evaluate(call("mlcrt_bulk_copy", _BULK_COPY, *places, size, address(bells, *bell)))

    def await_bell(self, bells, index, odd) -> None:
        T.evaluate(call("mlcrt_await_bell", _AWAIT_BELL, address(bells, *index), odd))
