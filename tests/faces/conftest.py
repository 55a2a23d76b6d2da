"""A compiled folder with a real tokenizer, and the toy engine in the real one's place."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "text")]

import toy_engine  # noqa: E402
from toy_dist import make_dist  # noqa: E402


@pytest.fixture
def dist(tmp_path) -> Path:
    return make_dist(tmp_path)


@pytest.fixture(autouse=True)
def toy_runtime(monkeypatch):
    """`mlcrt.runtime.engine` is the toy; nothing here compiles or needs a compiled library."""
    module = types.ModuleType("mlcrt.runtime.engine")
    module.Engine, module.ContextFull = toy_engine.Engine, toy_engine.ContextFull
    monkeypatch.setitem(sys.modules, "mlcrt.runtime.engine", module)
    import mlcrt.runtime

    monkeypatch.setattr(mlcrt.runtime, "engine", module, raising=False)
