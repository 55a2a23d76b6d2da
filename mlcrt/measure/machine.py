"""What this machine is and how fast it reads memory."""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# The instruction sets that decide how fast the kernels can be.
_FLAGS = [
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "sve", "sve2", "bf16",
]  # fmt: skip


def describe() -> dict[str, Any]:
    """CPU model, cores this process may use, their instruction sets, memory in bytes, operating system."""
    fields = _cpuinfo()
    listed = f" {fields.get('flags') or fields.get('Features') or ''} ".split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in listed],
        "memory": _memory(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(size: int = 1 << 29, seconds: float = 1.0) -> float:
    """Bytes per second that all cores together read from memory.

    Each thread takes the maximum of its share of `size` bytes, a reduction cheap enough to wait for memory; the best
    pass counts. Arrays smaller than a few times the last-level cache would measure the cache instead.
    """
    workers = cores()
    shares = np.array_split(np.ones(size // 8, np.int64), workers)
    best, stop = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(workers) as pool:
        for turn in range(1000):
            start = time.perf_counter()
            list(pool.map(np.max, shares))
            best = max(best, size / (time.perf_counter() - start))
            if turn >= 2 and time.perf_counter() > stop:
                break
    return best


def multiply_adds(size: int = 1024, seconds: float = 1.0) -> float:
    """float32 multiply-adds per second of NumPy's matrix product on all cores; the best pass counts."""
    a, b = (np.random.default_rng(i).random((size, size), np.float32) for i in range(2))
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        a @ b
        best = max(best, size**3 / (time.perf_counter() - start))
    return best


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes; 0 where it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo, empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
