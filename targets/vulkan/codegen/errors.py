"""The one error of the code generator."""

from __future__ import annotations

from mlcrt.errors import MlcrtError


class CodegenError(MlcrtError):
    """A kernel holds something that has no SPIR-V form here; the message names the kernel and the thing."""
