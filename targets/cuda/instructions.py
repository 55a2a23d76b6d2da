"""CUDA instructions that TensorIR has no name for, as small inline functions that the kernels call."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.mma import MatrixUnit

WARP = 32


def call(name: str, source: str, *arguments, returns: str = "void"):
    from tvm.backend.cuda.op import cuda_func_call

    return cuda_func_call(name, *arguments, source_code=source, return_type=returns)


def statement_source(name: str, instruction: str) -> str:
    """An instruction without operands that no access to memory may pass."""
    return f'__device__ __forceinline__ void {name}() {{ asm volatile("{instruction}" ::: "memory"); }}\n'


def statement(name: str, instruction: str) -> None:
    T.evaluate(call(name, statement_source(name, instruction)))


def exchange(value, mask: int):
    """__shfl_xor_sync over the whole warp."""
    arguments = (T.uint32(0xFFFFFFFF), value, T.int32(mask), T.int32(WARP), T.int32(WARP))
    return tirx.call_intrin(str(value.ty.dtype), "tirx.tvm_warp_shuffle_xor", *arguments)


# Or-ing a code into the mantissa of 1024.0 gives 1024 + code in half precision; so do codes four bits up, 16-fold.
# LOP3 masks and ors at once, but the compiler makes two of (w & a) | b where both are constants.
_CODES = r"""
__device__ __forceinline__ unsigned mlcrt_codes_pick(unsigned w, unsigned mask) {
  unsigned r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(w), "r"(mask), "r"(0x64006400u));
  return r;
}
__device__ __forceinline__ void mlcrt_codes(unsigned w, __half2 *h) {
  const __half2 low = __float2half2_rn(-1032.f), high = __float2half2_rn(-72.f), sixteenth = __float2half2_rn(0.0625f);
  const unsigned v = w >> 8;
  unsigned a = mlcrt_codes_pick(w, 0x000f000fu), b = mlcrt_codes_pick(w, 0x00f000f0u);
  unsigned c = mlcrt_codes_pick(v, 0x000f000fu), d = mlcrt_codes_pick(v, 0x00f000f0u);
  h[0] = __hadd2(*reinterpret_cast<__half2 *>(&a), low);
  h[1] = __hfma2(*reinterpret_cast<__half2 *>(&b), sixteenth, high);
  h[2] = __hadd2(*reinterpret_cast<__half2 *>(&c), low);
  h[3] = __hfma2(*reinterpret_cast<__half2 *>(&d), sixteenth, high);
}
"""

_DOT8 = f"""{_CODES}
__device__ __forceinline__ float mlcrt_dot8(unsigned w, uint4 x) {{
  __half2 code[4];
  mlcrt_codes(w, code);
  const __half2 *h = reinterpret_cast<const __half2 *>(&x);
  __half2 sum = __hmul2(code[0], h[0]);
  sum = __hfma2(code[1], h[1], sum);
  sum = __hfma2(code[2], h[2], sum);
  sum = __hfma2(code[3], h[3], sum);
  const float2 s = __half22float2(sum);
  return s.x + s.y;
}}
"""


def dot8(word, x):
    """Machine.dot8"""
    return call("mlcrt_dot8", _DOT8, word, x, returns="float32")


# From Hopper on the next kernel may start while this one ends: it loads weights until this one's results are there.
_OVERLAP = r"""
__device__ __forceinline__ void mlcrt_overlap() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
"""


def overlap() -> None:
    """Machine.overlap"""
    T.evaluate(call("mlcrt_overlap", _OVERLAP))


# Plain loads may be moved: of data that no kernel writes behind the wait, by the assembler; these stay.
_STREAM = {
    "uint32x4": r"""
__device__ __forceinline__ uint4 mlcrt_stream_uint32x4(const void *p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
""",
    "float16": r"""
__device__ __forceinline__ half mlcrt_stream_float16(const void *p) {
  unsigned short v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(__cvta_generic_to_global(p)));
  return __ushort_as_half(v);
}
""",
    "float16x8": r"""
__device__ __forceinline__ uint4 mlcrt_stream_float16x8(const void *p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
""",
    "float32": r"""
__device__ __forceinline__ float mlcrt_stream_float32(const void *p) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(__cvta_generic_to_global(p)));
  return v;
}
""",
}


def stream(buffer, index: list, dtype: str):
    """Machine.stream"""
    return call(f"mlcrt_stream_{dtype}", _STREAM[dtype], address(buffer, *index), returns=dtype)


_MMA = r"""
__device__ __forceinline__ void mlcrt_mma(float *c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                          unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
"""

_PACK = r"""
__device__ __forceinline__ unsigned mlcrt_pack(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned *>(&h);
}
"""

_TRANSPOSE = r"""
__device__ __forceinline__ unsigned mlcrt_transpose(unsigned pairs) {
  unsigned result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pairs));
  return result;
}
"""

_SCALED_CODES = f"""{_CODES.replace("mlcrt_codes", "mlcrt_codes_of")}
__device__ __forceinline__ void mlcrt_scaled_codes(unsigned *out, unsigned w, half scale) {{
  __half2 code[4];
  mlcrt_codes_of(w, code);
  const __half2 s = __half2half2(scale);
  for (int i = 0; i < 4; ++i) {{
    const __half2 value = __hmul2(code[i], s);
    out[i] = *reinterpret_cast<const unsigned *>(&value);
  }}
}}
"""

_COPY = r"""
__device__ __forceinline__ void mlcrt_copy16(void *to, const void *from) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
"""
_COPY4 = r"""
__device__ __forceinline__ void mlcrt_copy4(void *to, const void *from) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
}
"""

# atomicInc wraps to zero at the last arrival, so the counters are ready for the next kernel.
_ARRIVE = r"""
__device__ unsigned mlcrt_arrivals[1024];
__device__ __forceinline__ int mlcrt_arrive(int which, int total) {
  __threadfence();
  __syncthreads();
  int last = 0;
  if (threadIdx.x == 0) last = atomicInc(&mlcrt_arrivals[which], total - 1) == total - 1;
  last = __syncthreads_or(last);
  if (last) __threadfence();
  return last;
}
"""


def address(buffer, *index):
    return T.address_of(T.BufferLoad(buffer, list(index)))


class TensorCores(MatrixUnit):
    """mma.sync, from Ampere on; see MatrixUnit for what each does."""

    def mma(self, accumulator, at, a, b) -> None:
        T.evaluate(call("mlcrt_mma", _MMA, address(accumulator, at), *a, *b))

    def pack(self, low, high):
        return call("mlcrt_pack", _PACK, low, high, returns="uint32")

    def transpose(self, pairs):
        return call("mlcrt_transpose", _TRANSPOSE, pairs, returns="uint32")

    def scaled_codes(self, out, word, scale) -> None:
        T.evaluate(call("mlcrt_scaled_codes", _SCALED_CODES, address(out, 0), word, scale))

    def copy(self, to, to_index, source, source_index, size: int) -> None:
        name, text = ("mlcrt_copy16", _COPY) if size == 16 else ("mlcrt_copy4", _COPY4)
        T.evaluate(call(name, text, address(to, *to_index), address(source, *source_index)))

    def commit(self) -> None:
        statement("mlcrt_commit", "cp.async.commit_group;")

    def wait(self, pending: int) -> None:
        statement(f"mlcrt_wait{pending}", f"cp.async.wait_group {pending};")

    def arrive(self, which, total):
        return call("mlcrt_arrive", _ARRIVE, which, total, returns="int32")
