"""The parameters of a dist folder as the library sees them: dequantised with NumPy from what is stored."""

from __future__ import annotations

import numpy as np

from mlcrt.dist import open_dist
from mlcrt.models import parameters
from mlcrt.quant.pack import unpack_rows
from mlcrt.quant.params import read_params
from mlcrt.quant.scheme import SCHEMES


def dequantised(dist) -> tuple:
    """(DecoderConfig, {canonical name: float64 array}) of an opened folder."""
    opened = open_dist(dist)
    arrays = read_params(opened.path, opened.manifest["params"]["files"])
    result = {}
    for parameter in parameters(opened.config):
        name, scheme = parameter.name, opened.manifest["schemes"].get(parameter.name)
        if scheme is None:
            result[name] = np.array(arrays[name], np.float64)
            continue
        scheme = SCHEMES[scheme]
        *experts, rows, columns = parameter.shape
        parts = {s: arrays[f"{name}.{s}" if s else name] for s in scheme.tensors(rows, columns)}
        if scheme.layout == "KN":
            parts = {suffix: np.swapaxes(part, -1, -2) for suffix, part in parts.items()}
        flat = {suffix: np.ascontiguousarray(p).reshape(-1, p.shape[-1]) for suffix, p in parts.items()}
        result[name] = unpack_rows(flat, scheme, columns).reshape(parameter.shape).astype(np.float64)
    return opened.config, result
