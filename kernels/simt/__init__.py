"""Kernels for GPUs, written for blocks of threads with subgroups; a target says how lanes exchange values."""

from .common import Machine
from .library import Library, Tiles

__all__ = ["Library", "Machine", "Tiles"]
