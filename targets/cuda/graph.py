"""A step's work as a CUDA graph: one launch a token."""

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
    """What `step` starts on the device, captured; calling it launches that. `nodes`: its kernels and copies."""

    def __init__(self, runtime, step: Callable[[], None]):
        self._runtime = runtime
        cudart, ffi = runtime.cudart, runtime._ffi
        stream, graph, nodes = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
        self._executable = ctypes.c_void_p()
        check(cudart, cudart.cudaDeviceSynchronize())
        check(cudart, cudart.cudaStreamCreateWithFlags(ctypes.byref(stream), _NON_BLOCKING))
        with ffi.use_raw_stream(runtime.device, stream.value):
            check(cudart, cudart.cudaStreamBeginCapture(stream, _RELAXED))
            try:
                step()
            finally:
                code = cudart.cudaStreamEndCapture(stream, ctypes.byref(graph))
        check(cudart, code)
        check(cudart, cudart.cudaGraphInstantiate(ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0)))
        check(cudart, cudart.cudaGraphGetNodes(graph, None, ctypes.byref(nodes)))
        self.nodes: int = nodes.value
        check(cudart, cudart.cudaGraphDestroy(graph))
        check(cudart, cudart.cudaStreamDestroy(stream))

    def __call__(self) -> None:
        cudart, stream = self._runtime.cudart, self._runtime._ffi.get_raw_stream(self._runtime.device)
        check(cudart, cudart.cudaGraphLaunch(self._executable, ctypes.c_void_p(stream)))
