"""Session files: the tokens of a conversation and their KV cache, as safetensors with a versioned header."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError

VERSION = "1"


def write_session(path: Path, identity: dict[str, str], tokens: list[int], caches: list[np.ndarray]) -> None:
    """`identity` has signature, model and layout; `caches` are [kv_heads, blocks used, …] per K and V."""
    from safetensors.numpy import save_file

    path = Path(path)
    tensors = {"tokens": np.array(tokens, np.int32)}
    tensors.update({f"cache.{i}": np.ascontiguousarray(c) for i, c in enumerate(caches)})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, beside, metadata={"mlcrt_session": VERSION, **identity})
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
            tokens = [int(t) for t in file.get_tensor("tokens")]
            return tokens, [file.get_tensor(f"cache.{i}") for i in range(count)]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise MlcrtError(f"{path} is not a readable session file ({error}); save the session again") from None


def _check(path: Path, metadata: dict[str, str], identity: dict[str, str]) -> None:
    version = metadata.get("mlcrt_session")
    if version is None:
        raise MlcrtError(f"{path} is not an mlcrt session file")
    if version != VERSION:
        raise MlcrtError(f"{path} has session version {version}, this mlcrt reads {VERSION}; save the session again")
    if metadata.get("signature") != identity["signature"] or metadata.get("model") != identity["model"]:
        raise MlcrtError(f"{path} belongs to {metadata.get('model')}, not to {identity['model']}; load that model")
    if metadata.get("layout") != identity["layout"]:
        raise MlcrtError(f"{path} was saved on another device layout ({metadata.get('layout')}); replay the chat instead")
