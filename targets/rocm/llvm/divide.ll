; Nothing is scheduled across.
target triple = "amdgcn-amd-amdhsa-hcc"

declare void @llvm.amdgcn.sched.barrier(i32 immarg)

define void @mlcrt_divide() alwaysinline convergent nounwind {
  call void @llvm.amdgcn.sched.barrier(i32 0)
  ret void
}
