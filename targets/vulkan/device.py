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
from mlcrt.targets.device import DeviceRuntime
from mlcrt.targets.native import Sidecar, load_native, native_missing

from .architecture import is_kinds, unknown

SIDECAR = Sidecar("mlcrt_vulkan", Path(__file__).parent / "native", ("-pthread",))
_DEVICE = "MLCRT_VULKAN_DEVICE"  # number or part of the name, where no option says which


def compiler_missing() -> str | None:
    """The code generator is Python, but compiled kernels pass through the sidecar's module class."""
    return native_missing(SIDECAR)


def missing_features(features: list[str]) -> list[str]:
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


class VulkanRuntime(DeviceRuntime):
    """A Vulkan device: the step is recorded once and replayed, and tokens stay there until they are asked for."""

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
            return super().load(library)

    def place(self, array: np.ndarray):
        with _clear_errors():
            return super().place(array)

    def step(self, function, state, params) -> Callable[[], None]:
        """The decode step as a call without arguments: one submission unless MLCRT_GRAPH=0."""
        plain = super().step(function, state, params)
        return plain if os.environ.get("MLCRT_GRAPH") == "0" else Recorded(self.index, plain)

    def run_steps(self, step: Callable[[], None], count: int, token, view) -> list[int]:
        """Run `count` steps; the token each one chose, kept on the device until the end."""
        copy, flush = _function("mlcrt.vulkan.copy"), _function("mlcrt.vulkan.flush")
        with _clear_errors():
            history = self._tvm.runtime.empty((count,), "int32", self.device)
            source, destination = token.data_ptr(), history.data_ptr()
            for i in range(count):
                step()
                copy(self.index, source, destination + 4 * i, 4)
                flush(self.index)
            return [int(t) for t in history.numpy()]

    def read(self, tensor, view=None) -> np.ndarray:
        with _clear_errors():
            return super().read(tensor, view)

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


class Recorded:
    """Calling it runs `step`: the first time as it is (which also sizes the memory pools), then replayed.

    The step must read and write buffers that keep their address and must not wait for the device.
    """

    def __init__(self, index: int, step: Callable[[], None]):
        self.index, self.step = index, step
        self.warm, self.recording = False, None

    def __call__(self) -> None:
        with _clear_errors():
            if not self.warm:
                self.step()
                self.warm = True
                return
            if self.recording is None:
                self._record()
            _function("mlcrt.vulkan.replay")(self.index, self.recording)

    def _record(self) -> None:
        _function("mlcrt.vulkan.record")(self.index)
        try:
            self.step()
        finally:
            self.recording = int(_function("mlcrt.vulkan.recorded")(self.index))

    def describe(self) -> dict[str, int]:
        """How many dispatches and barriers were recorded."""
        return {} if self.recording is None else json.loads(
            str(_function("mlcrt.vulkan.describe")(self.index, self.recording)))  # fmt: skip


def runtime(index: int | str = "") -> VulkanRuntime:
    return VulkanRuntime(str(index))


def named_runtime(where: str) -> VulkanRuntime:
    """The device that a target such as vulkan:1 or vulkan:radeon names; kinds of kernels (vulkan:s32) name none."""
    return VulkanRuntime("" if is_kinds(where) else where)
