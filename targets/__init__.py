"""Compile targets, one folder each. A target module has

    attributes(arch)   → the target's description of an architecture (UsageError for an unknown one)
    compiler_missing() → None, or the sentence saying what compiling for it needs
    probe()            → ProbeResult: the devices of this machine, or a sentence why there are none
    library(attrs, kv) → the kernel library with the tile numbers for that architecture
    export_options(attrs) → how TVM's export_library links the library
    runtime(index)     → the engine's view of a device (targets/device.py); index: which, where there are several
    names_device(text), named_runtime(text, features), rank(features) → optional: whether what follows TARGET: names a
                         device (by default a number does), that device, and which of two libraries is the better one
    inspect(module, report) → optional: what is known of each kernel of a built module, a dictionary each; MlcrtError
                         refuses, report(line) warns

and `all_targets()` is the only place that knows their names.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass, field
from types import ModuleType

from mlcrt.errors import UsageError

_NAMES = ("cuda", "rocm", "metal", "vulkan", "cpu")  # best first


@dataclass(frozen=True)
class ProbeResult:
    """available; devices: one dictionary each (name, memory_bytes …); reason: why not, or what is worth knowing;
    software: the devices are the CPU in disguise, which `auto` passes over."""

    available: bool
    devices: list[dict] = field(default_factory=list)
    reason: str = ""
    software: bool = False

    @property
    def preferred(self) -> bool:
        """Whether `auto` may choose it."""
        return self.available and not self.software


def all_targets() -> dict[str, ModuleType]:
    """Target name → module, best first."""
    return {name: importlib.import_module(f"mlcrt.targets.{name}") for name in _NAMES}


def parse_target(text: str) -> tuple[str, str]:
    """'cpu:x86-64-v3' → ('cpu', 'x86-64-v3'); 'auto' → the best target this machine has."""
    name, _, arch = text.partition(":")
    if name == "auto":
        name = next(n for n, m in all_targets().items() if m.probe().preferred and m.compiler_missing() is None)
    if name not in _NAMES:
        raise UsageError(f"unknown target '{text}': choose auto, {', '.join(_NAMES)} or one of these with :ARCH")
    all_targets()[name].attributes(arch)
    return name, arch


def parse_device(text: str) -> tuple[str, str, bool]:
    """(target, what stands after the colon, whether that names a device): cuda:1 and metal:0 are devices, as `mlcrt
    devices` lists them, cpu:x86-64-v3 is an architecture. UsageError for what is neither."""
    name, _, where = text.partition(":")
    names_device = getattr(all_targets().get(name), "names_device", None)
    if name in _NAMES and names_device is None and where.isdigit():
        return name, where, True
    return *parse_target(text), bool(names_device and names_device(where))


def parse_targets(text: str) -> list[tuple[str, str]]:
    """A comma-separated list; an architecture may itself have commas: 'cuda:sm_80,sm_90,cpu' is two targets."""
    return [parse_target(f"{name}:{arch}" if arch else name) for name, arch in split_targets(text)]


def split_targets(text: str) -> list[tuple[str, str]]:
    """The (target, architecture) pairs of such a list as they stand there, auto too; UsageError for a wrong one."""
    groups: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        if not part:
            continue
        if groups and ":" in groups[-1] and part.partition(":")[0] not in ("auto", *_NAMES) and ":" not in part:
            groups[-1] += f",{part}"
        else:
            groups.append(part)
    if not groups:
        raise UsageError(f"no target in '{text}': choose auto, {', '.join(_NAMES)}")
    pairs = []
    for group in groups:
        name, _, arch = group.partition(":")
        if name != "auto":
            parse_target(group)
        pairs.append((name, arch))
    return pairs


def host_machine() -> str:
    """The machine name as compilers say it: x86_64 or aarch64."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
