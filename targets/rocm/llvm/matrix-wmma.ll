; c + a b^T on 16 x 16 tiles of one wave of 32 lanes: lane l holds the 16 columns of row l % 16 of a and of b, and the
; elements (2 i + l / 16, l % 16) of c.
target triple = "amdgcn-amd-amdhsa-hcc"

declare <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v16f16(<16 x half>, <16 x half>, <8 x float>)

define <8 x float> @mlcrt_product(<16 x half> %a, <16 x half> %b, <8 x float> %c) alwaysinline convergent nounwind {
  %r = call <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v16f16(<16 x half> %a, <16 x half> %b, <8 x float> %c)
  ret <8 x float> %r
}
