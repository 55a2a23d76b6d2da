; Sum of (code - 8) * x over the eight 4-bit codes of a word, x in the order 0 4 1 5 2 6 3 7. Or-ing a code into the
; mantissa of the half 1024 gives 1024 + code, or 1024 + 16 code four bits up; adding -1032, or -72 after dividing by
; 16, is exact. The sum is kept in float32 by fused multiply-adds of widened halves.
target triple = "amdgcn-amd-amdhsa-hcc"

declare <2 x half> @llvm.fma.v2f16(<2 x half>, <2 x half>, <2 x half>)
declare float @llvm.fma.f32(float, float, float)

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
  %a0 = extractelement <2 x half> %a, i32 0
  %a0.f = fpext half %a0 to float
  %xa0 = extractelement <2 x half> %xa, i32 0
  %xa0.f = fpext half %xa0 to float
  %sa0 = call float @llvm.fma.f32(float %a0.f, float %xa0.f, float 0.0)
  %a1 = extractelement <2 x half> %a, i32 1
  %a1.f = fpext half %a1 to float
  %xa1 = extractelement <2 x half> %xa, i32 1
  %xa1.f = fpext half %xa1 to float
  %sa1 = call float @llvm.fma.f32(float %a1.f, float %xa1.f, float %sa0)
  %b0 = extractelement <2 x half> %b, i32 0
  %b0.f = fpext half %b0 to float
  %xb0 = extractelement <2 x half> %xb, i32 0
  %xb0.f = fpext half %xb0 to float
  %sb0 = call float @llvm.fma.f32(float %b0.f, float %xb0.f, float %sa1)
  %b1 = extractelement <2 x half> %b, i32 1
  %b1.f = fpext half %b1 to float
  %xb1 = extractelement <2 x half> %xb, i32 1
  %xb1.f = fpext half %xb1 to float
  %sb1 = call float @llvm.fma.f32(float %b1.f, float %xb1.f, float %sb0)
  %c0 = extractelement <2 x half> %c, i32 0
  %c0.f = fpext half %c0 to float
  %xc0 = extractelement <2 x half> %xc, i32 0
  %xc0.f = fpext half %xc0 to float
  %sc0 = call float @llvm.fma.f32(float %c0.f, float %xc0.f, float %sb1)
  %c1 = extractelement <2 x half> %c, i32 1
  %c1.f = fpext half %c1 to float
  %xc1 = extractelement <2 x half> %xc, i32 1
  %xc1.f = fpext half %xc1 to float
  %sc1 = call float @llvm.fma.f32(float %c1.f, float %xc1.f, float %sc0)
  %d0 = extractelement <2 x half> %d, i32 0
  %d0.f = fpext half %d0 to float
  %xd0 = extractelement <2 x half> %xd, i32 0
  %xd0.f = fpext half %xd0 to float
  %sd0 = call float @llvm.fma.f32(float %d0.f, float %xd0.f, float %sc1)
  %d1 = extractelement <2 x half> %d, i32 1
  %d1.f = fpext half %d1 to float
  %xd1 = extractelement <2 x half> %xd, i32 1
  %xd1.f = fpext half %xd1 to float
  %sd1 = call float @llvm.fma.f32(float %d1.f, float %xd1.f, float %sd0)
  ret float %sd1
}
