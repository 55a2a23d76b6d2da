"""Vulkan devices of this machine, and the engine's view of one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.targets import ProbeResult
from mlcrt.targets.device import DeviceRuntime, Stopwatch
from mlcrt.targets.native import Sidecar, load_native, native_missing

from .architecture import is_kinds, unknown

SIDECAR = Sidecar("mlcrt_vulkan", Path(__file__).parent / "native", ("-pthread",))
_DEVICE = "MLCRT_VULKAN_DEVICE"  # number or part of the name, where no option says which


def compiler_missing() -> str | None:
    """The code generator is Python, but compiled kernels pass through the sidecar's module class."""
    return native_missing(SIDECAR)


def missing_features(features: list[str], where: str = "") -> list[str]:
    """Nothing here: every kernel's needs are in the library, and loading compares them with the device."""
    return []


@functools.cache
def _function(name: str):
    import tvm_ffi

    load_native(SIDECAR)
    return tvm_ffi.get_global_func(name)


def _loader_problem() -> str | None:
    """Why there can be no Vulkan device, found without the sidecar."""
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return "no Vulkan loader (libvulkan.so.1) on this machine"
    return native_missing(SIDECAR)


def devices() -> list[dict]:
    """Every device with its id, name, kind (discrete, integrated, virtual, cpu), driver, memory, subgroup sizes,
    features, and what it lacks. MlcrtError without a loader or a compiler for the sidecar."""
    problem = _loader_problem()
    if problem:
        raise MlcrtError(problem)
    with _clear_errors():
        return json.loads(str(_function("mlcrt.vulkan.devices")()))


def probe() -> ProbeResult:
    """The Vulkan devices; a CPU posing as one is listed, and `auto` passes over it."""
    try:
        found = devices()
    except MlcrtError as error:
        return ProbeResult(False, reason=str(error))
    if not found:
        return ProbeResult(False, reason=str(_function("mlcrt.vulkan.problem")()))
    listed = [_entry(device) for device in found]
    if all(device["missing"] for device in found):
        return ProbeResult(False, listed, f"{found[0]['name']} lacks {', '.join(found[0]['missing'])}")
    software = all(device["kind"] == "cpu" for device in found if not device["missing"])
    return ProbeResult(True, listed, software=software)


def _entry(device: dict) -> dict:
    low, high = device["min_subgroup"], device["max_subgroup"]
    subgroup = f"{low}-{high}" if low < high else str(device["subgroup"])
    entry = {
        "id": f"vulkan:{device['id']}",
        "name": device["name"],
        "kind": device["kind"],
        "memory_bytes": device["memory_bytes"],
        "subgroup": subgroup,
        "driver": device["driver"].strip(),
        "api": device["api"],
        "float16": "shaderFloat16" in device["features"],
        "matrices": any(f.startswith("matrix:") for f in device["features"]),
    }
    if device["missing"]:
        entry["missing"] = ", ".join(device["missing"])
    return entry


def find_device(which: str = "") -> int:
    """The number of the device with that number or name (or part of it); '' is MLCRT_VULKAN_DEVICE, else the best.
    UsageError names those that there are."""
    which = which or os.environ.get(_DEVICE, "")
    found = devices()
    if not which:
        return next((d["id"] for d in found if not d["missing"]), 0)
    for device in found:
        if which == str(device["id"]) or (not which.isdigit() and which.lower() in device["name"].lower()):
            return device["id"]
    raise unknown(which, [f"{d['id']} is {d['name']}" for d in found])


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What the sidecar says in one sentence, as the product's error."""
    try:
        yield
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if "Vulkan: " in line]
        if not lines:
            raise
        raise MlcrtError("Vulkan: " + lines[0].split("Vulkan: ", 1)[1]) from None


class _Functions:
    """A library's functions; what the sidecar says when one fails becomes the product's error."""

    def __init__(self, library):
        self._library = library

    def __getitem__(self, name: str) -> Callable:
        function = self._library[name]

        def call(*arguments):
            with _clear_errors():
                return function(*arguments)

        return call

    def __getattr__(self, name: str):
        return getattr(self._library, name)


class Timestamps:
    """Seconds that the device spends in kernels between start and stop, by its own clock."""

    method = "the device's own clock around each kernel"

    def __init__(self, index: int):
        self._index, self._switch = index, _function("mlcrt.vulkan.profile")

    def start(self) -> None:
        self._switch(self._index, True)

    def stop(self) -> float:
        """Seconds since start."""
        times = json.loads(str(_function("mlcrt.vulkan.profiled")(self._index)))
        self._switch(self._index, False)
        return sum(time for time, _ in times.values()) / 1e9


class VulkanRuntime(DeviceRuntime):
    """A Vulkan device: the step is recorded once and replayed, and tokens stay there until they are asked for."""

    records = True

    def __init__(self, which: str = ""):
        import tvm

        self.index = find_device(which)
        with _clear_errors():
            _function("mlcrt.vulkan.use")(self.index)
        super().__init__(tvm.device("vulkan", self.index))

    def available_bytes(self) -> int | None:
        return int(_function("mlcrt.vulkan.available")(self.index))

    def memory(self) -> dict[str, int]:
        """blocks: allocations of the driver; used: bytes handed out; fallback: of these, not in the device's memory."""
        return json.loads(str(_function("mlcrt.vulkan.memory")(self.index)))

    def load(self, library: Path):
        with _clear_errors():
            return _Functions(super().load(library))

    def place(self, array: np.ndarray):
        with _clear_errors():
            return super().place(array)

    def errors(self) -> contextlib.AbstractContextManager:
        return _clear_errors()

    def record(self, step: Callable[[], None]) -> Recording:
        return Recording(self.index, step)

    def keep(self, history, index: int, token) -> None:
        _function("mlcrt.vulkan.copy")(self.index, token.data_ptr(), history.data_ptr() + 4 * index, 4)
        _function("mlcrt.vulkan.flush")(self.index)

    def post(self, tensor) -> int:
        return _function("mlcrt.vulkan.post")(self.index, tensor.data_ptr())

    def collect(self, ticket: int) -> int:
        return _function("mlcrt.vulkan.collect")(self.index, ticket)

    def read(self, tensor, view=None) -> np.ndarray:
        with _clear_errors():
            return super().read(tensor, view)

    def stopwatch(self) -> Stopwatch | Timestamps:
        timed = next(d for d in devices() if d["id"] == self.index)["timestamps"]
        return Timestamps(self.index) if timed else super().stopwatch()

    def launches(self, step: Callable[[], None]) -> int | None:
        recording = getattr(step, "replay", None)
        return None if recording is None else recording.describe()["dispatches"]

    def fetch(self, tensor) -> np.ndarray:
        with _clear_errors():
            return super().fetch(tensor)

    def write(self, tensor, view, value: int) -> None:
        with _clear_errors():
            super().write(tensor, view, value)

    def write_blocks(self, tensor, values: np.ndarray) -> None:
        with _clear_errors():
            super().write_blocks(tensor, values)

    def profile(self, function: Callable[[], None]) -> dict[str, tuple[int, int]]:
        """Kernel → (nanoseconds on the device, launches) of what `function` does; recorded steps are not seen."""
        switch = _function("mlcrt.vulkan.profile")
        with _clear_errors():
            switch(self.index, True)
            try:
                function()
                times = json.loads(str(_function("mlcrt.vulkan.profiled")(self.index)))
            finally:
                switch(self.index, False)
        return {name: (int(time), int(calls)) for name, (time, calls) in times.items()}


class Recording:
    """What `step` starts on the device, recorded; calling it hands that over in one submission. The driver keeps it as
    long as this object lives."""

    _number: int | None = None

    def __init__(self, index: int, step: Callable[[], None]):
        self._index = index
        _function("mlcrt.vulkan.record")(index)
        try:
            step()
        finally:
            self._number = int(_function("mlcrt.vulkan.recorded")(index))

    def __call__(self) -> None:
        _function("mlcrt.vulkan.replay")(self._index, self._number)

    def __del__(self):
        if self._number is not None:
            with contextlib.suppress(Exception):  # a lost device, or Python is about to end
                _function("mlcrt.vulkan.forget")(self._index, self._number)

    def describe(self) -> dict[str, int]:
        """How many dispatches and barriers were recorded."""
        return json.loads(str(_function("mlcrt.vulkan.describe")(self._index, self._number)))


def runtime(index: int | str = "") -> VulkanRuntime:
    return VulkanRuntime(str(index))


def named_runtime(where: str, features: list[str]) -> VulkanRuntime:
    """The device that a target such as vulkan:1 or vulkan:radeon names; kinds of kernels (vulkan:s32) name none."""
    return VulkanRuntime("" if is_kinds(where) else where)
