"""The GGUF container, versions 2 and 3, read strictly (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The `gguf` package's reader takes seconds for a vocabulary and trusts every length; this one takes milliseconds and
believes nothing it has not compared with the file's size.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.formats.tensors import open_binary, quant_sizes

SCALARS = {  # GGUF value type → (struct format, NumPy dtype)
    0: ("<B", "<u1"), 1: ("<b", "<i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4"),
    6: ("<f", "<f4"), 7: ("<?", "?"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8"),
}  # fmt: skip
STRING, ARRAY = 8, 9
MAX_ARRAY_BYTES = 256 << 20  # vocabularies stay below 20 MB; more is a corrupt length in a large file
MAX_STRINGS = 1 << 23
MAX_NESTING = 4
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor as the file describes it: `shape` is row-major (the reverse of GGUF's order), `offset` absolute."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # GGML type name
    file: Path
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """Metadata and tensor table of a GGUF file; `tensors` covers all parts of a split model."""

    path: Path
    metadata: dict[str, Any]  # int, float, bool, str, list (of str or lists) or NumPy vector
    tensors: dict[str, GGUFTensor]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key` as int, float, str, bool or list, `default` when absent; MlcrtError for another type."""
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise MlcrtError(f"{self.path}: metadata '{key}' is not a usable {kind.__name__}; convert the model again.")
        return value

    def require(self, key: str, kind: type) -> Any:
        """Like `get`, and MlcrtError when the key is absent."""
        value = self.get(key, kind)
        if value is None:
            raise MlcrtError(f"{self.path} lacks the metadata '{key}'; convert the model to GGUF again.")
        return value


def read_gguf(path: Path) -> GGUFFile:
    """Parses a GGUF file, or all parts of a split one when `path` is any of them. Raises MlcrtError."""
    path = Path(path)
    match = PART.fullmatch(path.name)
    if not match or int(match[3]) < 2:
        return _read_part(path)
    count = int(match[3])
    if count > 1000:
        raise MlcrtError(f"{path} is said to be one of {count} parts, which cannot be right; check the file's name.")
    parts = [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise MlcrtError(f"{path.name} is one of {count} parts and {part} is missing; fetch all parts.")
    files = [_read_part(part) for part in parts]
    tensors: dict[str, GGUFTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise MlcrtError(f"{file.path} repeats tensor '{name}' of another part; fetch the parts again.")
            tensors[name] = tensor
    return replace(files[0], tensors=tensors)


def _read_part(path: Path) -> GGUFFile:
    with open_binary(path) as file:
        size = file.seek(0, 2)
        if size < 24:
            raise MlcrtError(f"{path} is too short to be a GGUF file; fetch it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(path, data).read()
            except (struct.error, _Truncated) as error:
                raise MlcrtError(
                    f"{path} ends inside its GGUF header, or a length in it is corrupt; fetch it again."
                ) from error


class _Truncated(Exception):
    """A length in the header points beyond the end of the file."""


class _Reader:
    """A cursor over the mapped file. Only the header's pages are touched."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def bad(self, what: str) -> MlcrtError:
        return MlcrtError(f"{self.path} {what}: a corrupt or incomplete GGUF file, fetch it again.")

    def read(self) -> GGUFFile:
        if self.data[:4] != b"GGUF":
            raise MlcrtError(f"{self.path} does not start with the GGUF magic; it is not a GGUF file.")
        self.position = 4
        version = self.scalar("<I")
        if version & 0xFFFF == 0 and version:
            raise MlcrtError(f"{self.path} is a big-endian GGUF file; use the little-endian file of the model.")
        if version not in (2, 3):
            raise MlcrtError(f"{self.path} has GGUF version {version}; mlcrt reads 2 and 3: convert the model again.")
        tensor_count, pair_count = self.scalar("<Q"), self.scalar("<Q")
        if tensor_count > self.size // 24 or pair_count > self.size // 13:  # the least bytes that one entry takes
            raise _Truncated
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.text("a metadata key")
            if key in metadata:
                raise self.bad(f"repeats the metadata key '{key[:60]}'")
            metadata[key] = self.value(self.scalar("<I"))
        return GGUFFile(self.path, metadata, self.tensors(tensor_count, metadata))

    def scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self.data, self.position)[0]
        self.position += struct.calcsize(form)
        return value

    def text(self, what: str) -> str:
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"has {what} that is not UTF-8") from error

    def string(self) -> bytes:
        length = self.scalar("<Q")
        start, self.position = self.position, self.position + length
        if self.position > self.size:
            raise _Truncated
        return self.data[start : self.position]

    def strings(self, count: int) -> list[str]:
        """`count` strings; the loop over a whole vocabulary, so it keeps its state in locals."""
        if count > MAX_STRINGS or count * 8 > self.size - self.position:
            raise _Truncated
        data, position, size, unpack = self.data, self.position, self.size, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            start = position + 8
            position = start + unpack(data, position)[0]
            if position > size:
                raise _Truncated
            found.append(data[start:position])
        self.position = position
        return [raw.decode("utf-8", "replace") for raw in found]

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind][0])
        if kind == STRING:
            return self.string().decode("utf-8", "replace")  # free text of a converter; broken text must not matter
        if kind != ARRAY or depth >= MAX_NESTING:
            raise self.bad(f"has a metadata value of unknown type {kind}")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element == STRING:
            return self.strings(count)
        if element == ARRAY:
            if count * 12 > self.size - self.position:
                raise _Truncated
            return [self.value(ARRAY, depth + 1) for _ in range(count)]
        if element not in SCALARS:
            raise self.bad(f"has a metadata array of unknown type {element}")
        dtype = np.dtype(SCALARS[element][1])
        start, self.position = self.position, self.position + count * dtype.itemsize
        if count * dtype.itemsize > MAX_ARRAY_BYTES or self.position > self.size:
            raise _Truncated
        return np.frombuffer(self.data[start : self.position], dtype)

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, GGUFTensor]:
        entries = []
        for _ in range(count):
            name = self.text("a tensor name")
            rank = self.scalar("<I")
            if rank > 4:
                raise self.bad(f"gives tensor '{name[:60]}' {rank} dimensions")
            shape = tuple(self.scalar("<Q") for _ in range(rank))[::-1]
            entries.append((name, shape, self.scalar("<I"), self.scalar("<Q")))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 30:
            raise self.bad("has a general.alignment that is not a power of two")
        base = -(-self.position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        spans = []
        for name, shape, code, offset in entries:
            if name in tensors:
                raise self.bad(f"repeats the tensor '{name[:60]}'")
            dtype, length = self.extent(name, shape, code)
            if offset % alignment or base + offset + length > self.size:
                raise self.bad(f"places tensor '{name[:60]}' outside the file or off its alignment")
            tensors[name] = GGUFTensor(name, shape, dtype, self.path, base + offset)
            spans.append((offset, offset + length, name))
        spans.sort()
        for (_, end, _), (start, _, name) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise self.bad(f"lets tensor '{name[:60]}' overlap another")
        return tensors

    def extent(self, name: str, shape: tuple[int, ...], code: int) -> tuple[str, int]:
        """(GGML type name, bytes) of a tensor."""
        types = _type_names()
        if code not in types:
            raise MlcrtError(
                f"{self.path}: tensor '{name[:60]}' has GGML type {code}, which this version does not know; "
                "use another quantisation of the model, such as Q8_0 or Q4_K_M."
            )
        block, length = quant_sizes()[types[code]]
        if not shape or min(shape) < 1 or shape[-1] % block:
            raise self.bad(f"gives tensor '{name[:60]}' the impossible shape {shape} for {types[code]}")
        return types[code], math.prod(shape) // block * length


def _type_names() -> dict[int, str]:
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): kind.name for kind in GGML_QUANT_SIZES}
