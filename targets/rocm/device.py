"""AMD GPUs of this machine, and the engine's view of one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mlcrt.errors import MlcrtError
from mlcrt.targets import ProbeResult
from mlcrt.targets.device import DeviceRuntime
from mlcrt.targets.native import Sidecar, load_native

SIDECAR = Sidecar("mlcrt_rocm", Path(__file__).parent / "native")
_NAMES = ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")
_NO_GPU = (
    "the HIP runtime is there but finds no usable AMD GPU: is there one, is its kernel driver loaded, and may this "
    "user open /dev/kfd"
)


class RocmError(MlcrtError):
    """What the C++ runtime throws, by this name."""


def hip_candidates() -> list[str]:
    """Where HIP's runtime library may be, best first: MLCRT_HIP alone when it is set."""
    chosen = os.environ.get("MLCRT_HIP")
    if chosen:
        return [chosen]
    folders = [Path(os.environ.get("ROCM_PATH") or "/opt/rocm", "lib")]
    folders += [f for p in sys.path for f in Path(p or ".").glob("_rocm_sdk_core*/lib")]  # ROCm's own wheels
    return [*_NAMES, *(str(file) for folder in folders for n in _NAMES if (file := folder / n).is_file())]


def load_hip() -> ctypes.CDLL | None:
    """HIP's runtime library, None where there is none."""
    for name in hip_candidates():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def probe() -> ProbeResult:
    """HIP's devices, asked through libamdhip64 alone."""
    hip = load_hip()
    if hip is None:
        return ProbeResult(False, reason="no AMD HIP runtime (libamdhip64.so) on this machine")
    count = _count(hip)
    if not count:
        return ProbeResult(False, reason=_NO_GPU)
    return ProbeResult(True, [_describe(hip, i) for i in range(count)])


def gpus() -> list[str]:
    """The architecture of every AMD GPU of this machine, '' where HIP does not tell."""
    hip = load_hip()
    return [_arch(hip, i) for i in range(_count(hip))] if hip is not None else []


def _count(hip: ctypes.CDLL) -> int:
    count = ctypes.c_int()
    return 0 if hip.hipGetDeviceCount(ctypes.byref(count)) else count.value


def _describe(hip: ctypes.CDLL, index: int) -> dict:
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    hip.hipDeviceGetName(name, 256, index)
    hip.hipDeviceTotalMem(ctypes.byref(total), index)
    return {"id": f"rocm:{index}", "name": name.value.decode(), "memory_bytes": total.value, "arch": _arch(hip, index)}


def _arch(hip: ctypes.CDLL, index: int) -> str:
    """gcnArchName of hipDeviceProp_t without its features; native/hip.h says where it lies."""
    properties = ctypes.create_string_buffer(8192)
    if hasattr(hip, "hipGetDevicePropertiesR0600"):
        failed, offset = hip.hipGetDevicePropertiesR0600(properties, index), 1160
    else:
        failed, offset = hip.hipGetDeviceProperties(properties, index), 396
    return "" if failed else properties.raw[offset : offset + 256].split(b"\0")[0].decode().split(":")[0]


class RocmRuntime(DeviceRuntime):
    """An AMD GPU through the C++ runtime in native/: the step is a graph, and tokens stay on the device until they
    are asked for. `index`: which GPU."""

    records = True

    def __init__(self, index: int = 0):
        import tvm
        import tvm_ffi

        tvm_ffi.register_error("RocmError", RocmError)
        load_native(SIDECAR)
        missing = tvm_ffi.get_global_func("mlcrt.rocm.open")(hip_candidates())
        if missing:
            raise MlcrtError(missing)
        count = self._native("device_count")()
        if index >= count:
            raise MlcrtError(f"there is no AMD GPU {index}: the HIP runtime finds {count}" if count else _NO_GPU)
        super().__init__(tvm.rocm(index))

    @staticmethod
    def _native(name: str):
        import tvm_ffi

        return tvm_ffi.get_global_func(f"mlcrt.rocm.{name}")

    def memory(self) -> dict[str, int]:
        """Bytes: free and total (as HIP says), beyond (that an APU may take from the host), and of this process: used,
        cached (kept for reuse), on_host; and blocks, a number."""
        return {str(k): int(v) for k, v in self._native("memory")(self.device.index).items()}

    def available_bytes(self) -> int:
        memory = self.memory()
        return memory["free"] + memory["beyond"] + memory["cached"]

    def load(self, library: Path):
        """The library's functions: a lookup by name. The GPU's copy of its code goes when the last of them does."""
        return self._vm.VirtualMachine(self._ffi.load_module(str(library), keep_module_alive=False), self.device)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A graph of what `step` starts on the device."""
        return self._native("capture")(self.device.index, self._ffi.convert(step))

    def write(self, tensor, view, value: int) -> None:
        """Set an int32 tensor of one element, in the stream's order and without waiting."""
        self._native("set_int")(tensor, value)

    def keep(self, history, index: int, token) -> None:
        self._native("copy")(history, 4 * index, token)

    def post(self, tensor) -> int:
        return self._native("post")(tensor)

    def collect(self, ticket: int) -> int:
        return self._native("collect")(self.device.index, ticket)

    def close(self) -> None:
        """Give memory that nothing uses any more back to the driver."""
        self._ffi.get_global_func("vm.builtin.memory_manager.clear")()
        self._native("release")(self.device.index)


def runtime(index: int = 0) -> RocmRuntime:
    return RocmRuntime(index)


def named_runtime(where: str, features: list[str]) -> RocmRuntime:
    """The GPU whose number `where` is; else the first that runs code for the architectures `features`."""
    if where.isdecimal():
        return RocmRuntime(int(where))
    return RocmRuntime(next((i for i, arch in enumerate(gpus()) if arch in features), 0))
