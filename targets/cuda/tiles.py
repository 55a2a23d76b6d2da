"""Tile numbers and lane exchange for NVIDIA GPUs."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.simt import Library, Machine, Tiles

from .architecture import CudaArch

WARP = 32


def _exchange(value, mask: int):
    """__shfl_xor_sync over the whole warp."""
    arguments = (T.uint32(0xFFFFFFFF), value, T.int32(mask), T.int32(WARP), T.int32(WARP))
    return tirx.call_intrin(str(value.ty.dtype), "tirx.tvm_warp_shuffle_xor", *arguments)


# Or-ing a code into the mantissa of 1024.0 gives 1024 + code in half precision; so do codes four bits up, 16-fold.
_DOT8 = r"""
__device__ __forceinline__ float mlcrt_dot8(unsigned w, uint4 x) {
  const __half2 low = __float2half2_rn(-1032.f), high = __float2half2_rn(-72.f), sixteenth = __float2half2_rn(0.0625f);
  const unsigned v = w >> 8;
  unsigned a = (w & 0x000f000fu) | 0x64006400u, b = (w & 0x00f000f0u) | 0x64006400u;
  unsigned c = (v & 0x000f000fu) | 0x64006400u, d = (v & 0x00f000f0u) | 0x64006400u;
  const __half2 *h = reinterpret_cast<const __half2 *>(&x);
  __half2 sum = __hmul2(__hadd2(*reinterpret_cast<__half2 *>(&a), low), h[0]);
  sum = __hfma2(__hfma2(*reinterpret_cast<__half2 *>(&b), sixteenth, high), h[1], sum);
  sum = __hfma2(__hadd2(*reinterpret_cast<__half2 *>(&c), low), h[2], sum);
  sum = __hfma2(__hfma2(*reinterpret_cast<__half2 *>(&d), sixteenth, high), h[3], sum);
  const float2 s = __half22float2(sum);
  return s.x + s.y;
}
"""


def _dot8(word, x):
    from tvm.backend.cuda.op import cuda_func_call

    return cuda_func_call("mlcrt_dot8", word, x, source_code=_DOT8, return_type="float32")


def tiles(arch: CudaArch) -> Tiles:
    return Tiles()


def library(arch: CudaArch, kv_dtype: str) -> Library:
    return Library(tiles(arch), kv_dtype, Machine(WARP, _exchange, _dot8))
