"""CPUs: x86-64 at a feature level (https://gitlab.com/x86-psABIs/x86-64-ABI) and ARM64, on Linux, Windows and macOS."""

from __future__ import annotations

from .architecture import CpuArch, attributes, missing_features
from .device import probe, runtime
from .link import export_options

__all__ = [
    "CpuArch",
    "attributes",
    "compiler_missing",
    "export_options",
    "library",
    "missing_features",
    "probe",
    "runtime",
]


def compiler_missing() -> str | None:
    """Nothing is: the linker comes with the package."""
    return None


def library(arch: CpuArch, kv_dtype: str):
    """See tiles.library; imported late, for kernels need the compiler and running needs none."""
    from . import tiles

    return tiles.library(arch, kv_dtype)
