; Values of the lane whose number differs in one bit, by DPP: no LDS, no wait, and LLVM folds the move into the
; instruction that uses it. Rows are 16 lanes; row_xmask (0x160 + mask) stays in them, permlanex16 takes the other row.
target triple = "amdgcn-amd-amdhsa-hcc"

declare i32 @llvm.amdgcn.update.dpp.i32(i32, i32, i32 immarg, i32 immarg, i32 immarg, i1 immarg)
declare i32 @llvm.amdgcn.permlanex16.i32(i32, i32, i32, i32, i1 immarg, i1 immarg)

define i32 @mlcrt_xor_1(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 353, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_2(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 354, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_4(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 356, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_8(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %v, i32 360, i32 15, i32 15, i1 true)
  ret i32 %r
}

define i32 @mlcrt_xor_16(i32 %v) alwaysinline convergent nounwind {
  %r = call i32 @llvm.amdgcn.permlanex16.i32(i32 poison, i32 %v, i32 1985229328, i32 4275878552, i1 false, i1 true)
  ret i32 %r
}
