"""The safetensors container, read strictly (https://github.com/huggingface/safetensors#format).

A file is a little-endian u64 header length, that many bytes of JSON, then the tensor data, which the header's offsets
must cover exactly. The reader is our own because BF16 has no NumPy dtype and rows must be readable on their own.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from mlcrt.errors import MlcrtError
from mlcrt.formats.tensors import SAFETENSORS_BITS, StoredTensor, TensorInfo, open_binary

MAX_HEADER = 100_000_000  # bytes, the format's own limit


def read_safetensors(path: Path) -> list[StoredTensor]:
    """The tensors of one file in data order. Raises MlcrtError when the header or the file's size is wrong."""
    with open_binary(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > MAX_HEADER:
            raise _bad(path, "does not start with a safetensors header length")
        if 8 + length > size:
            raise _bad(path, f"ends inside its header ({size} bytes, header of {length})")
        header = _parse(path, file.read(length))
    return _layout(path, header, 8 + length, size)


def _bad(path: Path, what: str) -> MlcrtError:
    return MlcrtError(f"{path} {what}: not a safetensors file, or an incomplete download; fetch it again.")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("repeated key")
        return keys

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"has a header that is not valid JSON ({str(error)[:80]})") from error
    if not isinstance(header, dict):
        raise _bad(path, "has a header that is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _layout(path: Path, header: dict[str, Any], base: int, size: int) -> list[StoredTensor]:
    """Checks that dtypes, shapes and offsets agree and that the data is covered without overlap or hole."""
    found: list[tuple[int, int, TensorInfo]] = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise _bad(path, f"has a malformed entry for tensor '{name}'")
        if dtype not in SAFETENSORS_BITS:
            raise MlcrtError(
                f"{path}: tensor '{name}' has unknown dtype {dtype[:20]!r}; "
                "use an F32, F16 or BF16 checkpoint of the model."
            )
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 16:
            raise _bad(path, f"gives tensor '{name}' an impossible shape")
        bits = math.prod(shape) * SAFETENSORS_BITS[dtype]
        if not 0 <= begin <= end or (end - begin) * 8 != bits:
            raise _bad(
                path, f"gives tensor '{name}' {end - begin} bytes, which {dtype} of shape {shape[:8]} does not fill"
            )
        found.append((begin, end, TensorInfo(name, tuple(shape), dtype, path)))
    found.sort(key=lambda item: item[:2])
    expected = 0
    for begin, end, info in found:
        if begin != expected:
            raise _bad(path, f"has tensors that overlap or leave a hole before '{info.name}'")
        expected = end
    if base + expected != size:
        raise _bad(path, f"is {size} bytes long where its header describes {base + expected}")
    return [StoredTensor(info, base + begin) for begin, _, info in found]
