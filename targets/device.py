"""The engine's view of a TVM device that has memory of its own.

A target derives its runtime from `DeviceRuntime` and adds what its driver can do better: replaying a recorded step,
copying without the host, saying how much memory is free.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError

from .readahead import read_ahead


def load_tvm_runtime(folder: Path, name: str, extension: str = "so") -> None:
    """TVM's device of that name ("cuda"); with the runtime library alone TVM does not look for it itself."""
    try:
        for part in ("extra", name):
            ctypes.CDLL(str(folder / f"libtvm_runtime_{part}.{extension}"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MlcrtError(f"TVM's {name} runtime cannot be loaded ({error}); install apache-tvm again") from None


class Stopwatch:
    """Wall-clock seconds between start and stop, the device idle at both."""

    method = "wall clock, the device idle before and after"

    def __init__(self, runtime: DeviceRuntime):
        self._device, self._start = runtime.device, 0.0

    def start(self) -> None:
        self._device.sync()
        self._start = time.perf_counter()

    def stop(self) -> float:
        """Seconds since start."""
        self._device.sync()
        return time.perf_counter() - self._start


class Replayed:
    """Calling it runs `step`: the first time as it is (which also sizes the memory pools), then as it was recorded.

    The step must read and write buffers that keep their address and must not wait for the device.
    """

    def __init__(self, runtime: DeviceRuntime, step: Callable[[], None]):
        self.runtime, self.step = runtime, step
        self.warm = False
        self.replay: Callable[[], None] | None = None  # what the runtime recorded, once it has

    def __call__(self) -> None:
        with self.runtime.errors():
            if not self.warm:
                self.step()
                self.warm = True
                return
            if self.replay is None:
                self.replay = self.runtime.record(self.step)
            self.replay()


class DeviceRuntime:
    """Tensors in device memory; reading copies to the host. `device` is a tvm device, such as tvm.cuda(0)."""

    bandwidth_method = ""  # how read_bandwidth measures, in words
    records = False  # whether the driver can record what a step does and replay it

    def __init__(self, device):
        import tvm
        import tvm_ffi
        from tvm.runtime import vm

        self._tvm, self._ffi, self._vm = tvm, tvm_ffi, vm
        self.device = device

    def available_bytes(self) -> int | None:
        """Free device memory; None where the driver does not tell."""
        return None

    def used_bytes(self) -> int | None:
        """Device memory in use by everybody; None where the driver does not tell or it is the host's."""
        return None

    def read_bandwidth(self) -> float | None:
        """Bytes per second that the device moves between its memory and its cores, measured now; None: not known."""
        return None

    def multiply_adds(self, features: list[str]) -> float | None:
        """Float32 multiply-adds per second of the device, measured now, where they may be what limits a step of a
        library that needs `features`."""
        return None

    def stopwatch(self) -> Stopwatch:
        """What measures how long the device is busy with one call."""
        return Stopwatch(self)

    def launches(self, step: Callable[[], None]) -> int | None:
        """Kernels that one call of a step launches, after its first calls; None where that is not known."""
        return None

    def load(self, library: Path):
        """The library's functions: a lookup by name."""
        return self._vm.VirtualMachine(self._tvm.runtime.load_module(str(library)), self.device)

    def reserve(self, size: int) -> None:
        """Memory for `size` bytes of tensors that are about to be placed; 0: no more of them come."""

    def place(self, array: np.ndarray):
        """A device tensor with the array's values."""
        return self._tvm.runtime.tensor(np.ascontiguousarray(array), self.device)

    def place_all(self, arrays: list[np.ndarray]) -> list:
        """Device tensors of many arrays; those in mapped files are read while others are copied."""
        return [self.place(array) for array in read_ahead(arrays)]

    def bundle(self, tensors: list):
        """Tensors as the one argument that library functions take."""
        return self._ffi.convert(tensors)

    def errors(self) -> contextlib.AbstractContextManager:
        """Within it, what the driver complains of is an MlcrtError of one sentence."""
        return contextlib.nullcontext()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What replays in one go the work that `step` starts on the device; for drivers that can (`records`)."""
        raise NotImplementedError

    def step(self, function, state, params) -> Callable[[], None]:
        """The decode step as a call without arguments, replayed where the driver can unless MLCRT_GRAPH=0."""
        return self.replayed(lambda: function(state, params))

    def replayed(self, step: Callable[[], None]) -> Callable[[], None]:
        """`step`, which reads and writes buffers that keep their address, recorded unless MLCRT_GRAPH=0."""
        records = self.records and os.environ.get("MLCRT_GRAPH") != "0"
        return Replayed(self, step) if records else step

    def run_steps(self, step: Callable[[], None], count: int, token) -> list[int]:
        """Run `count` steps; the token each one chose, kept on the device until the end."""
        with self.errors():
            history = self._tvm.runtime.empty((count,), "int32", self.device)
            for i in range(count):
                step()
                self.keep(history, i, token)
            return [int(t) for t in history.numpy()]

    def keep(self, history, index: int, token) -> None:
        """history[index] = token[0], both int32 on the device, in the order of its work and without waiting."""
        token.copyto(history._create_view((1,), "int32", 4 * index))

    def post(self, tensor):
        """Begin to bring the first number of an int32 tensor to the host, in the order of the device's work; a ticket
        for `collect`. At most eight may be out at once."""
        copy = self._tvm.runtime.empty(tuple(tensor.shape), "int32", self.device)
        tensor.copyto(copy)
        return copy

    def collect(self, ticket) -> int:
        """What was posted, once it is there; work that was started later is not waited for where the driver can tell
        them apart."""
        return int(ticket.numpy()[0])

    def view(self, tensor) -> np.ndarray | None:
        """The tensor's memory as an array, where the host can see it."""
        return None

    def read(self, tensor, view=None) -> np.ndarray:
        """Current values on the host."""
        return tensor.numpy()

    def fetch(self, tensor) -> np.ndarray:
        """A copy on the host."""
        return tensor.numpy()

    def write(self, tensor, view, value: int) -> None:
        """Set an int32 tensor of one element."""
        tensor.copyfrom(np.array([value], np.int32))

    def write_blocks(self, tensor, values: np.ndarray) -> None:
        """Overwrite the first blocks (dimension 1) of a cache."""
        whole = tensor.numpy()
        whole[:, : values.shape[1]] = values
        tensor.copyfrom(whole)

    def close(self) -> None:
        """Nothing runs any more and no tensor is used: give back what is kept for reuse."""
