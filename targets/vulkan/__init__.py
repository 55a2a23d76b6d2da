"""Vulkan devices: SPIR-V kernels made in Python, run by a C++ sidecar. Several subgroup sizes fit in one library."""

from __future__ import annotations

from .architecture import VulkanArch, attributes, names_device
from .device import SIDECAR, compiler_missing, missing_features, named_runtime, probe, runtime

__all__ = [
    "SIDECAR",
    "VulkanArch",
    "attributes",
    "compiler_missing",
    "export_options",
    "library",
    "missing_features",
    "named_runtime",
    "names_device",
    "probe",
    "runtime",
]


def library(arch: VulkanArch, kv_dtype: str):
    """The kernel library; imported late, because kernels need TVM's compiler and running does not."""
    from .tiles import library as build

    return build(arch, kv_dtype)


def export_options(arch: VulkanArch) -> dict:
    """Arguments for TVM's export_library."""
    from mlcrt.targets.cpu.link import link

    return {"fcompile": link}
