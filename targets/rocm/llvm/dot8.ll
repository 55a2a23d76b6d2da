; Sum of (code - 8) * x over the eight 4-bit codes of a word, x in the order 0 4 1 5 2 6 3 7. Or-ing a code into the
; mantissa of the half 1024 gives 1024 + code, or 1024 + 16 code four bits up; adding -1032, or -72 after dividing by
; 16, is exact. The sum is kept in float32.
target triple = "amdgcn-amd-amdhsa-hcc"

declare <2 x half> @llvm.fma.v2f16(<2 x half>, <2 x half>, <2 x half>)
declare float @mlcrt_dot2(<2 x half>, <2 x half>, float)

define float @mlcrt_dot8(i32 %w, <8 x half> %x) alwaysinline nounwind {
  %v = lshr i32 %w, 8
  %a.code = and i32 %w, 983055
  %a.bits = or i32 %a.code, 1677747200
  %a.half = bitcast i32 %a.bits to <2 x half>
  %a = fadd <2 x half> %a.half, splat (half 0xHE408)
  %b.code = and i32 %w, 15728880
  %b.bits = or i32 %b.code, 1677747200
  %b.half = bitcast i32 %b.bits to <2 x half>
  %b = call <2 x half> @llvm.fma.v2f16(<2 x half> %b.half, <2 x half> splat (half 0xH2C00), <2 x half> splat (half 0xHD480))
  %c.code = and i32 %v, 983055
  %c.bits = or i32 %c.code, 1677747200
  %c.half = bitcast i32 %c.bits to <2 x half>
  %c = fadd <2 x half> %c.half, splat (half 0xHE408)
  %d.code = and i32 %v, 15728880
  %d.bits = or i32 %d.code, 1677747200
  %d.half = bitcast i32 %d.bits to <2 x half>
  %d = call <2 x half> @llvm.fma.v2f16(<2 x half> %d.half, <2 x half> splat (half 0xH2C00), <2 x half> splat (half 0xHD480))
  %xa = shufflevector <8 x half> %x, <8 x half> poison, <2 x i32> <i32 0, i32 1>
  %xb = shufflevector <8 x half> %x, <8 x half> poison, <2 x i32> <i32 2, i32 3>
  %xc = shufflevector <8 x half> %x, <8 x half> poison, <2 x i32> <i32 4, i32 5>
  %xd = shufflevector <8 x half> %x, <8 x half> poison, <2 x i32> <i32 6, i32 7>
  %sa = call float @mlcrt_dot2(<2 x half> %a, <2 x half> %xa, float 0.0)
  %sb = call float @mlcrt_dot2(<2 x half> %b, <2 x half> %xb, float %sa)
  %sc = call float @mlcrt_dot2(<2 x half> %c, <2 x half> %xc, float %sb)
  %sd = call float @mlcrt_dot2(<2 x half> %d, <2 x half> %xd, float %sc)
  ret float %sd
}
