"""What a launch did, counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from .table import instruction_class


@dataclass
class Traffic:
    """Accesses of one kind and width. instructions: wave instructions; lanes: active lanes; bytes: lanes times width;
    lines64, lines128: distinct aligned lines of that many bytes, summed over wave instructions; conflict_cycles:
    extra LDS cycles through bank conflicts."""

    instructions: int = 0
    lanes: int = 0
    bytes: int = 0
    lines64: int = 0
    lines128: int = 0
    conflict_cycles: int = 0


@dataclass
class Report:
    """classes: wave instructions per unit (SALU, SMEM, VALU, VOPD, WMMA, LDS, VMEM, SCRATCH, CONTROL); mnemonics: per
    mnemonic; lines: per line of the assembly; traffic: (space, operation, bytes per lane) → Traffic, where space is
    global, lds, scratch or scalar and operation load, store or atomic; touched_bytes: of distinct 64-byte lines of
    global memory."""

    kernel: str
    workgroups: int
    waves: int
    vgprs: int
    sgprs: int
    lds_bytes: int
    scratch_bytes: int
    barriers: int = 0
    touched_bytes: int = 0
    classes: Counter = field(default_factory=Counter)
    mnemonics: Counter = field(default_factory=Counter)
    lines: Counter = field(default_factory=Counter)
    traffic: dict[tuple[str, str, int], Traffic] = field(default_factory=lambda: defaultdict(Traffic))

    @property
    def instructions(self) -> int:
        return sum(self.classes.values())

    def bytes(self, space: str, operation: str | None = None, width: int | None = None) -> int:
        """Bytes moved, filtered by operation and bytes per lane."""
        return sum(
            t.bytes
            for (s, o, w), t in self.traffic.items()
            if s == space and operation in (None, o) and width in (None, w)
        )

    def coalescing(self, operation: str = "load") -> float:
        """Bytes asked for ÷ bytes of the 64-byte lines touched, over all global accesses of that kind: 1 is perfect,
        0 when there were none."""
        chosen = [t for (s, o, _), t in self.traffic.items() if s == "global" and o == operation]
        lines = sum(t.lines64 for t in chosen)
        return sum(t.bytes for t in chosen) / (64 * lines) if lines else 0.0

    def count(self, kernel, counts: np.ndarray) -> None:
        """Add executions per instruction of a batch."""
        for instruction, n in zip(kernel.instructions, counts.tolist(), strict=True):
            if n:
                self.classes[instruction_class(instruction.mnemonic)] += n
                self.lines[instruction.line] += n
                if instruction.parts:
                    for part in instruction.parts:
                        self.mnemonics[part.mnemonic] += n
                else:
                    self.mnemonics[instruction.mnemonic] += n

    def access(self, space: str, operation: str, width: int, address: np.ndarray, active, conflicts: int = 0) -> None:
        """Record one access of the selected waves; address: int64 [n, lanes] with inactive lanes repeating an active
        one of their wave."""
        t = self.traffic[(space, operation, width)]
        if active is None:
            t.instructions += len(address)
            t.lanes += address.size
            t.bytes += address.size * width
        else:
            lanes = int(active.sum())
            t.instructions += int(active.any(axis=1).sum())
            t.lanes += lanes
            t.bytes += lanes * width
            if space == "global":
                address = address[active.any(axis=1)]
        t.conflict_cycles += conflicts
        if space == "global" and address.size:
            lines64, lines128 = distinct_lines(address, width)
            t.lines64 += lines64
            t.lines128 += lines128

    def __str__(self) -> str:
        rows = [
            f"{self.kernel}: {self.workgroups} workgroups, {self.waves} waves, {self.vgprs} VGPRs, {self.sgprs} SGPRs, "
            f"{self.lds_bytes} bytes of LDS, {self.scratch_bytes} bytes of scratch",
            "  instructions  " + ", ".join(f"{k} {n:,}" for k, n in self.classes.most_common()),
        ]
        for (space, operation, width), t in sorted(self.traffic.items()):
            row = f"  {space} {operation} {8 * width} bit: {t.instructions:,} instructions, {t.bytes:,} bytes"
            if space == "global":
                row += f", {t.lines64:,} lines of 64, {t.lines128:,} of 128 bytes"
            if space == "lds":
                row += f", {t.conflict_cycles:,} bank-conflict cycles"
            rows.append(row)
        return "\n".join(rows)


def distinct_lines(address: np.ndarray, width: int) -> tuple[int, int]:
    """Distinct lines of 64 and of 128 bytes per row of `address` [n, lanes], summed over rows."""
    lines = address >> 6
    last = (address + (width - 1)) >> 6
    if (last != lines).any():
        lines = np.concatenate([lines, last], axis=1)
    steps = np.diff(lines, axis=1)
    if (steps < 0).any():
        lines = np.sort(lines, axis=1)
        steps = np.diff(lines, axis=1)
    wide = np.diff(lines >> 1, axis=1)
    return len(lines) + int(np.count_nonzero(steps)), len(lines) + int(np.count_nonzero(wide))
