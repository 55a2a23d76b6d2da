; c += a b on 16x16 tiles for one wave of 32 lanes: each lane points at its 16 halves of a (row lane % 16) and b (column
; lane % 16) and at its 8 floats of c (rows 2 r + lane / 16, column lane % 16).
target triple = "amdgcn-amd-amdhsa-hcc"

declare <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v16f16(<16 x half>, <16 x half>, <8 x float>)

define void @mlcrt_wmma_f32_f16(ptr addrspace(1) %a, ptr addrspace(1) %b, ptr addrspace(1) %c) alwaysinline convergent nounwind {
  %va = load <16 x half>, ptr addrspace(1) %a, align 16
  %vb = load <16 x half>, ptr addrspace(1) %b, align 16
  %vc = load <8 x float>, ptr addrspace(1) %c, align 16
  %r = call <8 x float> @llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v16f16(<16 x half> %va, <16 x half> %vb, <8 x float> %vc)
  store <8 x float> %r, ptr addrspace(1) %c, align 16
  ret void
}
