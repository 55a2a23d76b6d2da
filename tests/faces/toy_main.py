"""`python toy_main.py ARGS…` is `mlcrt ARGS…` with the toy engine, for tests that need a process or a terminal."""

from __future__ import annotations

import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "text"), str(HERE.parent.parent)]

import toy_engine  # noqa: E402

module = types.ModuleType("mlcrt.runtime.engine")
module.Engine, module.ContextFull = toy_engine.Engine, toy_engine.ContextFull
sys.modules["mlcrt.runtime.engine"] = module

from mlcrt.cli import main  # noqa: E402

sys.exit(main())
