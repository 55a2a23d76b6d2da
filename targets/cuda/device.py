"""NVIDIA GPUs of this machine, and the engine's view of one."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.targets import ProbeResult
from mlcrt.targets.device import DeviceRuntime, load_tvm_runtime

from .graph import Graph, check
from .posts import Posts
from .timing import EventWatch, copy_bandwidth


def probe() -> ProbeResult:
    """The driver's devices, asked through libcuda alone."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ProbeResult(False, reason="no NVIDIA driver (libcuda.so.1) on this machine")
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return ProbeResult(False, reason="the NVIDIA driver is there but finds no usable GPU")
    return ProbeResult(True, [_describe(cuda, i) for i in range(count.value)])


def _describe(cuda, index: int) -> dict:
    handle, name, total = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, 128, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)
    return {
        "id": f"cuda:{index}",
        "name": name.value.decode(),
        "memory_bytes": total.value,
        "arch": f"sm_{major.value}{minor.value}",
    }


def _load_cudart() -> ctypes.CDLL:
    """CUDA's runtime library: the system's, or that of the nvidia-cuda-runtime package."""
    packaged = [str(f) for p in sys.path for f in Path(p or ".").glob("nvidia/*/lib/libcudart.so.13")]
    for name in ("libcudart.so.13", *packaged, "/usr/local/cuda/lib64/libcudart.so.13"):
        with contextlib.suppress(OSError):
            cudart = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            cudart.cudaGetErrorString.restype = ctypes.c_char_p
            return cudart
    raise MlcrtError("running on cuda needs libcudart.so.13, and it is not here; pip install 'mlcrt[cuda]'")


_DATA, _BYTE_OFFSET = 0, 40  # of DLTensor's fields, see dlpack.h
_DEVICE_TO_DEVICE = 3  # cudaMemcpyDeviceToDevice


class _Moved:
    """A view whose offset has gone into its address, for kernels take tensors that begin where their memory does."""

    def __init__(self, view):
        self.view = view

    def __dlpack__(self, **options):
        capsule = self.view.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        tensor = pointer(capsule, b"dltensor")
        data, offset = (ctypes.c_uint64.from_address(tensor + field) for field in (_DATA, _BYTE_OFFSET))
        data.value, offset.value = data.value + offset.value, 0
        return capsule

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()


ALIGNMENT = 256  # of a tensor in the arena, in bytes


class CudaRuntime(DeviceRuntime):
    """A CUDA device: the step is a graph, and tokens stay on the device until they are asked for."""

    bandwidth_method = "a copy of 1 GiB on the device, bytes read and written"
    records = True

    def __init__(self, index: int = 0):
        found = probe()
        if not found.available:
            raise MlcrtError(f"{found.reason}; choose another --device")
        if index >= len(found.devices):
            raise MlcrtError(f"there is no cuda:{index}: `mlcrt devices` lists {len(found.devices)}, from cuda:0 on")
        self.cudart = _load_cudart()
        check(self.cudart, self.cudart.cudaSetDevice(index))  # for what the runtime library is asked directly
        import tvm

        load_tvm_runtime(Path(tvm.__file__).parent / "lib", "cuda")
        super().__init__(tvm.cuda(index))
        self._arena, self._used = None, 0
        self._posts: Posts | None = None

    def reserve(self, size: int) -> None:
        """One allocation for all: the driver rounds each up to 2 MB, which for a model's tensors is hundreds of MB."""
        self._arena = self._tvm.runtime.empty((size,), "uint8", self.device) if size else None
        self._used = 0

    def place(self, array: np.ndarray):
        if self._arena is None or self._used + array.nbytes > self._arena.shape[0]:
            return super().place(array)
        view = self._arena._create_view(array.shape, str(array.dtype), self._used)
        self._used += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        tensor = self._tvm.runtime.from_dlpack(_Moved(view))
        tensor.copyfrom(np.ascontiguousarray(array))
        return tensor

    def available_bytes(self) -> int | None:
        free, _ = self._memory()
        return free

    def used_bytes(self) -> int | None:
        free, total = self._memory()
        return None if free is None else total - free

    def _memory(self) -> tuple[int | None, int]:
        """(free, total) bytes of the device; None and 0 where the driver does not tell."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        failed = self.cudart.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
        return (None, 0) if failed else (free.value, total.value)

    def read_bandwidth(self) -> float | None:
        return copy_bandwidth(self)

    def stopwatch(self) -> EventWatch:
        return EventWatch(self)

    def launches(self, step) -> int | None:
        return getattr(getattr(step, "replay", None), "nodes", None)

    def record(self, step) -> Graph:
        return Graph(self, step)

    def post(self, tensor) -> int:
        if self._posts is None:
            self._posts = Posts(self)
        return self._posts.post(tensor)

    def collect(self, ticket: int) -> int:
        return self._posts.collect(ticket)

    def keep(self, history, index: int, token) -> None:
        destination, source = (ctypes.c_void_p(a) for a in (history.data_ptr() + 4 * index, token.data_ptr()))
        stream = ctypes.c_void_p(self._ffi.get_raw_stream(self.device))
        kind = ctypes.c_int(_DEVICE_TO_DEVICE)
        check(self.cudart, self.cudart.cudaMemcpyAsync(destination, source, ctypes.c_size_t(4), kind, stream))


def runtime(index: int = 0) -> CudaRuntime:
    return CudaRuntime(index)
