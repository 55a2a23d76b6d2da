"""Kernels for NVIDIA's tensor cores: attention and prefill products. The rest comes from `simt`."""

from .unit import MatrixUnit, WarpgroupUnit

__all__ = ["MatrixUnit", "WarpgroupUnit"]
