"""params-*.safetensors: written as a stream, read by mapping.

The safetensors header comes first, so every shape is declared before any data exists and a tensor can be written in
row blocks without ever being held whole. Tensors whose size is a multiple of 64 bytes come first and the data section
starts on such a boundary, so that a mapped file can be handed to the runtime without a copy.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError

ALIGNMENT = 64
MAX_SHARD_BYTES = 4 << 30
_NAMES = {"uint32": "U32", "float16": "F16", "float32": "F32"}
_DTYPES = {v: k for k, v in _NAMES.items()}
Spec = tuple[str, tuple[int, ...], str]  # name, shape, dtype


def _bytes(spec: Spec) -> int:
    return int(np.prod(spec[1], dtype=np.int64)) * np.dtype(spec[2]).itemsize


class ParamsWriter:
    """Writes declared tensors into shards of `folder`; each tensor may arrive in any number of pieces, in order."""

    def __init__(self, folder: Path, specs: list[Spec], metadata: dict[str, str]):
        self.folder, self.files, self.where = Path(folder), [], {}
        ordered = sorted(specs, key=lambda s: _bytes(s) % ALIGNMENT != 0)
        shards: list[list[Spec]] = [[]]
        size = 0
        for spec in ordered:
            if shards[-1] and size + _bytes(spec) > MAX_SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(spec)
            size += _bytes(spec)
        for i, shard in enumerate(shards):
            self._create(f"params-{i + 1:05d}-of-{len(shards):05d}.safetensors", shard, metadata)

    def _create(self, name: str, shard: list[Spec], metadata: dict[str, str]) -> None:
        header: dict = {"__metadata__": metadata}
        offset = 0
        for spec in shard:
            end = offset + _bytes(spec)
            header[spec[0]] = {"dtype": _NAMES[spec[2]], "shape": list(spec[1]), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        file = open(self.folder / name, "wb")  # noqa: SIM115  (closed in close())
        self.files.append(file)
        start = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + offset)
        for spec in shard:
            begin, end = header[spec[0]]["data_offsets"]
            self.where[spec[0]] = [file, start + begin, start + end]

    def write(self, name: str, values: np.ndarray) -> None:
        """Append the next rows of tensor `name`."""
        slot = self.where[name]
        data = np.ascontiguousarray(values)
        if slot[1] + data.nbytes > slot[2]:
            raise ValueError(f"{name}: more data than declared")
        slot[0].seek(slot[1])
        slot[0].write(data.reshape(-1).view(np.uint8).data)
        slot[1] += data.nbytes

    def close(self) -> list[str]:
        """Flush to disk; the file names. Every declared tensor must be complete."""
        for name, (_, at, end) in self.where.items():
            if at != end:
                raise ValueError(f"{name}: {end - at} bytes were never written")
        names = []
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            names.append(Path(file.name).name)
        return names

    def abort(self) -> None:
        for file in self.files:
            file.close()


def read_params(folder: Path, files: list[str]) -> dict[str, np.ndarray]:
    """Map every tensor of the named files: read-only numpy views, nothing is read yet."""
    result: dict[str, np.ndarray] = {}
    for name in files:
        path = Path(folder) / name
        result.update(_map_file(path))
    return result


def _map_file(path: Path) -> dict[str, np.ndarray]:
    remedy = "convert the model again with mlcrt convert"
    try:
        raw = np.memmap(path, np.uint8, "c")  # copy on write: never written, but accepted as a mutable tensor
    except (OSError, ValueError) as error:
        raise MlcrtError(f"{path} cannot be read ({error}); {remedy}") from None
    try:
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + length].tobytes())
        result = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = raw[8 + length + begin : 8 + length + end]
            result[name] = data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return result
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MlcrtError(f"{path} is truncated or damaged; {remedy}") from None
