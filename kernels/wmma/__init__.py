"""Products with many tokens for GPUs whose waves of 32 lanes multiply 16 x 16 matrices. The rest comes from `simt`."""

from .linear import covers, half, prefill_linear, prepared_shape

__all__ = ["covers", "half", "prefill_linear", "prepared_shape"]
