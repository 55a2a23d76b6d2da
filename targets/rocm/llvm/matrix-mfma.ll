; c + a b^T for 16 rows of a, 16 of b and 32 columns, of one wave of 64 lanes: lane l holds columns 8 (l / 16) to
; 8 (l / 16) + 7 of row l % 16 of a and of b, and the elements (4 (l / 16) + i, l % 16) of c. Two instructions take four
; columns of every lane each; which columns meet in which does not matter as long as a and b agree.
target triple = "amdgcn-amd-amdhsa-hcc"

declare <4 x float> @llvm.amdgcn.mfma.f32.16x16x16f16(<4 x half>, <4 x half>, <4 x float>, i32 immarg, i32 immarg, i32 immarg)

define <4 x float> @mlcrt_product64(<8 x half> %a, <8 x half> %b, <4 x float> %c) alwaysinline convergent nounwind {
  %a0 = shufflevector <8 x half> %a, <8 x half> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %b0 = shufflevector <8 x half> %b, <8 x half> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %s = call <4 x float> @llvm.amdgcn.mfma.f32.16x16x16f16(<4 x half> %a0, <4 x half> %b0, <4 x float> %c, i32 0, i32 0, i32 0)
  %a1 = shufflevector <8 x half> %a, <8 x half> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %b1 = shufflevector <8 x half> %b, <8 x half> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %r = call <4 x float> @llvm.amdgcn.mfma.f32.16x16x16f16(<4 x half> %a1, <4 x half> %b1, <4 x float> %s, i32 0, i32 0, i32 0)
  ret <4 x float> %r
}
