; Values of the lane whose number differs in one bit, for waves of 64: DPP where it can (quad_perm, row_ror:8),
; ds_swizzle within 32 lanes, ds_bpermute across.
target triple = "amdgcn-amd-amdhsa-hcc"

declare i32 @llvm.amdgcn.update.dpp.i32(i32, i32, i32 immarg, i32 immarg, i32 immarg, i1 immarg)
declare i32 @llvm.amdgcn.ds.swizzle(i32, i32 immarg)
declare i32 @llvm.amdgcn.ds.bpermute(i32, i32)
declare i32 @llvm.amdgcn.mbcnt.lo(i32, i32)
declare i32 @llvm.amdgcn.mbcnt.hi(i32, i32)

define i32 @mlcrt_xor_1(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 177, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_2(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 78, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_8(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 296, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_4(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.ds.swizzle(i32 %v, i32 4127)
  ret i32 %r
}

define i32 @mlcrt_xor_16(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.ds.swizzle(i32 %v, i32 16415)
  ret i32 %r
}

define i32 @mlcrt_xor_32(i32 %v) alwaysinline convergent nounwind {
  %low = call i32 @llvm.amdgcn.mbcnt.lo(i32 -1, i32 0)
  %lane = call i32 @llvm.amdgcn.mbcnt.hi(i32 -1, i32 %low)
  %other = xor i32 %lane, 32
  %address = shl i32 %other, 2
  %r = call i32 @llvm.amdgcn.ds.bpermute(i32 %address, i32 %v)
  ret i32 %r
}
