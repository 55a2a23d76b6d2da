"""`python toy_serve.py serve ARGS…` is `mlcrt serve ARGS…` with the toy scheduler, in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faces"), str(HERE.parent / "text"), str(HERE.parent.parent)]

import toy_scheduler  # noqa: E402


def open_scheduler(dist, device, slots, context, queue):
    step_s = float(os.environ.get("TOY_STEP", 0))
    return toy_scheduler.ToyScheduler(dist, context=context, slots=slots, queue=queue, step_s=step_s)


def install() -> None:
    """Put the toy in the real scheduler's place in this process."""
    import mlcrt.serve.run

    mlcrt.serve.run.open_scheduler = open_scheduler


if __name__ == "__main__":
    from mlcrt.cli import main

    install()
    sys.exit(main())
