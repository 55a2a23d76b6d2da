"""TensorIR kernels. `simd`: explicit vectors for CPUs. A target picks a library and supplies its tile numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """What an operator lowers to: equal keys share one PrimFunc; `inplace` maps outputs to arguments (-1: new)."""

    name: str
    key: tuple
    build: Callable
    args: list
    inplace: list[int] | None = None
