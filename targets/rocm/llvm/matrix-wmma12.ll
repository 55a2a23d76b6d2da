; c + a b^T on 16 x 16 tiles of one wave of 32 lanes, in the fragments of fragments-gfx12.ll: of a and b the first eight
; elements count.
target triple = "amdgcn-amd-amdhsa-hcc"

declare <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v8f16(<8 x half>, <8 x half>, <8 x float>)

define <8 x float> @mlcrt_product(<16 x half> %a, <16 x half> %b, <8 x float> %c) alwaysinline convergent nounwind {
  %x = shufflevector <16 x half> %a, <16 x half> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %y = shufflevector <16 x half> %b, <16 x half> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %r = call <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v8f16(<8 x half> %x, <8 x half> %y, <8 x float> %c)
  ret <8 x float> %r
}
