"""TensorIR kernels. `simd`: explicit vectors for CPUs; `simt`: blocks of threads for GPUs.

A target picks a library and supplies its tile numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Space(NamedTuple):
    """A workspace of a kernel."""

    shape: tuple
    dtype: str = "float32"

    @classmethod
    def of(cls, space) -> Space:
        """A Space, or the shape of a float32 one."""
        return space if isinstance(space, cls) else cls(tuple(space))


@dataclass(frozen=True)
class Kernel:
    """What an operator lowers to: equal keys share one PrimFunc.

    inplace: per output the argument it overwrites (-1: a new tensor); scratch: workspaces passed after the
    outputs, each a Space or the shape of a float32 one. variants: builders of PrimFuncs with the same arguments and
    grid for other devices, of which the target's runtime may take one instead, under the name that
    alternative_name(name, variant) gives.
    """

    name: str
    key: tuple
    build: Callable
    args: list
    inplace: list[int] | None = None
    scratch: list = field(default_factory=list)
    variants: dict[str, Callable] = field(default_factory=dict)
    alternative_name: Callable[[str, str], str] | None = None
