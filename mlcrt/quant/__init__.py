"""Quantisation: schemes as data, packing, conversion of checkpoints."""

from .scheme import KEEP, QUANTIZATIONS, SCHEMES, Scheme, scheme

__all__ = ["KEEP", "QUANTIZATIONS", "SCHEMES", "Scheme", "convert_model", "scheme"]


def convert_model(model, quantization=None, out=None, report=None):
    """See mlcrt.quant.model.convert_model (imported late: it pulls in the readers)."""
    from . import model as _model

    return _model.convert_model(model, quantization, out, report or _model.silent)
