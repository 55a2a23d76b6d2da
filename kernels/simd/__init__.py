"""Kernels for CPUs with vector registers, written with explicit vectors and TVM's thread pool."""

from .library import Library, Tiles

__all__ = ["Library", "Tiles"]
