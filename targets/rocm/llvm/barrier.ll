; A workgroup barrier that orders LDS. A bare s_barrier does not: stores may still be in flight when another wave
; goes on, and LLVM waits for them only where a fence says so. The fences are limited to LDS ("local"), so that
; global stores need not drain.
target triple = "amdgcn-amd-amdhsa-hcc"

declare void @llvm.amdgcn.s.barrier()

define void @mlcrt_barrier() alwaysinline convergent nounwind {
  fence syncscope("workgroup") release, !mmra !0
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire, !mmra !0
  ret void
}

!0 = !{!"amdgpu-synchronize-as", !"local"}
