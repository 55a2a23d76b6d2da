"""The CPU: x86-64 at a chosen feature level (https://gitlab.com/x86-psABIs/x86-64-ABI, micro-architecture levels)."""

from __future__ import annotations

from .architecture import CpuArch, attributes, missing_features
from .device import probe, runtime
from .link import link
from .tiles import library

__all__ = ["CpuArch", "attributes", "library", "link", "missing_features", "probe", "runtime"]
