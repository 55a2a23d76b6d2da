"""`python toy_serve.py serve ARGS…` is `mlcrt serve ARGS…` with the toy scheduler, in a process of its own."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faces"), str(HERE.parent / "text"), str(HERE.parent.parent)]

import toy_scheduler  # noqa: E402


def open_scheduler(dist, device="auto", slots=8, context=None, queue=64):
    return toy_scheduler.ToyScheduler(
        dist, context=context, slots=slots, queue=queue, step_s=float(os.environ.get("TOY_STEP", 0))
    )


module = types.ModuleType("mlcrt.serve.scheduler")
module.open_scheduler = open_scheduler
sys.modules["mlcrt.serve.scheduler"] = module

if __name__ == "__main__":
    from mlcrt.cli import main

    sys.exit(main())
