"""Lowering: decoder → Relax → fusion → TensorIR kernels → library. Heavy imports stay inside the functions."""

from __future__ import annotations


def compile_model(*args, **kwargs):
    """See mlcrt.compile.build.compile_model."""
    from .build import compile_model as run

    return run(*args, **kwargs)


def ensure_compiled(*args, **kwargs):
    """See mlcrt.compile.build.ensure_compiled."""
    from .build import ensure_compiled as run

    return run(*args, **kwargs)
