"""Kernels for CPUs with tile registers, where there is more than a vector of work; else those of simd."""

from .library import AmxLibrary
from .linear import AmxTiles

__all__ = ["AmxLibrary", "AmxTiles"]
