"""mlcrt: compile a language model once, run it fast on whatever hardware a person owns."""

from __future__ import annotations

from mlcrt.version import __version__

__all__ = ["ChatModule", "MlcrtError", "__version__"]


def __getattr__(name: str):
    """Import the public classes when they are first asked for, so that `mlcrt --help` stays quick."""
    if name == "ChatModule":
        from mlcrt.chat import ChatModule

        return ChatModule
    if name == "MlcrtError":
        from mlcrt.errors import MlcrtError

        return MlcrtError
    raise AttributeError(f"module 'mlcrt' has no attribute '{name}'")
