"""Products with many tokens for GPUs whose waves multiply 16 x 16 matrices. The rest comes from `simt`."""

from .fragments import Fragments
from .linear import half, prefill_linear, prepared_shape

__all__ = ["Fragments", "half", "prefill_linear", "prepared_shape"]
