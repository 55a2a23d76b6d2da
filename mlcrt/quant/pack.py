"""Float rows and GGUF blocks → packed codes and scales, and back.

The rounding is the field's "round to nearest with the extreme value exact" (llama.cpp's Q4_0: the element of largest
magnitude maps to the lowest code, so all codes are used), followed by least-squares refits of the scale for the codes
found, kept only where they lower the group's squared error.
"""

from __future__ import annotations

import numpy as np

from mlcrt.errors import MlcrtError

from .scheme import GROUP, Scheme

_REFITS = 2
_HALF_MAX = float(np.finfo(np.float16).max)


def pack_rows(values: np.ndarray, scheme: Scheme) -> dict[str, np.ndarray]:
    """Quantise float32 [rows, columns] into the scheme's parts, always in NK order (see `to_layout`).

    Raises MlcrtError for NaN and infinity, and for values a float16 cannot hold.
    """
    _check_finite(values)
    if scheme.is_float:
        if scheme.bits == 16 and values.size and np.abs(values).max() > _HALF_MAX:
            raise MlcrtError("holds values beyond the range of float16; use --quantization q0f32")
        return {"": values.astype(scheme.float_storage)}
    groups = _groups(values)
    if scheme.asymmetric:
        codes, scales, mins = _quantise_asymmetric(groups, scheme.bits)
        return {**_pack_codes(codes, scheme), "scales": scales, "mins": mins}
    codes, scales = _quantise_symmetric(groups, scheme.bits, scheme.zero)
    return {**_pack_codes(codes, scheme), "scales": scales}


def unpack_rows(parts: dict[str, np.ndarray], scheme: Scheme, columns: int) -> np.ndarray:
    """Dequantise parts in NK order to float32 [rows, columns]."""
    if scheme.is_float:
        return parts[""].astype(np.float32)
    codes = _unpack_words(parts["codes"], scheme.plane_bits)
    if scheme.bits == 3:
        codes |= _unpack_words(parts["high"], 1) << np.uint32(2)
    codes = codes.reshape(len(codes), -1, GROUP).astype(np.float32)
    scales = parts["scales"].astype(np.float32)[:, :, None]
    if scheme.asymmetric:
        values = scales * codes + parts["mins"].astype(np.float32)[:, :, None]
    else:
        values = scales * (codes - np.float32(scheme.zero))
    return values.reshape(len(codes), -1)[:, :columns]


def to_layout(parts: dict[str, np.ndarray], scheme: Scheme) -> dict[str, np.ndarray]:
    """NK parts in the order the scheme stores: KN schemes hold every part transposed."""
    if scheme.layout == "NK" or scheme.is_float:
        return parts
    return {name: np.ascontiguousarray(part.T) for name, part in parts.items()}


_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # of 32 elements


def repack_blocks(blocks: np.ndarray, kind: str, scheme: Scheme) -> dict[str, np.ndarray]:
    """uint8 [rows, bytes] of GGUF Q4_0, Q4_1 or Q8_0 → NK parts with the very same scales and codes.

    A Q4 block of 32 stores element i in the low nibble of byte i and element i + 16 in the high one
    (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-common.h). Q4_0 also fits q8f16_1.
    """
    raw = np.ascontiguousarray(blocks).reshape(len(blocks), -1, _BLOCK_BYTES[kind])
    scales = np.ascontiguousarray(raw[:, :, :2]).view(np.float16)[:, :, 0]
    parts = {}
    if kind == "Q8_0":
        codes = (raw[:, :, 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    else:
        nibbles = raw[:, :, 4 if kind == "Q4_1" else 2 :]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
        if kind == "Q4_1":
            parts["mins"] = np.ascontiguousarray(raw[:, :, 2:4]).view(np.float16)[:, :, 0]
        elif scheme.bits == 8:
            codes = codes + np.uint8(120)  # (code - 8) stays what it was around the zero point 128
    for values in (scales, *parts.values()):
        _check_finite(values)
    return {**_pack_codes(codes, scheme), "scales": np.ascontiguousarray(scales), **parts}


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise MlcrtError(f"contains {what}; the checkpoint is damaged, download or export it again")


def _groups(values: np.ndarray) -> np.ndarray:
    """[rows, groups, 32], zero-padded."""
    rows, columns = values.shape
    pad = -columns % GROUP
    if pad:
        values = np.concatenate([values, np.zeros((rows, pad), np.float32)], axis=1)
    return values.reshape(rows, -1, GROUP)


def _half(values: np.ndarray) -> np.ndarray:
    if values.size and np.abs(values).max() > _HALF_MAX:
        raise MlcrtError("holds values whose scale exceeds float16; use --quantization q0f32")
    return values.astype(np.float16)


def _codes(groups: np.ndarray, scales: np.ndarray, offset, top: int) -> np.ndarray:
    """round(x / scale) + offset, clipped to [0, top]; scales float32 [rows, groups]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales == 0, 0, 1 / scales)[:, :, None]
    return np.clip(np.rint(groups * inverse + offset), 0, top)


def _quantise_symmetric(groups: np.ndarray, bits: int, zero: int):
    top = (1 << bits) - 1
    at = np.abs(groups).argmax(axis=2)[:, :, None]
    extreme = np.take_along_axis(groups, at, axis=2)[:, :, 0]
    scales = _half(extreme / -zero)
    codes = _codes(groups, scales.astype(np.float32), np.float32(zero), top)
    error = _error(groups, codes - zero, scales)
    for _ in range(_REFITS):
        centred = codes - zero
        weight = np.einsum("rgi,rgi->rg", centred, centred)
        fitted = np.einsum("rgi,rgi->rg", centred, groups) / np.maximum(weight, 1)
        candidate = _half(np.where(weight > 0, fitted, 0))
        new = _codes(groups, candidate.astype(np.float32), np.float32(zero), top)
        new_error = _error(groups, new - zero, candidate)
        better = new_error < error
        scales, error = np.where(better, candidate, scales), np.where(better, new_error, error)
        codes = np.where(better[:, :, None], new, codes)
    codes = np.where((scales == 0)[:, :, None], zero, codes)
    return codes.astype(np.uint8), scales


def _error(groups: np.ndarray, centred: np.ndarray, scales: np.ndarray) -> np.ndarray:
    difference = groups - centred * scales.astype(np.float32)[:, :, None]
    return np.einsum("rgi,rgi->rg", difference, difference)


def _quantise_asymmetric(groups: np.ndarray, bits: int):
    top = (1 << bits) - 1
    low, high = groups.min(axis=2), groups.max(axis=2)
    mins, scales = _half(low), _half((high - low) / top)
    codes = _codes(groups - mins.astype(np.float32)[:, :, None], scales.astype(np.float32), np.float32(0), top)
    return codes.astype(np.uint8), scales, mins


def _pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, n] codes below 2**bits → uint32 [rows, n*bits/32], element 0 in the lowest bits."""
    per_byte = 8 // bits
    fields = codes.reshape(len(codes), -1, per_byte)
    packed = fields[:, :, 0].copy()
    for i in range(1, per_byte):
        packed |= fields[:, :, i] << np.uint8(bits * i)
    return np.ascontiguousarray(packed).view("<u4")


def _unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return fields.reshape(len(words), -1)


def _pack_codes(codes: np.ndarray, scheme: Scheme) -> dict[str, np.ndarray]:
    flat = codes.reshape(len(codes), -1)
    if scheme.bits == 3:
        return {"codes": _pack_words(flat & 3, 2), "high": _pack_words(flat >> 2, 1)}
    return {"codes": _pack_words(flat, scheme.bits)}
