; c + a.x b.x + a.y b.y in float32, for chips that do so in one instruction.
target triple = "amdgcn-amd-amdhsa-hcc"

declare float @llvm.amdgcn.fdot2(<2 x half>, <2 x half>, float, i1 immarg)

define float @mlcrt_dot2(<2 x half> %a, <2 x half> %b, float %c) alwaysinline nounwind {
  %r = call float @llvm.amdgcn.fdot2(<2 x half> %a, <2 x half> %b, float %c, i1 false)
  ret float %r
}
