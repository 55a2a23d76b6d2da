"""Compile targets, one folder each. A target module has

    attributes(arch)   → the target's description of an architecture (UsageError for an unknown one)
    probe()            → ProbeResult: the devices of this machine, or a sentence why there are none
    library(attrs, kv) → the kernel library with the tile numbers for that architecture
    link(...)          → objects to a shared library
    runtime(index)     → the tvm device

and `all_targets()` is the only place that knows their names.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass, field
from types import ModuleType

from mlcrt.errors import UsageError

_NAMES = ("cpu",)  # best first


@dataclass(frozen=True)
class ProbeResult:
    """available; devices: one dictionary each (name, memory_bytes …); reason: why not, or what is worth knowing."""

    available: bool
    devices: list[dict] = field(default_factory=list)
    reason: str = ""


def all_targets() -> dict[str, ModuleType]:
    """Target name → module, best first."""
    return {name: importlib.import_module(f"mlcrt.targets.{name}") for name in _NAMES}


def parse_target(text: str) -> tuple[str, str]:
    """'cpu:x86-64-v3' → ('cpu', 'x86-64-v3'); 'auto' → the best target this machine has."""
    name, _, arch = text.partition(":")
    if name == "auto":
        name = next(n for n, module in all_targets().items() if module.probe().available)
    if name not in _NAMES:
        raise UsageError(f"unknown target '{text}': choose auto, {', '.join(_NAMES)} or one of these with :ARCH")
    all_targets()[name].attributes(arch)
    return name, arch


def host_machine() -> str:
    """The machine name as compilers say it: x86_64 or aarch64."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
