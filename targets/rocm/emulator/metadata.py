"""Kernel descriptors and argument lists out of the directives and notes of an assembly file.

Source: LLVM's "User Guide for AMDGPU Backend", code object metadata version 5 and 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import ParseError


@dataclass(frozen=True)
class Argument:
    """One kernel argument: offset and size in bytes; kind is the note's value_kind (global_buffer, by_value,
    hidden_…)."""

    name: str
    offset: int
    size: int
    kind: str


@dataclass
class Descriptor:
    """The .amdhsa_ directives of one kernel (name without the prefix → int) and its arguments in memory order."""

    values: dict[str, int]
    arguments: list[Argument] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def get(self, name: str, default: int = 0) -> int:
        return self.values.get(name, default)

    @property
    def lanes(self) -> int:
        return 32 if self.get("wavefront_size32", 0) else 64


def descriptors(text: str) -> dict[str, Descriptor]:
    """Kernel name → descriptor, in file order."""
    found = {}
    for match in re.finditer(r"^\s*\.amdhsa_kernel (\S+)\n(.*?)^\s*\.end_amdhsa_kernel", text, re.S | re.M):
        values = {}
        for name, value in re.findall(r"\.amdhsa_(\w+)\s+(\S+)", match[2]):
            try:
                values[name] = int(value, 0)
            except ValueError:
                continue  # an expression of symbols: not needed to execute
        found[match[1]] = Descriptor(values)
    note = re.search(r"\.amdgpu_metadata\n(.*?)\.end_amdgpu_metadata", text, re.S)
    for kernel in _kernel_notes(note[1]) if note else ():
        name = kernel.pop("symbol_name", None)
        if name in found:
            found[name].arguments = kernel["args"]
            found[name].notes = {k: v for k, v in kernel.items() if isinstance(v, int)}
    return found


def _kernel_notes(text: str) -> list[dict]:
    """The list under amdhsa.kernels. The notes are YAML of one fixed shape: kernels indented by 2, arguments by 6."""
    kernels: list[dict] = []
    argument: dict | None = None
    inside = False
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line.startswith("amdhsa.kernels:")
            continue
        if not inside:
            continue
        match = re.match(r"( *)(- )?\.(\w+):\s*(.*)$", line)
        if not match:
            continue
        indent, dash, key, value = len(match[1]), bool(match[2]), match[3], match[4].strip().strip("'\"")
        if indent <= 4:
            if dash:
                kernels.append({"args": []})
            argument = None
            if key == "name":
                kernels[-1]["symbol_name"] = value
            elif key != "args" and re.fullmatch(r"\d+", value):
                kernels[-1][key] = int(value)
        else:
            if dash:
                argument = {}
                kernels[-1]["args"].append(argument)
            if argument is None:
                continue
            argument[key] = value
    for kernel in kernels:
        try:
            kernel["args"] = [
                Argument(a.get("name", ""), int(a["offset"]), int(a["size"]), a["value_kind"]) for a in kernel["args"]
            ]
        except (KeyError, ValueError) as e:
            raise ParseError(f"the notes of kernel {kernel.get('symbol_name')} lack an argument's {e}") from None
    return kernels
