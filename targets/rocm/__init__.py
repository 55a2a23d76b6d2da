"""AMD GPUs through LLVM's amdgcn back end: RDNA and CDNA."""
