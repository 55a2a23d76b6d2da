"""Rotary position embedding tables from the `rope_scaling` / `rope_parameters` of a `config.json`.

The arithmetic is float32 in the order the reference implementation (Hugging Face transformers) uses, because at
position 100 000 one unit in the last place of a frequency already turns the angle by 0.006 rad.
"""

from __future__ import annotations

import math

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.models.config import Rope
from mlcrt.models.fields import Fields


def rope_table(scaling: Fields, head_dim: int, context: int, long_context: bool = False) -> Rope:
    """Make the table that `scaling` describes.

    `scaling` holds rope_type (or the older name, type), rope_theta, partial_rotary_factor and the keys of the type;
    its original_max_position_embeddings defaults to `context`. `context` is max_position_embeddings, in tokens.
    `long_context` picks the long factors of a "longrope" instead of the short ones.
    Raises MlcrtError for an unknown type, a missing key or a value out of range.
    """
    key = "rope_type" if scaling.has("rope_type") else "type"
    scale = scaling.choice(key, TYPES) if scaling.has(key) else TYPES["default"]
    theta = scaling.number("rope_theta", above=1.0)
    fraction = scaling.number("partial_rotary_factor")
    if fraction > 1.0:
        raise scaling.bad("partial_rotary_factor", "a number above 0 and at most 1")
    dim = int(head_dim * fraction + 1e-6)  # GGUF stores a count, and count / head_dim * head_dim may fall just short
    if dim < 2 or dim % 2:
        raise MlcrtError(
            f"{scaling.where}: partial_rotary_factor {fraction:g} of head_dim {head_dim} rotates {dim} dimensions, and"
            " only an even number of at least 2 is supported."
        )
    # float64 inside, because NumPy's own float32 power is a few units in the last place off
    exponent = (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)).astype(np.float64)
    with np.errstate(all="ignore"):
        period = (float(np.float32(theta)) ** exponent).astype(np.float32)  # tokens per radian
        inv_freq, attention_factor = scale(period, scaling, theta, context, long_context)
    inv_freq = np.asarray(inv_freq, np.float32)
    if not (np.isfinite(inv_freq).all() and (inv_freq > 0).all() and math.isfinite(attention_factor)):
        raise MlcrtError(f"{scaling.where}: rope_theta {theta:g} and its scaling give frequencies outside float32.")
    return Rope(tuple(inv_freq.tolist()), float(attention_factor))


def longrope_original(scaling: Fields) -> int | None:
    """The context up to which a "longrope" uses its short factors, or None for every other type."""
    kind = scaling.get("rope_type") or scaling.get("type")
    return scaling.size("original_max_position_embeddings") if kind in ("longrope", "su") else None


def yarn_context(scaling: Fields) -> int | None:
    """The context in tokens that a "yarn" stretches the model to (factor × original), or None for other types."""
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind != "yarn" or not scaling.has("factor"):
        return None
    return int(scaling.number("factor") * scaling.size("original_max_position_embeddings"))


def _default(period, scaling, theta, context, long_context):
    # "dynamic" lands here too: its base only grows once the sequence is longer than the trained context
    return np.float32(1.0) / period, 1.0


def _linear(period, scaling, theta, context, long_context):
    """Position interpolation, https://arxiv.org/abs/2306.15595."""
    return np.float32(1.0) / period / np.float32(scaling.number("factor")), 1.0


def _freq_factors(period, scaling, theta, context, long_context):
    """Divisors per frequency, as GGUF stores them in `rope_freqs.weight`."""
    factors = np.asarray(scaling.numbers("factors", len(period)), np.float32)
    return np.float32(1.0) / period / factors, scaling.optional_number("attention_factor") or 1.0


def _llama3(period, scaling, theta, context, long_context):
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended linearly in frequency.

    See `apply_scaling` in https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py.
    """
    factor, low, high = (scaling.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise scaling.bad("high_freq_factor", f"above low_freq_factor {low:g}")
    original = scaling.size("original_max_position_embeddings")
    inv_freq = np.float32(1.0) / period
    wavelength = np.float32(2 * math.pi) / inv_freq  # tokens
    slowed = inv_freq / np.float32(factor)
    blend = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blended = (1 - blend) * inv_freq / np.float32(factor) + blend * inv_freq
    long, short = wavelength > np.float32(original / low), wavelength < np.float32(original / high)
    return np.where(long, slowed, np.where(short, inv_freq, blended)), 1.0


def _yarn(period, scaling, theta, context, long_context):
    """YaRN, https://arxiv.org/abs/2309.00071: NTK-by-parts interpolation and a temperature on the attention."""
    original = scaling.size("original_max_position_embeddings")
    factor = scaling.number("factor") if scaling.has("factor") else context / original
    attention_factor = scaling.optional_number("attention_factor")
    if attention_factor is None:
        mscale, over_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if mscale and over_all:
            attention_factor = _mscale(factor, scaling.number("mscale")) / _mscale(
                factor, scaling.number("mscale_all_dim")
            )
        else:
            attention_factor = _mscale(factor, 1.0)

    half, dim = len(period), 2 * len(period)

    def dimension(rotations: float) -> float:  # the dimension that turns this often within the original context
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.number("beta_fast")), dimension(scaling.number("beta_slow"))
    if scaling.flag("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = 1 - np.clip(ramp, 0, 1)
    interpolated = np.float32(1.0) / (np.float32(factor) * period)
    return interpolated * (1 - keep) + np.float32(1.0) / period * keep, attention_factor


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(period, scaling, theta, context, long_context):
    """LongRoPE, https://arxiv.org/abs/2402.13753: one searched divisor per frequency, two sets of them."""
    original = scaling.size("original_max_position_embeddings")
    factor = scaling.number("factor") if scaling.has("factor") else context / original
    attention_factor = scaling.optional_number("attention_factor")
    if attention_factor is None:
        if factor > 1 and original < 2:
            raise scaling.bad("original_max_position_embeddings", "an integer from 2 upwards")
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    divisors = scaling.numbers("long_factor" if long_context else "short_factor", len(period))
    return np.float32(1.0) / (np.asarray(divisors, np.float32) * period), attention_factor


TYPES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # the name that early Phi-3 checkpoints use
    "freq_factors": _freq_factors,
}
DEFAULTS = {"partial_rotary_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
