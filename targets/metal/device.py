"""The Apple GPU of this machine, and the engine's view of it."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

from mlcrt.errors import MlcrtError
from mlcrt.targets import ProbeResult, host_machine
from mlcrt.targets.device import DeviceRuntime, load_tvm_runtime

from .architecture import MACOS

_METAL = "/System/Library/Frameworks/Metal.framework/Metal"
_GRAPHICS = "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics"


def probe() -> ProbeResult:
    """One device on an Apple-silicon Mac: chip, unified memory, macOS version."""
    system = {"Darwin": "macOS"}.get(platform.system(), platform.system())
    machine = host_machine()
    if system != "macOS" or machine != "aarch64":
        return ProbeResult(False, reason=f"Metal needs a Mac with Apple silicon, and this is {system} on {machine}")
    version = platform.mac_ver()[0]
    if _numbers(version) < _numbers(MACOS):
        return ProbeResult(False, reason=f"this Mac has macOS {version}, and Metal libraries need {MACOS} or later")
    device = {"id": "metal:0", "name": _sysctl("machdep.cpu.brand_string") or "Apple GPU", "arch": f"macOS {version}"}
    memory = _sysctl("hw.memsize")
    if memory.isdigit():
        device["memory_bytes"] = int(memory)
    return ProbeResult(True, [device])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class MetalRuntime(DeviceRuntime):
    """Tensors in GPU memory; steps queue up on the device and tokens stay there until they are asked for."""

    def __init__(self, index: int = 0):
        reason = probe().reason
        if reason:
            raise MlcrtError(f"{reason}; choose another --device")
        import tvm

        load_tvm_runtime(Path(tvm.__file__).parent / "lib", "metal", "dylib")
        super().__init__(tvm.metal(index))

    def available_bytes(self) -> int | None:
        """What the system recommends this process to keep on the GPU, less what it has there."""
        return working_set_left()


def working_set_left() -> int | None:
    """MTLDevice.recommendedMaxWorkingSetSize - currentAllocatedSize in bytes; None where it cannot be asked."""
    try:
        ctypes.CDLL(_GRAPHICS)  # without it a program that is no app has no default device
        metal, objc = ctypes.CDLL(_METAL), ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
        objc.sel_registerName.restype, objc.sel_registerName.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        send = objc.objc_msgSend
        send.restype, send.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_void_p]
        device = metal.MTLCreateSystemDefaultDevice()
    except (OSError, AttributeError):
        return None
    if not device:
        return None

    def ask(name: bytes) -> int:
        return send(device, objc.sel_registerName(name))

    return max(0, ask(b"recommendedMaxWorkingSetSize") - ask(b"currentAllocatedSize")) or None


def runtime(index: int = 0) -> MetalRuntime:
    return MetalRuntime(index)
