"""Named tensors that stay on disk until a range of their rows is asked for.

Both formats end here: a `StoredTensor` says where the bytes of one Hugging Face tensor lie and how they decode.
Bytes are read into a bounded buffer rather than mapped: the resident set is then the result plus one chunk, and a
file that shrinks while it is read gives an error where a mapping would end the process with SIGBUS.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError

CHUNK_BYTES = 8 << 20  # float32 bytes decoded at a time; the dequantisers need a few times this as scratch
GROUP = 1 << 16  # elements dequantised at a time
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes per element
SAFETENSORS_BITS = {  # element sizes of the safetensors header, https://github.com/huggingface/safetensors#format
    "F32": 32, "F16": 16, "BF16": 16, "F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about one tensor. `dtype` is the file's name for it ("F32", "BF16", "Q4_1", "Q6_K", …)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path


class TensorSource(ABC):
    """Tensors by their Hugging Face names, whatever the file calls them."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names, in file order."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Shape, stored dtype and file of a tensor, without reading it."""

    @abstractmethod
    def load(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or `rows` of its dimension 0, decoded to an own float32 array."""

    @abstractmethod
    def blocks(self, name: str, rows: slice | None = None) -> np.ndarray | None:
        """uint8 [rows, bytes per row] of a GGUF quantised matrix in Hugging Face row order; None for other tensors."""

    def __contains__(self, name: object) -> bool:
        return name in self.names()


@cache
def quant_sizes() -> dict[str, tuple[int, int]]:
    """GGML type name → (elements per block, bytes per block), all types the `gguf` package knows."""
    from gguf.constants import GGML_QUANT_SIZES

    return {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """The bytes of one tensor in a file.

    `rotary_head` > 0 says that rows come in heads of that many, each with its two rotary halves interleaved
    (GGUF's `llama` layout); reading restores the Hugging Face order. `shift` is added to every value after decoding.
    """

    info: TensorInfo
    offset: int
    quantised: bool = False
    rotary_head: int = 0
    shift: float = 0.0

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, elements per row) as stored; a quantised vector is one row."""
        shape = self.info.shape
        if self.quantised and len(shape) == 1:
            return 1, shape[0]
        return (shape[0], math.prod(shape[1:])) if shape else (1, 1)

    @property
    def row_bytes(self) -> int:
        elements = self.matrix[1]
        if self.quantised:
            block, size = quant_sizes()[self.info.dtype]
            return elements // block * size
        return elements * FLOATS[self.info.dtype]


class FileTensors(TensorSource):
    """Tensors that lie in ordinary files; nothing is open between calls, so any thread may load."""

    def __init__(self, stored: Iterable[StoredTensor]):
        self._stored = {tensor.info.name: tensor for tensor in stored}

    def names(self) -> list[str]:
        return list(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def info(self, name: str) -> TensorInfo:
        return self._get(name).info

    def load(self, name: str, rows: slice | None = None) -> np.ndarray:
        """float32 of `info(name).shape`, dimension 0 cut to `rows`. Raises MlcrtError for undecodable dtypes."""
        tensor = self._get(name)
        shape, dtype = tensor.info.shape, tensor.info.dtype
        if dtype not in FLOATS and not tensor.quantised:
            raise MlcrtError(
                f"{tensor.info.file}: tensor '{name}' has dtype {dtype}, which mlcrt does not read; "
                "use the model's F32, F16 or BF16 safetensors, or a GGUF file of it."
            )
        start, stop = _range(rows, shape)
        if tensor.quantised and len(shape) == 1:
            return self._decode(tensor, 0, 1)[0, start:stop]
        values = self._decode(tensor, start, stop)
        return values.reshape((stop - start, *shape[1:]) if shape else ())

    def blocks(self, name: str, rows: slice | None = None) -> np.ndarray | None:
        tensor = self._get(name)
        if not tensor.quantised or len(tensor.info.shape) < 2:
            return None
        start, stop = _range(rows, tensor.info.shape)
        with open_binary(tensor.info.file) as file:
            return _rows(file, tensor, start, stop)

    def _get(self, name: str) -> StoredTensor:
        try:
            return self._stored[name]
        except KeyError:
            raise MlcrtError(f"The model has no tensor '{name}'; the download or conversion is incomplete.") from None

    def _decode(self, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, elements per row], decoded a chunk of rows at a time."""
        columns = tensor.matrix[1]
        out = np.empty((stop - start, columns), np.float32)
        if not out.size:
            return out
        step = max(1, CHUNK_BYTES // (4 * columns))
        if tensor.rotary_head:  # whole heads, so that no head is read twice
            step = max(tensor.rotary_head, step - step % tensor.rotary_head)
        with open_binary(tensor.info.file) as file:
            for first in range(start, stop, step):
                last = min(first + step, stop)
                _to_float(_rows(file, tensor, first, last), tensor, out[first - start : last - start])
        if tensor.shift:
            out += np.float32(tensor.shift)
        return out


def open_binary(path: Path) -> Any:
    """The file opened for reading; MlcrtError when it cannot be."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise MlcrtError(f"{path} cannot be read: {error.strerror or error}.") from error


def _range(rows: slice | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if not shape:
        if rows is not None:
            raise ValueError("a scalar has no rows to slice")
        return 0, 1
    start, stop, step = (rows or slice(None)).indices(shape[0])
    if step != 1:
        raise ValueError("rows must be consecutive")
    return start, max(start, stop)


def _rows(file: Any, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    """uint8 [stop - start, row bytes] in Hugging Face row order."""
    head, row_bytes = tensor.rotary_head, tensor.row_bytes
    first, last = (start, stop) if not head else (start - start % head, stop + -stop % head)
    raw = np.empty((last - first, row_bytes), np.uint8)
    try:
        file.seek(tensor.offset + first * row_bytes)
        got = file.readinto(memoryview(raw).cast("B")) if raw.size else 0
    except OSError as error:
        raise MlcrtError(f"{tensor.info.file} cannot be read: {error.strerror or error}.") from error
    if got != raw.nbytes:
        raise MlcrtError(
            f"{tensor.info.file} ended inside tensor '{tensor.info.name}'; it changed while being read, fetch it again."
        )
    if head:  # stored row 2i + half of a head is row half·(head/2) + i of the Hugging Face tensor
        heads = raw.reshape(-1, head // 2, 2, row_bytes)
        raw = heads.swapaxes(1, 2).reshape(-1, row_bytes)[start - first : stop - first]
    return raw


def _to_float(raw: np.ndarray, tensor: StoredTensor, out: np.ndarray) -> None:
    """Decodes stored rows into `out`, float32 [rows, elements per row]."""
    dtype = tensor.info.dtype
    if dtype == "F32":
        out[:] = raw.view("<f4")
    elif dtype == "F16":
        out[:] = raw.view("<f2")
    elif dtype == "BF16":  # the upper half of a float32
        np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        _dequantise(raw.reshape(-1), tensor, out.reshape(-1))


def _dequantise(raw: np.ndarray, tensor: StoredTensor, out: np.ndarray) -> None:
    """Decodes whole blocks, a cache-sized group at a time (2 to 5 times faster than by rows)."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[tensor.info.dtype]
    block, size = quant_sizes()[tensor.info.dtype]
    group = max(1, GROUP // block)
    try:
        with np.errstate(all="ignore"):  # infinite scales of a broken file show up as NaN, which the caller tests
            for first in range(0, raw.size // size, group):
                values = dequantize(raw[first * size : (first + group) * size].reshape(1, -1), kind)
                out[first * block : (first + group) * block] = values[0]
    except NotImplementedError:
        raise MlcrtError(
            f"{tensor.info.file}: tensor '{tensor.info.name}' has GGML type {tensor.info.dtype}, which mlcrt cannot "
            "dequantise; use another quantisation of the model, such as Q8_0 or Q4_K_M."
        ) from None


if sys.byteorder != "little":  # raw.view(np.float32) above and gguf's tables assume it
    raise MlcrtError("mlcrt reads model files on little-endian machines only.")
