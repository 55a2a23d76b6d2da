"""How a compilation shows itself: a line per library that fills up on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from mlcrt.commands import options

Report = Callable[[str], None]
Progress = Callable[[str, str, float], None]  # slot of the library, phase, share done


@contextlib.contextmanager
def compilation() -> Iterator[tuple[Report, Progress | None]]:
    """(report, progress) for `compile_model`; both write to stderr."""
    if not sys.stderr.isatty():
        yield options.report, None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def progress(slot: str, phase: str, share: float) -> None:
            if slot not in tasks:
                tasks[slot] = bars.add_task(escape(slot), total=1.0, phase="")
            bars.update(tasks[slot], completed=share, phase=phase)
            if share >= 1:
                bars.stop_task(tasks[slot])

        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True), progress
