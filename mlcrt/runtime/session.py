"""Session files: the tokens of a conversation and their KV cache, as safetensors with a versioned header and CRC-32."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError

VERSION = "2"  # 2: with a checksum


def write_session(path: Path, identity: dict[str, str], tokens: list[int], caches: list[np.ndarray]) -> None:
    """`identity` has signature, model and layout; `caches` are [kv_heads, blocks used, …] per K and V."""
    from safetensors.numpy import save_file

    path = Path(path)
    tensors = {"tokens": np.array(tokens, np.int32)}
    tensors.update({f"cache.{i}": np.ascontiguousarray(c) for i, c in enumerate(caches)})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, beside, metadata={"mlcrt_session": VERSION, "crc32": _checksum(tensors), **identity})
        os.replace(beside, path)
    except Exception as error:  # safetensors reports a full disk by an exception of its own
        raise MlcrtError(f"the session cannot be saved to {path}: {error}") from None
    finally:
        beside.unlink(missing_ok=True)


def read_session(path: Path, identity: dict[str, str], count: int) -> tuple[list[int], list[np.ndarray]]:
    """(tokens, caches); MlcrtError if the file is not a session of this very model and layout."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise MlcrtError(f"there is no session file {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check(path, metadata, identity)
            names = ["tokens", *(f"cache.{i}" for i in range(count))]
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # TypeError: a dtype that numpy lacks
        raise MlcrtError(f"{path} is not a readable session file ({error}); save the session again") from None
    if metadata.get("crc32") != _checksum(tensors) or tensors["tokens"].ndim != 1:
        raise MlcrtError(f"{path} is damaged (its checksum differs); save the session again")
    return tensors["tokens"].tolist(), [tensors[name] for name in names[1:]]


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """CRC-32 of all bytes in order, in hexadecimal."""
    value = 0
    for tensor in tensors.values():
        value = zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8), value)
    return f"{value:08x}"


def _check(path: Path, metadata: dict[str, str], identity: dict[str, str]) -> None:
    version = metadata.get("mlcrt_session")
    if version is None:
        raise MlcrtError(f"{path} is not an mlcrt session file")
    if version != VERSION:
        raise MlcrtError(f"{path} has session version {version}, this mlcrt reads {VERSION}; save the session again")
    if metadata.get("signature") != identity["signature"] or metadata.get("model") != identity["model"]:
        raise MlcrtError(f"{path} belongs to {metadata.get('model')}, not to {identity['model']}; load that model")
    if metadata.get("layout") != identity["layout"]:
        other = metadata.get("layout")
        raise MlcrtError(f"{path} was saved with another cache layout ({other}); load it on the device that saved it")
