"""The CPU as a device of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from mlcrt.errors import UsageError
from mlcrt.targets import ProbeResult
from mlcrt.targets.device import DeviceRuntime

from .architecture import AMX_PRODUCT, attributes, host_flags

ALIGNMENT = 64  # what generated code assumes of every buffer


def probe() -> ProbeResult:
    """One device: model name, usable cores, memory, feature level."""
    try:
        level = attributes("").name
    except UsageError as error:
        return ProbeResult(False, [], str(error))
    device = {
        "id": "cpu",
        "name": _model_name(),
        "cores": physical_cores(),
        "memory_bytes": _memory_bytes(),
        "arch": level,
        "features": sorted(f for f in host_flags() if f.startswith(("avx", "amx", "f16c", "fma"))),
    }
    return ProbeResult(True, [device])


class CpuRuntime(DeviceRuntime):
    """Tensors that share their memory with numpy: placing and reading copy nothing."""

    bandwidth_method = "all cores reading 512 MiB"

    def __init__(self):
        # TVM assumes hyper-threads and would use half of the cores it sees; it reads this at the first parallel loop.
        os.environ.setdefault("TVM_NUM_THREADS", str(physical_cores()))
        import tvm

        super().__init__(tvm.cpu(0))

    def available_bytes(self) -> int | None:
        from mlcrt.runtime.memory import available_bytes

        return available_bytes()

    def read_bandwidth(self) -> float | None:
        from mlcrt.measure import machine

        return machine.read_bandwidth()

    def multiply_adds(self, features: list[str]) -> float | None:
        if AMX_PRODUCT in features:
            return None  # tile registers multiply far faster than vectors, and than weights are read
        from mlcrt.measure import machine

        return machine.multiply_adds()

    def place(self, array: np.ndarray):
        """A tensor with the array's values; the array's own memory where alignment allows."""
        if array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous or not array.flags.writeable:
            array = _aligned_copy(array)
        return self._tvm.runtime.from_dlpack(array)

    def place_all(self, arrays: list[np.ndarray]) -> list:
        """As `place`: what is mapped is read when it is used."""
        return [self.place(array) for array in arrays]

    def view(self, tensor) -> np.ndarray:
        """The tensor's memory as a numpy array."""
        return np.from_dlpack(tensor)

    def read(self, tensor, view: np.ndarray | None = None) -> np.ndarray:
        """Current values; valid until the next call of the library."""
        return self.view(tensor) if view is None else view

    def write(self, tensor, view: np.ndarray, value: int) -> None:
        view[0] = value

    def write_blocks(self, tensor, values: np.ndarray) -> None:
        """Overwrite the first blocks (dimension 1) of a cache."""
        self.view(tensor)[:, : values.shape[1]] = values

    def close(self) -> None:
        """Tensors free their memory themselves."""


def runtime(index: int = 0) -> CpuRuntime:
    """UsageError for another index than 0: all cores are one device."""
    if index:
        raise UsageError(f"there is no cpu:{index}: all cores of this machine are one device, cpu")
    return CpuRuntime()


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + ALIGNMENT, np.uint8)  # untouched pages of a large cache cost nothing
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    if array.flags.writeable is False or array.any():
        copy[...] = array
    return copy


def physical_cores() -> int:
    """Cores this process may use, hyper-threads of one core counted once."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in cpus:
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(file.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def _model_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
