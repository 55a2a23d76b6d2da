"""The memory plan: said before anything is allocated, and refused with numbers when it does not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlcrt.dist import Dist
from mlcrt.errors import MlcrtError

DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of weights, of the KV cache at `context` positions, and of the workspace of one call."""

    context: int
    weights: int
    kv_per_block: int
    kv_block: int
    workspace: int

    @property
    def blocks(self) -> int:
        return -(-self.context // self.kv_block)

    @property
    def kv(self) -> int:
        return self.blocks * self.kv_per_block

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.workspace

    def text(self) -> str:
        per_token = self.kv_per_block / self.kv_block
        return (
            f"memory: weights {megabytes(self.weights)} + KV cache {megabytes(self.kv)} (context {self.context},"
            f" {per_token / 1024:.1f} KiB a token) + workspace {megabytes(self.workspace)} = {megabytes(self.total)}"
        )

    def check(self, available: int | None, device: str) -> None:
        """MlcrtError with the numbers, and the context that would fit, if `available` bytes are not enough."""
        if available is None or self.total <= available:
            return
        room = available - self.weights - self.workspace
        fitting = max(0, room // self.kv_per_block * self.kv_block)
        advice = f"--context {fitting} would fit" if fitting else "even the weights do not fit: use a smaller model"
        raise MlcrtError(f"{self.text()}, but {device} has {megabytes(available)} free; {advice}")


def plan_memory(dist: Dist, entry: dict, context: int | None = None) -> MemoryPlan:
    """`context` None: what the model was trained for, at most DEFAULT_CONTEXT."""
    config = dist.config
    size = np.dtype(entry["kv_dtype"]).itemsize
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * size
    chosen = context or min(config.context, DEFAULT_CONTEXT)
    widest = max(config.hidden, config.intermediate, config.heads * config.head_dim)
    scratch = 4 * entry["chunk"] * (-(-widest // 64) * 64)  # activations in lane order
    return MemoryPlan(
        chosen,
        dist.manifest["params"]["bytes"],
        per_token * entry["kv_block"],
        entry["kv_block"],
        entry["workspace_bytes"] + scratch,
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def available_bytes() -> int | None:
    """MemAvailable of this machine, lowered to the cgroup's limit where one is set; None if unknown."""
    free = _meminfo("MemAvailable")
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit_file) as limit, open(used_file) as used:
                text = limit.read().strip()
                if text != "max":
                    room = int(text) - int(used.read())
                    free = room if free is None else min(free, room)
        except (OSError, ValueError):
            continue
    return free


def _meminfo(field: str) -> int | None:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
