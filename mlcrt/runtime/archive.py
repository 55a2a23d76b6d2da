"""A saved conversation: a zip file with the engine's session and the messages. Written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcrt.errors import MlcrtError

_FORMAT = {"format": "mlcrt conversation", "version": 1}
_STATE, _SESSION = "chat.json", "session"
_KEYS = {"model": str, "messages": list, "known": list}


def write_archive(path: Path, state: dict[str, Any], save_session: Callable[[Path], None]) -> None:
    """Write `state` (JSON) and what `save_session` writes to `path`, replacing it only once all is written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlcrt-") as folder:
            session, whole = Path(folder, "session"), Path(folder, "whole")
            save_session(session)
            # stored, not deflated: a KV cache hardly shrinks
            with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_STATE, json.dumps({**_FORMAT, **state}, ensure_ascii=False))
                archive.write(session, _SESSION)
            os.replace(whole, path)
    except OSError as error:
        raise MlcrtError(f"The conversation cannot be saved to {path}: {error.strerror or error}.") from None


def read_archive(path: Path, restore_session: Callable[[Path], None]) -> dict[str, Any]:
    """The state in `path`, once `restore_session` took the session file.

    Raises `MlcrtError` for a file that is missing, damaged or of another version, before anything is restored.
    """
    try:
        beside = path.parent if os.access(path.parent, os.W_OK) else None
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=beside, prefix=".mlcrt-") as folder:
            state = json.loads(archive.read(_STATE))
            _check(state, path)
            session = archive.extract(_SESSION, folder)
            try:
                restore_session(Path(session))
            except MlcrtError as error:  # it knows the extracted file only
                raise type(error)(str(error).replace(session, str(path))) from None
            return state
    except FileNotFoundError:
        raise MlcrtError(f"There is no saved conversation {path}.") from None
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, EOFError):
        raise MlcrtError(f"{path} is not a conversation saved by mlcrt, or it is damaged.") from None
    except OSError as error:
        raise MlcrtError(f"The conversation {path} cannot be read: {error.strerror or error}.") from None


def _check(state: Any, path: Path) -> None:
    if not isinstance(state, dict) or state.get("format") != _FORMAT["format"]:
        raise ValueError("another format")
    if state.get("version") != _FORMAT["version"]:
        raise MlcrtError(
            f"{path} was saved in version {state.get('version')} of the conversation format, and this mlcrt reads "
            f"version {_FORMAT['version']}; load it with the mlcrt that saved it."
        )
    if "system" not in state or not all(isinstance(state.get(key), kind) for key, kind in _KEYS.items()):
        raise ValueError("incomplete")
    state["known"] = [(str(text), [int(token) for token in tokens]) for text, tokens in state["known"]]
