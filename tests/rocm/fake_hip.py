"""fakehip/ as the HIP library of this process: three GPUs, what was called, and calls that fail on demand."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import tvm_ffi.libinfo

from mlcrt.targets.native import compiler
from mlcrt.targets.rocm.device import SIDECAR

FOLDER = Path(__file__).parent / "fakehip"
SOURCES = (FOLDER / "fakehip.cc", FOLDER / "fakework.cc")
GiB = 1 << 30
NO_DEVICE, OUT_OF_MEMORY, NO_BINARY, LAUNCH_FAILURE, INVALID_IMAGE = 100, 2, 209, 719, 200
CHIP = os.environ.get("MLCRT_ROCM_CHIP", "gfx1100")  # another one for test_rocm_engine.py alone
DEVICES = (("Fake RX 7900", CHIP, 4 * GiB, 0), ("Fake 8060S", "gfx1151", GiB, 1), ("Fake MI300", "gfx942", GiB, 0))

_LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint,
    ctypes.c_void_p, ctypes.c_size_t,
)  # fmt: skip
_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def build_flags() -> list[str]:
    return ["-std=c++17", "-g", "-fPIC", f"-I{SIDECAR.folder}", *(f"-I{p}" for p in tvm_ffi.libinfo.include_paths())]


@functools.cache
def build() -> Path:
    """The stand-in as a shared library."""
    folder = Path(tempfile.mkdtemp(prefix="fakehip-"))
    library = folder / "libamdhip64.so"
    flags = [*build_flags(), "-O1", "-shared", "-fvisibility=hidden"]
    subprocess.run([compiler(), *flags, *map(str, SOURCES), "-o", str(library)], check=True)
    return library


class FakeHip:
    """The library, once per process (HIP is never unloaded). `with fake.present():` makes its devices visible."""

    def __init__(self):
        self.path = build()
        self.library = ctypes.CDLL(str(self.path))
        for name in ("fakehip_log", "fakehip_alive_text"):
            getattr(self.library, name).restype = ctypes.c_char_p
        for name, arch, memory, integrated in DEVICES:
            self.library.fakehip_add_device(name.encode(), arch.encode(), ctypes.c_size_t(memory), integrated)
        self._held: list = []
        self._seen: list[str] = []
        self.failing: set[str] = set()
        self.hide()

    def hide(self) -> None:
        """Reset; HIP finds no device."""
        self.show()
        os.environ.pop("MLCRT_HIP")
        self.fail("hipGetDeviceCount", NO_DEVICE)

    def show(self) -> None:
        """Reset; HIP finds the devices."""
        os.environ["MLCRT_HIP"] = str(self.path)
        self.library.fakehip_reset()
        self._held.clear()
        self._seen.clear()
        self.failing.clear()
        for device, (_, _, memory, _) in enumerate(DEVICES):
            self.set_memory(device, memory)
        self.set_host_memory(8 * GiB)

    def fail(self, call: str, code: int, after: int = 0, times: int = -1) -> None:
        """`call` returns `code`, `times` times (-1: from now on), after `after` good ones."""
        self.failing.add(call)
        self.library.fakehip_fail(call.encode(), after, code, times)

    def set_memory(self, device: int, size: int) -> None:
        self.library.fakehip_set_memory(device, ctypes.c_size_t(size))

    def set_host_memory(self, size: int) -> None:
        self.library.fakehip_host_memory(ctypes.c_size_t(size))

    def log(self) -> list[str]:
        """All calls, and what was wrong with them."""
        lines = self.library.fakehip_log().decode().splitlines()
        self.library.fakehip_clear_log()
        self._seen += (line.strip() for line in lines)
        return self._seen

    def calls(self) -> list[str]:
        """The calls since the last time, without those that only ask."""
        before = len(self._seen)
        asks = ("hipGetDevice", "hipSetDevice", "hipDeviceGet", "hipMemGetInfo")
        return [line for line in self.log()[before:] if not line.startswith(asks)]

    def misused(self) -> list[str]:
        """What was wrong so far; the test expects it and it is forgotten."""
        found = [line for line in self.log() if line.startswith("MISUSE")]
        self._seen = [line for line in self._seen if line not in found]
        return found

    def alive(self) -> str:
        """How many of each kind of object nobody destroyed."""
        return self.library.fakehip_alive_text().decode()

    def define_kernel(self, name: str, arguments) -> None:
        """What HIP reads from a code object: `arguments` are those of the emulator's metadata."""
        visible = [a for a in arguments if not a.kind.startswith("hidden_")]
        array = ctypes.c_size_t * len(visible)
        offsets, sizes = array(*(a.offset for a in visible)), array(*(a.size for a in visible))
        total = max((a.offset + a.size for a in visible), default=0)
        self.library.fakehip_define_kernel(name.encode(), len(visible), offsets, sizes, ctypes.c_size_t(total))

    def on_launch(self, function) -> None:
        """function(kernel, image, grid, block, lds, arguments) → 0 or the error that the device then has."""

        def call(kernel, image, image_size, dims, lds, arguments, size):
            image, arguments = ctypes.string_at(image, image_size), ctypes.string_at(arguments, size)
            return function(kernel.decode(), image, tuple(dims[:3]), tuple(dims[3:6]), lds, arguments)

        self._held.append(_LAUNCHER(call))
        self.library.fakehip_launcher(self._held[-1])

    def on_memory(self, function) -> None:
        """function(what, address, size, source): see fakehip_memory_hook."""
        self._held.append(_HOOK(function))
        self.library.fakehip_memory_hook(self._held[-1])


@functools.cache
def fake_hip() -> FakeHip:
    return FakeHip()
