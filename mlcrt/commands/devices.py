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
    from rich.table import Table

    table = Table("target", "there", "devices")
    for entry in found:
        details = "\n".join(_describe(device) for device in entry["devices"]) or entry["reason"]
        table.add_row(entry["target"], "[green]yes[/]" if entry["available"] else "[red]no[/]", details)
    options.wide_console().print(table)
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
    """'cuda:0: NAME, 80.0 GB, arch sm_90': the id is what --device takes."""
    from rich.markup import escape

    parts = [str(device["name"]).strip()] if device.get("name") else []
    if device.get("memory_bytes"):
        parts.append(f"{device['memory_bytes'] / 1e9:,.1f} GB")
    for key, value in device.items():
        if key not in ("id", "name", "memory_bytes") and not _long(value):
            text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
            parts.append(f"{key} {text}")
    found = f"{device['id']}: " if device.get("id") else ""
    return escape(found + ", ".join(parts))


def _long(value: Any) -> bool:
    """Lists such as CPU flags are for --json."""
    return isinstance(value, (list, tuple, dict)) and len(value) > 8
