; A workgroup barrier that orders LDS. A bare s_barrier does not: on CDNA stores may still be in flight when another
; wave goes on. The fences keep LLVM from moving LDS accesses across; limited to LDS ("local"), they let global stores
; go on. The wait is spelled out, because LLVM 22 takes the one of a release fence out of a loop whose stores reach the
; barrier only from the iteration before.
target triple = "amdgcn-amd-amdhsa-hcc"

declare void @llvm.amdgcn.s.barrier()
declare void @llvm.amdgcn.s.waitcnt(i32 immarg)

define void @mlcrt_barrier() alwaysinline convergent nounwind {
  fence syncscope("workgroup") release, !mmra !0
  call void @llvm.amdgcn.s.waitcnt(i32 49279)  ; lgkmcnt(0), in the encoding of gfx9 and gfx10
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire, !mmra !0
  ret void
}

!0 = !{!"amdgpu-synchronize-as", !"local"}
