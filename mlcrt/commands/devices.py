"""`mlcrt devices`: every target, there or not, and why not."""

from __future__ import annotations

import argparse
from typing import Any

from mlcrt.commands import options

SUMMARY = "list the targets and the devices found for them"
EXAMPLES = """examples:
  mlcrt devices
  mlcrt devices --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    found = probe_all()
    if args.json:
        options.print_json(found)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "there", "devices")
    for entry in found:
        details = "\n".join(_describe(device) for device in entry["devices"]) or entry["reason"]
        table.add_row(entry["target"], "[green]yes[/]" if entry["available"] else "[red]no[/]", details)
    Console().print(table)
    return 0


def probe_all() -> list[dict[str, Any]]:
    """For each target: `target`, `available`, `devices` (dicts), `reason` when it is not there."""
    from mlcrt.targets import all_targets

    out = []
    for name, target in all_targets().items():
        result = target.probe()
        entry = {"target": name, "available": result.available, "devices": result.devices, "reason": result.reason}
        out.append(entry)
    return out


def _describe(device: dict[str, Any]) -> str:
    from rich.markup import escape

    rest = ", ".join(f"{key} {value}" for key, value in device.items() if key != "name" and not _long(value))
    name = str(device.get("name", "")).strip()
    return escape(f"{name} ({rest})" if name and rest else name or rest)


def _long(value: Any) -> bool:
    """Lists such as CPU flags are for --json."""
    return isinstance(value, (list, tuple, dict)) and len(value) > 8
