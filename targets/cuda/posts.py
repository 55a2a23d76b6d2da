"""Numbers that the GPU hands to the host one by one, while later work goes on."""

from __future__ import annotations

import ctypes

from .graph import check

_COUNT = 16  # that may be on their way
_TO_HOST = 2  # cudaMemcpyDeviceToHost
_NO_TIMES = 2  # cudaEventDisableTiming


class Posts:
    """A ring of numbers in host memory that the GPU writes to, each with an event that says when."""

    def __init__(self, runtime):
        self._runtime, self._cudart, self._next = runtime, runtime.cudart, 0
        self._memory = ctypes.c_void_p()
        size = ctypes.c_size_t(4 * _COUNT)
        check(self._cudart, self._cudart.cudaMallocHost(ctypes.byref(self._memory), size))
        self._numbers = (ctypes.c_int32 * _COUNT).from_address(self._memory.value)
        self._events = [ctypes.c_void_p() for _ in range(_COUNT)]
        for event in self._events:
            check(self._cudart, self._cudart.cudaEventCreateWithFlags(ctypes.byref(event), ctypes.c_uint(_NO_TIMES)))

    def post(self, tensor) -> int:
        """Copy the tensor's first int32, after the work that was started before; the ticket."""
        slot, cudart = self._next, self._cudart
        self._next = (slot + 1) % _COUNT
        stream = ctypes.c_void_p(self._runtime._ffi.get_raw_stream(self._runtime.device))
        to, source = ctypes.c_void_p(self._memory.value + 4 * slot), ctypes.c_void_p(tensor.data_ptr())
        check(cudart, cudart.cudaMemcpyAsync(to, source, ctypes.c_size_t(4), ctypes.c_int(_TO_HOST), stream))
        check(cudart, cudart.cudaEventRecord(self._events[slot], stream))
        return slot

    def collect(self, slot: int) -> int:
        """The number of a ticket, once it is there."""
        check(self._cudart, self._cudart.cudaEventSynchronize(self._events[slot]))
        return self._numbers[slot]
