"""Measuring on an NVIDIA GPU: how fast it copies, and how long one call keeps it busy."""

from __future__ import annotations

import ctypes

from mlcrt.errors import MlcrtError

from .graph import check

_DEVICE_TO_DEVICE = 3  # cudaMemcpyDeviceToDevice
_COPY = 1 << 30  # bytes; many times any cache
_STALL = 128 << 20  # bytes of the copy in front of a measured call: tens of microseconds, more than any L2 cache holds
_MOST_STALLS = 64


class EventWatch:
    """Device seconds between two events.

    A copy is queued in front of the first, so that the call is launched before the device gets to it: the launch from
    the host is not counted, and the copy has pushed weights out of the cache as a whole step does. Where the host was
    not done before the copy, the calls that follow get more copies.
    """

    method = "device events, caches cold"

    def __init__(self, runtime):
        self._runtime, self._cudart = runtime, runtime.cudart
        self._first, self._last = ctypes.c_void_p(), ctypes.c_void_p()
        self._stall, self._stalls = _Copy(runtime, _STALL), 1
        for event in (self._first, self._last):
            self._check(self._cudart.cudaEventCreate(ctypes.byref(event)))

    def start(self) -> None:
        for _ in range(self._stalls):
            self._stall()
        self._check(self._cudart.cudaEventRecord(self._first, _stream(self._runtime)))

    def stop(self) -> float:
        """Seconds since start."""
        self._check(self._cudart.cudaEventRecord(self._last, _stream(self._runtime)))
        if self._cudart.cudaEventQuery(self._first) == 0:  # the device was there before the host
            self._stalls = min(2 * self._stalls, _MOST_STALLS)
        self._cudart.cudaGetLastError()  # "not ready" would otherwise be taken for the next call's error
        self._check(self._cudart.cudaEventSynchronize(self._last))
        milliseconds = ctypes.c_float()
        self._check(self._cudart.cudaEventElapsedTime(ctypes.byref(milliseconds), self._first, self._last))
        return milliseconds.value / 1e3

    def _check(self, code: int) -> None:
        check(self._cudart, code)

    def __del__(self):
        for event in (self._first, self._last):
            if event.value:
                self._cudart.cudaEventDestroy(event)


def copy_bandwidth(runtime, turns: int = 10) -> float:
    """Bytes read and written per second by a large copy on the device; the best of `turns` counts."""
    copy, watch, best = _Copy(runtime, _COPY), EventWatch(runtime), 0.0
    for _ in range(turns):
        watch.start()
        copy()
        best = max(best, 2 * copy.size / watch.stop())
    return best


class _Copy:
    """A copy of up to `size` bytes within the device's memory, in stream order; less where little is free."""

    def __init__(self, runtime, size: int):
        free = runtime.available_bytes()
        self.size = size if free is None else min(size, free // 4)
        if self.size < _STALL // 8:
            raise MlcrtError("the GPU has too little free memory to measure in; choose a smaller --context")
        self._runtime = runtime
        make = runtime._tvm.runtime.empty
        self._buffers = [make((self.size,), "uint8", runtime.device) for _ in range(2)]

    def __call__(self) -> None:
        target, source = (ctypes.c_void_p(b.data_ptr()) for b in self._buffers)
        kind, size = ctypes.c_int(_DEVICE_TO_DEVICE), ctypes.c_size_t(self.size)
        cudart = self._runtime.cudart
        check(cudart, cudart.cudaMemcpyAsync(target, source, size, kind, _stream(self._runtime)))


def _stream(runtime) -> ctypes.c_void_p:
    return ctypes.c_void_p(runtime._ffi.get_raw_stream(runtime.device))
