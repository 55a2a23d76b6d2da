// The part of CUDA C++ that the project's kernels use, for a C++17 compiler; threads are fibres of machine.cc.
// Source: CUDA C++ Programming Guide 13, chapters "C++ language extensions" and "Mathematical functions". Exchanges
// take whole warps: every kernel names all lanes.
#pragma once
#include <math.h>
#include <stddef.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Variables of a block are static, and their section lets the machine fill them before every block.
#define CUDA_SHARED static __attribute__((used, section("cuda_shared")))

#define CUDA_VECTOR(type, name, size)                                           \
  struct alignas(sizeof(type) * 2) name##2 { type x, y; };                      \
  struct name##3 { type x, y, z; };                                             \
  struct alignas(sizeof(type) * 4 > 16 ? 16 : sizeof(type) * 4) name##4 { type x, y, z, w; }; \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }       \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_VECTOR(signed char, char, 1)
CUDA_VECTOR(unsigned char, uchar, 1)
CUDA_VECTOR(short, short, 2)
CUDA_VECTOR(unsigned short, ushort, 2)
CUDA_VECTOR(int, int, 4)
CUDA_VECTOR(unsigned, uint, 4)
CUDA_VECTOR(float, float, 4)
CUDA_VECTOR(long long, longlong, 8)

extern uint3 threadIdx, blockIdx;

template <class T, int count> struct Refs {
  T *at[count];
};
template <class T, class... Rest> inline Refs<T, 1 + sizeof...(Rest)> ptx_refs(T &first, Rest &...rest) {
  return {{&first, &rest...}};
}

extern "C" {
void cuda_barrier(int line);
int cuda_barrier_or(int value, int line);
unsigned char *cuda_dynamic(unsigned alignment);  // the block's dynamic shared memory, aligned to that and no more
unsigned cuda_shared_address(const void *);
// Wait for the warp's other lanes; `work` gets the operands of all.
void cuda_warp(void (*work)(void **), void *operand, int line);
}

inline void __syncthreads(int line = __builtin_LINE()) { cuda_barrier(line); }
inline int __syncthreads_or(int value, int line = __builtin_LINE()) { return cuda_barrier_or(value, line); }
inline void __threadfence() {}
inline size_t __cvta_generic_to_shared(const void *p) { return cuda_shared_address(p); }
inline size_t __cvta_generic_to_global(const void *p) { return (size_t)p; }

enum { CUDA_XOR, CUDA_INDEX, CUDA_UP, CUDA_DOWN };
template <class T> struct Shuffle {
  T value;
  int kind, operand;
  static void work(void **operands) {
    T given[32];
    for (int i = 0; i < 32; ++i) given[i] = ((Shuffle *)operands[i])->value;
    for (int i = 0; i < 32; ++i) {
      Shuffle &s = *(Shuffle *)operands[i];
      int from = s.kind == CUDA_XOR ? i ^ s.operand : s.kind == CUDA_INDEX ? s.operand
               : s.kind == CUDA_UP ? i - s.operand : i + s.operand;
      s.value = given[from < 0 || from > 31 ? i : from];
    }
  }
};
void cuda_partial_warp(int line);  // an error: lanes or a width that are not a warp's
#define CUDA_SHUFFLE(name, kind)                                                                           \
  template <class T> inline T name(unsigned mask, T value, int operand, int width = 32, int line = __builtin_LINE()) { \
    if (mask != 0xFFFFFFFF || width != 32) cuda_partial_warp(line);                                        \
    Shuffle<T> s{value, kind, operand};                                                                    \
    cuda_warp(Shuffle<T>::work, &s, line);                                                                 \
    return s.value;                                                                                        \
  }
CUDA_SHUFFLE(__shfl_xor_sync, CUDA_XOR)
CUDA_SHUFFLE(__shfl_sync, CUDA_INDEX)
CUDA_SHUFFLE(__shfl_up_sync, CUDA_UP)
CUDA_SHUFFLE(__shfl_down_sync, CUDA_DOWN)

#define CUDA_ORDER(type)                                              \
  static inline type min(type a, type b) { return b < a ? b : a; }    \
  static inline type max(type a, type b) { return a < b ? b : a; }
CUDA_ORDER(int)
CUDA_ORDER(unsigned)
CUDA_ORDER(long)
CUDA_ORDER(unsigned long)
CUDA_ORDER(long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// Fibres change places only where they wait: nothing else is needed to be atomic.
template <class T> inline T atomicAdd(T *at, T value) {
  T old = *at;
  *at = old + value;
  return old;
}
inline unsigned atomicInc(unsigned *at, unsigned most) {
  unsigned old = *at;
  *at = old >= most ? 0 : old + 1;
  return old;
}

#include "cuda_fp16.h"
#include "ptx.h"
