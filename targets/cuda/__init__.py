"""NVIDIA GPUs: kernels as machine code inside the library, so that loading compiles nothing."""

from __future__ import annotations

from .architecture import CudaArch, attributes, missing_features, rank
from .device import probe, runtime
from .fatbin import compiler_missing, export_options

__all__ = [
    "CudaArch",
    "attributes",
    "compiler_missing",
    "export_options",
    "library",
    "missing_features",
    "probe",
    "rank",
    "runtime",
]


def library(arch: CudaArch, kv_dtype: str):
    """The kernel library; imported late, because kernels need TVM's compiler and running does not."""
    from .tiles import library as build

    return build(arch, kv_dtype)
