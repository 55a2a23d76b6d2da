"""The memory plan: said before anything is allocated, and refused with numbers when it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcrt.dist import Dist
from mlcrt.errors import MlcrtError

from .batch_step import logit_rows

DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of weights, of the KV cache at `context` positions of each sequence, and of the workspace of one call."""

    context: int
    weights: int
    kv_per_block: int
    kv_block: int
    workspace: int
    sequences: int = 1

    @property
    def blocks(self) -> int:
        return -(-self.context // self.kv_block) * self.sequences

    @property
    def kv(self) -> int:
        return self.blocks * self.kv_per_block

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.workspace

    def text(self) -> str:
        per_token = self.kv_per_block / self.kv_block
        slots = f"{self.sequences} slots of " if self.sequences > 1 else ""
        return (
            f"memory: weights {megabytes(self.weights)} + KV cache {megabytes(self.kv)} ({slots}context {self.context},"
            f" {per_token / 1024:.1f} KiB a token) + workspace {megabytes(self.workspace)} = {megabytes(self.total)}"
        )

    def check(self, available: int | None, device: str) -> None:
        """MlcrtError with the numbers, and the context that would fit, if `available` bytes are not enough."""
        if available is None or self.total <= available:
            return
        room = available - self.weights - self.workspace
        fitting = max(0, room // self.kv_per_block // self.sequences * self.kv_block)
        fewer = " or fewer slots" if self.sequences > 1 else ""
        smaller = "even the weights do not fit: use a smaller model"
        advice = f"--context {fitting}{fewer} would fit" if fitting else smaller
        if not fitting and room > 0 and self.sequences > 1:
            advice = "use fewer slots"
        raise MlcrtError(f"{self.text()}, but {device} has {megabytes(available)} free; {advice}")


def plan_memory(dist: Dist, entry: dict, context: int | None = None, sequences: int = 1) -> MemoryPlan:
    """`context` None: what the model was trained for, at most DEFAULT_CONTEXT; `sequences` run at once."""
    config = dist.config
    size = np.dtype(entry["kv_dtype"]).itemsize
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * size
    chosen = context or min(config.context, DEFAULT_CONTEXT)
    widest = max(config.hidden, config.intermediate, config.heads * config.head_dim)
    scratch = 4 * entry["chunk"] * (-(-widest // 64) * 64)  # activations in lane order
    if sequences > 1 and entry["batch"]:
        scratch += 4 * config.vocab * logit_rows(sequences)
    return MemoryPlan(
        chosen,
        dist.manifest["params"]["bytes"],
        per_token * entry["kv_block"],
        entry["kv_block"],
        entry["workspace_bytes"] + scratch,
        sequences,
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def available_bytes(root: Path = Path("/")) -> int | None:
    """MemAvailable of this machine, lowered to the cgroup's limit where one is set; None if unknown.

    A cgroup counts the pages of files it has read as used; the kernel takes them back when asked, so they are free.
    """
    free = _field(root / "proc/meminfo", "MemAvailable:")
    known = [] if free is None else [free * 1024]
    for folder, limit, used, prefix in (
        ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            room = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
        except (OSError, ValueError):  # no such cgroup, or the limit is "max"
            continue
        kinds = ("inactive_file", "active_file")
        files = [_field(root / folder / "memory.stat", f"{prefix}{kind}") or 0 for kind in kinds]
        known.append(room + sum(files))
    return min(known, default=None)


def _field(file: Path, name: str) -> int | None:
    """The number after `name` in a file of such lines."""
    try:
        for line in file.read_text().splitlines():
            if line.split()[:1] == [name]:
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
