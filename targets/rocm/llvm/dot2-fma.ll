; c + a.x b.x + a.y b.y by fused multiply-adds of widened halves, for chips without v_dot2_f32_f16.
target triple = "amdgcn-amd-amdhsa-hcc"

declare float @llvm.fma.f32(float, float, float)

define float @mlcrt_dot2(<2 x half> %a, <2 x half> %b, float %c) alwaysinline nounwind {
  %a0 = extractelement <2 x half> %a, i32 0
  %a0.f = fpext half %a0 to float
  %b0 = extractelement <2 x half> %b, i32 0
  %b0.f = fpext half %b0 to float
  %s = call float @llvm.fma.f32(float %a0.f, float %b0.f, float %c)
  %a1 = extractelement <2 x half> %a, i32 1
  %a1.f = fpext half %a1 to float
  %b1 = extractelement <2 x half> %b, i32 1
  %b1.f = fpext half %b1 to float
  %r = call float @llvm.fma.f32(float %a1.f, float %b1.f, float %s)
  ret float %r
}
