"""The C++ runtime through TVM's own interface: memory, copies, recordings, timestamps, choice of device, errors."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm.script.ir_builder import tirx as T

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.kernels.simt.common import launch, prim_func
from mlcrt.targets import all_targets, parse_target
from mlcrt.targets.cpu.link import link
from mlcrt.targets.vulkan import attributes
from mlcrt.targets.vulkan import device as host
from mlcrt.targets.vulkan.build import _divisor, build  # noqa: F401  importing it registers the code generator


@pytest.fixture(scope="module")
def runtime(vulkan):
    return vulkan.runtime()


def add_one(size: int):
    """kernel(x, y): y = x + 1, int32."""

    def body() -> None:
        x, y = (T.arg(name, T.Buffer((size,), "int32")) for name in "xy")
        with launch(bx=-(-size // 64), tx=64) as (block, thread):
            at = T.bind(block * 64 + thread)
            with T.If(at < size), T.Then():
                T.buffer_store(y, T.BufferLoad(x, [at]) + 1, [at])

    module = tvm.IRModule({"kernel": prim_func("kernel", body).with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=tvm.target.Target(attributes("s8").tvm_target()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_bytes_come_back(runtime, sizes, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    held = [runtime.place(a) for a in arrays]
    order = rng.permutation(len(held))
    for i in order[: len(order) // 2]:  # holes that later tensors fill
        held[i], arrays[i] = None, None
    again = rng.integers(0, 256, sizes[0], dtype=np.uint8)
    held.append(runtime.place(again))
    copy = tvm.runtime.empty(again.shape, "uint8", runtime.device)
    held[-1].copyto(copy)
    for tensor, array in zip([*held, copy], [*arrays, again, again], strict=True):
        assert tensor is None or np.array_equal(tensor.numpy(), array)


def test_freed_memory_is_given_back(runtime):
    gc.collect()
    before = runtime.memory()
    held = [runtime.place(np.zeros(1 << 20, np.uint8)) for _ in range(40)]
    during = runtime.memory()
    assert during["used"] - before["used"] == 40 << 20 and during["blocks"] - before["blocks"] <= 2
    del held
    after = runtime.memory()
    assert after["used"] == before["used"] and after["blocks"] <= before["blocks"] + 1
    assert runtime.available_bytes() > 0  # of all the machine has: other programs take and give meanwhile


def test_a_recording_is_replayed_on_the_same_buffers(runtime):
    kernel = add_one(1000)["kernel"]
    x = runtime.place(np.arange(1000, dtype=np.int32))
    y = runtime.place(np.zeros(1000, np.int32))

    def step(_state, _params):
        kernel(x, y)
        kernel(y, x)

    recorded = runtime.step(step, None, None)
    for _ in range(5):
        recorded()
    np.testing.assert_array_equal(x.numpy(), np.arange(1000) + 10)
    assert recorded.replay.describe() == {"dispatches": 2, "barriers": 2}  # one before the step, one between the two
    x.copyfrom(np.zeros(1000, np.int32))
    recorded()
    np.testing.assert_array_equal(y.numpy(), np.ones(1000))
    index, number = runtime.index, recorded.replay._number
    recorded()  # still under way when nobody wants it any more
    del recorded
    assert json.loads(str(host._function("mlcrt.vulkan.describe")(index, number))) == {"dispatches": 0, "barriers": 0}
    again = runtime.step(step, None, None)
    again(), again()
    assert again.replay.describe()["dispatches"] == 2


def test_a_step_that_reads_results_cannot_be_recorded(runtime):
    kernel, x, y = add_one(64)["kernel"], *(runtime.place(np.zeros(64, np.int32)) for _ in range(2))

    def step(_state, _params):
        kernel(x, y)
        y.numpy()

    recorded = runtime.step(step, None, None)
    recorded()
    with pytest.raises(MlcrtError, match="cannot be recorded"):
        recorded()
    kernel(x, y)
    assert y.numpy().sum() == 64


def test_independent_kernels_get_no_barrier(runtime):
    kernel = add_one(64)["kernel"]
    x, y, z = (runtime.place(np.zeros(64, np.int32)) for _ in range(3))
    recorded = runtime.step(lambda _s, _p: (kernel(x, y), kernel(x, z)), None, None)
    recorded(), recorded()
    assert recorded.replay.describe() == {"dispatches": 2, "barriers": 1}
    assert y.numpy().sum() == z.numpy().sum() == 64


def test_device_time_by_kernel(runtime):
    kernel, x, y = add_one(64)["kernel"], *(runtime.place(np.zeros(64, np.int32)) for _ in range(2))
    times = runtime.profile(lambda: [kernel(x, y) for _ in range(3)])
    assert list(times) == ["kernel_kernel"] and times["kernel_kernel"][1] == 3 and times["kernel_kernel"][0] > 0
    watch = runtime.stopwatch()
    watch.start()
    kernel(x, x)
    assert 0 < watch.stop() < 10 and "device's own clock" in watch.method


def test_devices_are_listed_and_found(vulkan):
    found = host.devices()
    listed = vulkan.probe().devices
    assert [d["id"] for d in listed] == [f"vulkan:{i}" for i in range(len(found))]
    assert all(d["memory_bytes"] > 0 and int(d["subgroup"].split("-")[0]) > 0 and d["driver"] for d in listed)
    name = found[0]["name"]
    assert host.find_device("0") == host.find_device(name[:6].lower()) == 0
    with pytest.raises(UsageError, match="0 is"):
        host.find_device("no such card")
    assert parse_target("vulkan:0") == ("vulkan", "0")
    with pytest.raises(UsageError, match="s32"):
        parse_target("vulkan:s12")


def test_auto_passes_over_a_cpu_in_disguise(vulkan):
    kinds = {d["kind"] for d in host.devices() if not d["missing"]}
    assert vulkan.probe().software == (kinds == {"cpu"})
    if kinds == {"cpu"} and not all_targets()["cuda"].probe().available:
        assert parse_target("auto")[0] != "vulkan"


def test_grids_of_variants():
    assert _divisor("n", "n") == _divisor("n * 3", "n * 3") == 1
    assert _divisor("n + 31 >> 5", "n + 127 >> 7") == 4 and _divisor("n", "n + 15 >> 4") == 16
    assert _divisor("36", "n") is None and _divisor("n + 31 >> 5", "m + 63 >> 6") is None
    assert _divisor("n + 63 >> 6", "n + 31 >> 5") is None


def in_a_process(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


_PLACE = """
import json, numpy as np
from mlcrt.errors import MlcrtError
from mlcrt.targets.vulkan import runtime
device = runtime()
try:
    arrays = [np.random.default_rng(i).integers(0, 256, 12 << 20, dtype=np.uint8) for i in range(6)]
    held = [device.place(a) for a in arrays]
    assert all((t.numpy() == a).all() for t, a in zip(held, arrays))
    big = device.place(np.zeros(BIG, np.uint8))
    print(json.dumps(device.memory()))
except MlcrtError as error:
    print(error)
"""


def test_what_does_not_fit_the_device_goes_to_shared_memory(vulkan):
    done = in_a_process(_PLACE.replace("BIG", "1000"), MLCRT_VULKAN_HEAP=str(40 << 20))
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)
    assert memory["used"] >= 72 << 20 and 24 << 20 <= memory["fallback"] < memory["used"]


def test_allocations_stay_under_the_drivers_largest(vulkan):
    done = in_a_process(_PLACE.replace("BIG", "1000"), MLCRT_VULKAN_ALLOCATION=str(16 << 20))
    assert json.loads(done.stdout)["blocks"] >= 6, done.stderr
    done = in_a_process(_PLACE.replace("BIG", "40 << 20"), MLCRT_VULKAN_ALLOCATION=str(16 << 20))
    sparse = "queue:sparse" in host.devices()[0]["features"]
    assert sparse or "the largest buffer it can have is 16 MB" in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.strip().splitlines()) == 1


def test_too_large_a_tensor_is_refused_in_one_sentence(runtime):
    with pytest.raises(RuntimeError, match="has no room for 17592186 MB"):
        tvm.runtime.empty((1 << 44,), "uint8", runtime.device)


@pytest.fixture(scope="module")
def faulty_loader(vulkan, tmp_path_factory) -> dict[str, str]:
    """Environment in which Vulkan calls fail as FAULT says."""
    from mlcrt.targets.native import compiler

    folder = tmp_path_factory.mktemp("loader")
    source, includes = Path(__file__).with_name("faulty_loader.cc"), Path(host.__file__).parent / "native"
    flags = ["-std=c++17", "-shared", "-fPIC", f"-I{includes}", "-ldl"]
    subprocess.run([compiler(), *flags, str(source), "-o", str(folder / "libvulkan.so.1")], check=True)
    ctypes.CDLL("libvulkan.so.1")
    real = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libvulkan.so" in line)
    return {"LD_LIBRARY_PATH": str(folder), "REAL_VULKAN": real}


_COUNT = """
import numpy as np, tvm
from mlcrt.errors import MlcrtError
from mlcrt.targets.vulkan import device as host
device = host.runtime()
try:
    held = [device.place(np.zeros(100_000, np.int32))]
    kernel = host._Functions(tvm.runtime.load_module("LIBRARY"))["kernel"]
    for _ in range(6):
        kernel(held[0], held[0])
        held.append(device.place(device.read(held[0])))
        held.append(device.place(np.zeros(40_000_000, np.int8)))
    print("counted to", device.read(held[0]).max())
except MlcrtError as error:
    print(error)
"""
_LOST, _NO_MEMORY = -4, -2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", "counted to 6"),
        (f"vkQueueSubmit:3:{_LOST}", "Vulkan: handing commands to the device failed: the device was lost"),
        (f"vkWaitSemaphores:2:{_LOST}", "Vulkan: waiting for the device failed: the device was lost"),
        (f"vkAllocateMemory:2:{_NO_MEMORY}", "MB are in use; choose a smaller --context or model"),
    ],
    ids=["none", "lost-at-submission", "lost-while-waiting", "no-memory"],
)
def test_a_failing_driver_ends_in_one_sentence(faulty_loader, counting_library, fault, said):
    """Also afterwards nothing aborts: tensors are freed on a device that answers no more."""
    done = in_a_process(_COUNT.replace("LIBRARY", str(counting_library)), FAULT=fault, **faulty_loader)
    assert done.returncode == 0 and not done.stderr, done.stderr
    (line,) = done.stdout.splitlines()
    assert said in line


_LISTED = """
import json
from mlcrt.errors import MlcrtError
from mlcrt.targets import vulkan
found = vulkan.probe()
try:
    vulkan.runtime()
except MlcrtError as error:
    print(json.dumps([found.available, found.devices, found.reason, str(error)]))
"""


@pytest.mark.parametrize("feature", ["shaderInt64", "storageBuffer16BitAccess"])
def test_a_device_that_lacks_a_feature_is_listed_and_refused_with_its_name(faulty_loader, feature):
    done = in_a_process(_LISTED, LACKS=feature, **faulty_loader)
    assert done.returncode == 0, done.stderr
    available, devices, reason, said = json.loads(done.stdout)
    name = host.devices()[0]["name"]
    assert not available and [d["missing"] for d in devices] == [feature] * len(devices)
    assert devices[0]["memory_bytes"] > 0 and reason == f"{name} lacks {feature}"
    assert said == f"Vulkan: {name} lacks {feature}"


@pytest.fixture(scope="module")
def counting_library(tmp_path_factory) -> Path:
    """A library whose `kernel` adds one to 100,000 integers."""
    path = tmp_path_factory.mktemp("library") / "lib.so"
    add_one(100_000).export_library(str(path), fcompile=link)
    return path


def test_pipelines_are_cached_on_disk(vulkan, tmp_path):
    code = """
import numpy as np, test_vulkan_runtime as tests
from mlcrt.targets.vulkan import runtime
device = runtime()
x = device.place(np.zeros(64, np.int32))
tests.add_one(64)["kernel"](x, x)
print(x.numpy().sum())
"""
    from mlcrt.targets.native import build_native

    library = build_native(vulkan.SIDECAR)
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / library.name).symlink_to(library)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "kernels")])
    for content in (None, b"damaged"):
        for file in (tmp_path / "vulkan").glob("*.bin") if content else ():
            file.write_bytes(content)
        done = in_a_process(code, MLCRT_CACHE=str(tmp_path), PYTHONPATH=path)
        assert done.stdout.split() == ["64"], done.stderr
        (file,) = (tmp_path / "vulkan").iterdir()
        assert file.name.startswith("pipelines-") and file.stat().st_size >= 32


def test_damaged_kernels_are_refused(vulkan):
    from mlcrt.targets.native import load_native

    load_native(vulkan.SIDECAR)
    make = tvm.get_global_func("ffi.Module.create.vulkan")
    for damaged in (b"", b"mlcrt-vulkan-1\n", b"x" * 100, b"mlcrt-vulkan-1\n" + b"\xff" * 40):
        with pytest.raises(Exception, match="Vulkan: "):
            make(damaged)
