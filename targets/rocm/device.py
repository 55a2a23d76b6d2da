"""AMD GPUs of this machine, asked through libamdhip64 alone, and the engine's view of one."""

from __future__ import annotations

import ctypes
import os

from mlcrt.errors import MlcrtError
from mlcrt.targets import ProbeResult

_NAMES = ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")


def load_hip() -> ctypes.CDLL | None:
    """HIP's runtime library, None where there is none. MLCRT_HIP names another file."""
    chosen = os.environ.get("MLCRT_HIP")
    for name in (chosen,) if chosen else (*_NAMES, *(f"/opt/rocm/lib/{n}" for n in _NAMES)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def probe() -> ProbeResult:
    hip = load_hip()
    if hip is None:
        return ProbeResult(False, reason="no AMD HIP runtime (libamdhip64.so) on this machine")
    count = ctypes.c_int()
    if hip.hipGetDeviceCount(ctypes.byref(count)) or not count.value:
        return ProbeResult(False, reason="the HIP runtime is there but finds no usable AMD GPU")
    return ProbeResult(True, [_describe(hip, i) for i in range(count.value)])


def _describe(hip: ctypes.CDLL, index: int) -> dict:
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    hip.hipDeviceGetName(name, 256, index)
    hip.hipDeviceTotalMem(ctypes.byref(total), index)
    return {"id": f"rocm:{index}", "name": name.value.decode(), "memory_bytes": total.value}


def runtime(index: int = 0):
    """The engine's view of GPU `index`."""
    raise MlcrtError("the ROCm runtime is not built yet")
