"""A step captured once as a CUDA graph and replayed: one launch a token."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from mlcrt.errors import MlcrtError

_NON_BLOCKING, _RELAXED = 1, 2  # cudaStreamNonBlocking, cudaStreamCaptureModeRelaxed


def check(cudart, code: int) -> None:
    """Raise MlcrtError with the runtime's own words for a failed call."""
    if code:
        raise MlcrtError(f"CUDA error {code}: {cudart.cudaGetErrorString(code).decode()}")


class Graph:
    """Calling it runs `step`: the first time as it is (which also sizes the memory pools), then as a replayed graph.

    The step must read and write buffers that keep their address and must not wait for the device.
    """

    def __init__(self, runtime, step: Callable[[], None]):
        self.runtime, self.step = runtime, step
        self.warm, self.executable = False, None
        self.nodes: int | None = None  # kernels and copies of one replay, once it is captured

    def __call__(self) -> None:
        if not self.warm:
            self.step()
            self.warm = True
            return
        cudart = self.runtime.cudart
        if self.executable is None:
            self.executable = self._capture()
        stream = self.runtime._ffi.get_raw_stream(self.runtime.device)
        check(cudart, cudart.cudaGraphLaunch(self.executable, ctypes.c_void_p(stream)))

    def _capture(self) -> ctypes.c_void_p:
        cudart, ffi = self.runtime.cudart, self.runtime._ffi
        stream, graph, executable = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        check(cudart, cudart.cudaDeviceSynchronize())
        check(cudart, cudart.cudaStreamCreateWithFlags(ctypes.byref(stream), _NON_BLOCKING))
        with ffi.use_raw_stream(self.runtime.device, stream.value):
            check(cudart, cudart.cudaStreamBeginCapture(stream, _RELAXED))
            try:
                self.step()
            finally:
                code = cudart.cudaStreamEndCapture(stream, ctypes.byref(graph))
        check(cudart, code)
        check(cudart, cudart.cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)))
        nodes = ctypes.c_size_t()
        check(cudart, cudart.cudaGraphGetNodes(graph, None, ctypes.byref(nodes)))
        self.nodes = nodes.value
        check(cudart, cudart.cudaGraphDestroy(graph))
        check(cudart, cudart.cudaStreamDestroy(stream))
        return executable
