"""Apple GPUs: kernels as Metal Shading Language (or a metallib where Xcode is) in a signed macOS library.

Any machine compiles for them; running needs an Apple-silicon Mac, where TVM's stock macOS wheel brings the device.
"""

from __future__ import annotations

from .architecture import MetalArch, attributes, missing_features
from .device import probe, runtime
from .link import export_options

__all__ = [
    "MetalArch",
    "attributes",
    "compiler_missing",
    "export_options",
    "library",
    "missing_features",
    "probe",
    "runtime",
]


def compiler_missing() -> str | None:
    """Nothing is: the linker comes with the package, and the Mac's driver compiles the kernels at load."""
    return None


def library(arch: MetalArch, kv_dtype: str):
    """The kernel library; imported late, because kernels need TVM's compiler and running does not."""
    from .finish import offer
    from .tiles import library as build

    offer()
    return build(arch, kv_dtype)
