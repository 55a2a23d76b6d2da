"""`mlcrt info`: what a compiled folder or a package holds, and what of it this machine can run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlcrt.commands import options

SUMMARY = "tell what a compiled folder or a package holds"
EXAMPLES = """examples:
  mlcrt info dist/SmolLM2-135M-Instruct-q4f16_1
  mlcrt info model.tar.zst --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIST", help="compiled folder, its name under dist/, or a package")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mlcrt.info import describe, rows

    found = describe(folder_of(args.model))
    if args.json:
        options.print_json(found)
        return 0
    options.print_rows(found["name"], rows(found))
    print_libraries(found["libraries"])
    return 0


def folder_of(model: str) -> Path:
    """The dist folder that the argument means."""
    from mlcrt.dist import is_dist
    from mlcrt.unpack import is_package, unpacked

    if is_package(model):
        return unpacked(Path(model), options.report)
    under = options.DIST / model
    return under if is_dist(under) and not is_dist(Path(model)) else Path(model)


def print_libraries(libraries: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not libraries:
        print("no libraries: mlcrt compile adds them")
        return
    table = Table()
    short = all(len(f"{entry['slot']}{entry['arch']}") <= 40 for entry in libraries)
    table.add_column("library", no_wrap=short, overflow="fold")  # one for many GPUs has a long name
    table.add_column("for", overflow="fold")
    table.add_column("size", no_wrap=True)
    table.add_column("made by")
    table.add_column("runs here")
    for entry in libraries:
        size = "" if entry["bytes"] is None else f"{entry['bytes'] / 1e3:,.0f} kB"
        here = "[green]yes[/]" if entry["runs_here"] else f"[red]no[/]: {escape(str(entry['reason']))}"
        arch = "" if str(entry["arch"]) in entry["slot"] else f"{entry['arch']}, ".replace("+", " + ")
        versions = f"mlcrt {entry['mlcrt']}, TVM {entry['tvm']}"
        table.add_row(escape(entry["slot"]), escape(f"{arch}{entry['system']}"), size, escape(versions), here)
    options.wide_console().print(table)
