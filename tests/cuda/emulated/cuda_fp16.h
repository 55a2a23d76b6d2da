// Half precision (CUDA Math API, "Half precision intrinsics"): every operation rounds once.
#pragma once

struct __half {
  _Float16 v;
  __half() = default;
  __half(float x) : v((_Float16)x) {}
  __half(double x) : v((_Float16)x) {}
  __half(int x) : v((_Float16)(float)x) {}
  operator float() const { return (float)v; }
};
typedef __half half;

struct alignas(4) __half2 {
  half x, y;
};
typedef __half2 half2;

// float has more than twice the digits of half, so that rounding to float first changes nothing of these.
#define CUDA_HALF(op)                                                                          \
  static inline half operator op(half a, half b) { return half((float)a op (float)b); }        \
  static inline half &operator op##=(half & a, half b) { return a = a op b; }
CUDA_HALF(+)
CUDA_HALF(-)
CUDA_HALF(*)
CUDA_HALF(/)
#define CUDA_HALF_ORDER(op) \
  static inline bool operator op(half a, half b) { return (float)a op (float)b; }
CUDA_HALF_ORDER(<)
CUDA_HALF_ORDER(>)
CUDA_HALF_ORDER(<=)
CUDA_HALF_ORDER(>=)
CUDA_HALF_ORDER(==)
CUDA_HALF_ORDER(!=)

static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline float __half2float(half x) { return x; }
static inline half __float2half(float x) { return x; }
static inline half __float2half_rn(float x) { return x; }
static inline half __ushort_as_half(unsigned short bits) {
  half h;
  memcpy(&h, &bits, sizeof h);
  return h;
}
static inline half __hfma(half a, half b, half c) { return half((double)(float)a * (float)b + (float)c); }

static inline half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline half2 __float2half2_rn(float x) { return {x, x}; }
static inline half2 __half2half2(half x) { return {x, x}; }
static inline float2 __half22float2(half2 h) { return {h.x, h.y}; }
static inline half2 __hadd2(half2 a, half2 b) { return {a.x + b.x, a.y + b.y}; }
static inline half2 __hmul2(half2 a, half2 b) { return {a.x * b.x, a.y * b.y}; }
static inline half2 __hfma2(half2 a, half2 b, half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
