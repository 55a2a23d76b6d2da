"""Kernels and graphs of the C++ ROCm runtime: what HIP is given, in which order, and every way it can fail."""

import ctypes

import hip_module as M
import numpy as np
import pytest
import tvm
import tvm_ffi
from emulated_gpu import EmulatedGpu
from fake_hip import INVALID_IMAGE, LAUNCH_FAILURE, NO_BINARY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcrt.targets.device import Replayed
from mlcrt.targets.rocm.device import RocmError
from mlcrt.targets.rocm.emulator import Program

MIXED = [M.HANDLE, M.HANDLE, M.INT64, M.INT32, M.FLOAT32]  # mixed's arguments as its code object has them


def address(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.fixture
def emulated(hip, gpu):
    """The emulator behind the HIP library, knowing the two kernels for gfx1100."""
    found = EmulatedGpu(hip)
    for kernel in (M.mixed_kernel(), M.vector_kernel()):
        found.add_code(kernel.code, kernel.text)
    return found


def numbers(gpu):
    """Two arrays and three tensors: theirs and one for the result."""
    a, b = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    return a, b, [gpu.place(x) for x in (a, b, np.zeros(1000, np.float32))]


def add(module, tensors):
    module["vector_add_kernel"](*map(address, tensors), 8, 128)


# launches ----------------------------------------------------------------------------------------------------------
def test_arguments_are_packed_as_the_code_object_says(gpu, emulated, hip):
    """Addresses, then scalars by name: bytes, offsets and padding as in the notes of the code object."""
    seen = []
    hip.on_launch(lambda *launch: seen.append(launch) or 0)
    a, b = gpu.place(np.zeros(100, np.float32)), gpu.place(np.zeros(64, np.float32))
    module = M.load(M.payload(M.mixed_kernel().code, "mixed_kernel", MIXED))
    module["mixed_kernel"](address(a), address(b), -(2**40) - 3, -7, 0.1, 2, 32)
    gpu.device.sync()
    ((kernel, image, grid, block, lds, packed),) = seen
    assert (kernel, grid, block, lds) == ("mixed_kernel", (2, 1, 1), (32, 1, 1), 0)
    assert image == M.mixed_kernel().code
    wanted = np.zeros(1, np.dtype([("a", "u8"), ("b", "u8"), ("first", "i8"), ("n", "i4"), ("zoom", "f4")]))
    wanted[0] = (a.data_ptr(), b.data_ptr(), -(2**40) - 3, -7, 0.1)
    assert packed == wanted.tobytes()


def test_extents_and_dynamic_lds(gpu, emulated, hip):
    tags = ("threadIdx.y", "blockIdx.z", "blockIdx.x", "threadIdx.x", "tirx.use_dyn_shared_memory")
    module = M.load(M.payload(M.vector_kernel().code, "vector_add_kernel", [M.HANDLE] * 3, tags))
    hip.on_launch(lambda *_: 0)
    module["vector_add_kernel"](None, None, None, 4, 3, 0, 32, 4096)  # no blocks in x: as many as one
    assert hip.calls()[-1] == "hipModuleLaunchKernel vector_add_kernel grid 1 1 3 block 32 4 1 lds 4096 stream 0"


def test_a_launch_computes(gpu, emulated):
    a, b, tensors = numbers(gpu)
    add(M.load(M.vector_payload()), tensors)
    np.testing.assert_array_equal(tensors[2].numpy(), a + b)


def test_a_library_computes_through_tvms_own_host_code(gpu, emulated, tmp_path):
    """TVM's compiled host code calls the kernel; host and kernel agree about the order of arguments."""
    from mlcrt.targets.rocm import export_options
    from mlcrt.targets.rocm.assembly import target

    file = tmp_path / "lib.so"
    tvm.compile(M.mixed, target()).export_library(str(file), **export_options(None))
    library = tvm_ffi.load_module(str(file), keep_module_alive=False)
    values = np.random.default_rng(1).normal(size=50).astype(np.float32)
    out = gpu.place(np.full(64, 9, np.float32))
    library["mixed"](gpu.place(values), 2.5, 10, out, 50)
    wanted = np.full(64, 9, np.float32)
    wanted[:40] = values[10:] * np.float32(2.5)
    np.testing.assert_array_equal(out.numpy(), wanted)
    assert emulated.launches == {"mixed_kernel": 1}


def test_modules_are_loaded_once_per_device_and_unloaded(gpu, hip, emulated):
    module = M.load(M.vector_bundle("gfx1030", "gfx1100", "gfx942"))
    assert not any("hipModule" in call for call in hip.calls())  # nothing before it is needed
    for _ in range(3):
        add(module, numbers(gpu)[2])
    calls = [c.split()[0] for c in hip.calls() if "hipModule" in c]
    assert calls == ["hipModuleLoadData", "hipModuleGetFunction", *["hipModuleLaunchKernel"] * 3]
    gpu.device.sync()
    text = Program.parse(M.vector_kernel("gfx942").text)
    hip.define_kernel("vector_add_kernel", text.kernels["vector_add_kernel"].descriptor.arguments)
    images = []
    hip.on_launch(lambda kernel, image, *rest: images.append(image) or 0)
    device = tvm.rocm(2)  # becomes the current one with the first tensor
    others = [tvm.runtime.tensor(np.zeros(1000, np.float32), device) for _ in range(3)]
    add(module, others)
    device.sync()
    assert images == [M.vector_kernel("gfx942").code]
    hip.calls()
    del module
    assert hip.calls() == ["hipModuleUnload"] * 2


def test_a_loaded_module_can_be_exported_again(gpu):
    data = M.vector_payload()
    module = M.load(data)
    packed = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
    assert module.kind == "hip" and M.text("hip") + M.text(data) in packed


# failures ----------------------------------------------------------------------------------------------------------
def test_code_for_other_gpus(gpu, emulated):
    sentence = (
        r"^the library has GPU code for gfx1030, gfx942 and this GPU is gfx1100; compile it again with"
        r" mlcrt compile --target rocm:gfx1100$"
    )
    with pytest.raises(RocmError, match=sentence):
        add(M.load(M.vector_bundle("gfx1030", "gfx942")), numbers(gpu)[2])
    with pytest.raises(RocmError, match=r"^rocm:0 \(gfx1100\) does not take the library's GPU code \(HIP error 209:"):
        add(M.load(M.vector_payload(arch="gfx1030")), numbers(gpu)[2])


@pytest.mark.parametrize("code", [NO_BINARY, INVALID_IMAGE, 999])
def test_a_driver_that_refuses_the_code(gpu, hip, emulated, code):
    hip.fail("hipModuleLoadData", code, times=1)
    module = M.load(M.vector_payload())
    with pytest.raises(RocmError, match=rf"^rocm:0 \(gfx1100\) does not take .* \(HIP error {code}: .*newer ROCm"):
        add(module, numbers(gpu)[2])
    add(module, numbers(gpu)[2])  # nothing half-done is kept


def test_a_kernel_that_is_not_there(gpu, hip, emulated):
    module = M.load(M.payload(M.vector_kernel().code, "other_kernel", [M.HANDLE] * 3))
    with pytest.raises(RocmError, match=r"^the library's GPU code has no kernel other_kernel; compile it again"):
        module["other_kernel"](*map(address, numbers(gpu)[2]), 8, 128)
    hip.fail("hipModuleGetFunction", 500, times=1)
    with pytest.raises(RocmError, match=r"^rocm:0: finding kernel vector_add_kernel failed \(HIP error 500: named"):
        add(M.load(M.vector_payload()), numbers(gpu)[2])


@pytest.mark.parametrize(
    "arguments",
    [[M.HANDLE] * 2, [M.HANDLE] * 4, [M.HANDLE, M.HANDLE, M.INT64], [M.HANDLE, M.HANDLE, M.INT32]],
    ids=["fewer", "more", "a number for an address", "of another size"],
)
def test_host_and_code_object_disagree(gpu, hip, emulated, arguments):
    module = M.load(M.payload(M.vector_kernel().code, "vector_add_kernel", arguments))
    with pytest.raises(RocmError, match=r"^kernel vector_add_kernel and the code that launches it disagree"):
        module["vector_add_kernel"](*[0 if a != M.HANDLE else None for a in arguments], 8, 128)
    assert not any("Launch" in call for call in hip.calls())


def test_calls_that_cannot_be_launched(gpu, emulated):
    kernel = M.load(M.vector_payload())["vector_add_kernel"]
    a = [address(t) for t in numbers(gpu)[2]]
    with pytest.raises(RocmError, match=r"^kernel vector_add_kernel takes 5 values, not 4$"):
        kernel(*a, 8)
    with pytest.raises(RocmError, match=r"was compiled for 256 threads a block at most and is launched with 257$"):
        kernel(*a, 8, 257)
    with pytest.raises(RocmError, match=r"cannot be launched: 2147483648 is too many blocks$"):
        kernel(*a, 2**31, 128)


def test_a_refused_launch(gpu, hip, emulated):
    hip.fail("hipModuleLaunchKernel", 9, times=1)
    sentence = (
        r"^rocm:0: launching kernel vector_add_kernel failed \(HIP error 9: invalid configuration argument\);"
        r" it has 8x1x1 blocks of 128 threads and 0 bytes of LDS$"
    )
    with pytest.raises(RocmError, match=sentence):
        add(M.load(M.vector_payload()), numbers(gpu)[2])


def test_a_kernel_that_fails_on_the_gpu(gpu, hip, emulated):
    """HIP says so at a later call, and at every one from then on; the sentence names the kernel started last."""
    hip.on_launch(lambda *_: LAUNCH_FAILURE)
    tensors = numbers(gpu)[2]
    add(M.load(M.vector_payload()), tensors)
    sentence = (
        r"^rocm:0: a kernel failed on the GPU \(HIP error 719: unspecified launch failure\);"
        r" the one started last was vector_add_kernel$"
    )
    for _ in range(2):
        with pytest.raises(RocmError, match=sentence):
            tensors[2].numpy()


def test_what_the_runtime_cannot_pass(gpu):
    with pytest.raises(RocmError, match=r"^kernel k takes arguments that this runtime cannot pass$"):
        M.load(M.payload(b"", "k", [(2, 16)]))
    with pytest.raises(RocmError, match=r"^the library launches kernels with 'clusterCtaIdx.x', which"):
        M.load(M.payload(b"", "k", [M.HANDLE], ("clusterCtaIdx.x",)))


@pytest.mark.parametrize("name", [b"gfx\xff030", b"gfx\n030", b"\0fx1030"])
def test_a_gpu_whose_name_is_none(gpu, hip, emulated, name):
    with pytest.raises(RocmError, match="^the library's GPU code is damaged .*it names no GPU"):
        add(M.load(M.vector_bundle("gfx1030").replace(b"gfx1030", name)), numbers(gpu)[2])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_libraries_are_refused_or_run(gpu, hip, emulated, data):
    """Bytes cut off or changed anywhere: one sentence or, where nothing that counts was hit, a launch."""
    whole = M.vector_bundle("gfx1030", "gfx1100")
    start = whole.index(b"__CLANG") if data.draw(st.booleans()) else whole.rindex(b"\x7fELF")
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = start + data.draw(st.integers(0, 1500))
        broken = whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + 8 :]
    hip.on_launch(lambda *_: 0)
    try:
        M.load(broken)["vector_add_kernel"](None, None, None, 8, 128)
    except (RocmError, AttributeError, KeyError) as error:
        assert "\n" not in str(error).strip()


# graphs ------------------------------------------------------------------------------------------------------------
class Step:
    """c = a + b, then b = c, counted: like a decode step, kernels and copies between buffers that stay."""

    def __init__(self, gpu, tensors):
        self.module, self.tensors, self.calls = M.load(M.vector_payload()), tensors, 0
        self.copy = tvm_ffi.get_global_func("mlcrt.rocm.copy")

    def __call__(self):
        self.calls += 1
        add(self.module, self.tensors)
        self.copy(self.tensors[1], 0, self.tensors[2])


def test_numbers_are_handed_over_one_by_one(gpu, hip):
    tensor = gpu.place(np.array([0, -1], np.int32))
    tickets = []
    for i in range(40):
        tensor.copyfrom(np.array([i, -1], np.int32))
        tickets.append(gpu.post(tensor))
        if i % 8 == 7:
            assert [gpu.collect(t) for t in reversed(tickets)] == list(range(i, i - 8, -1))
            tickets.clear()
    hip.calls()
    ticket = gpu.post(tensor)
    gpu.collect(ticket)
    names = [call.split()[0] for call in hip.calls()]
    assert [n for n in names if n != "hipSetDevice"] == ["hipMemcpyAsync", "hipEventRecord", "hipEventSynchronize"]
    with pytest.raises(RocmError, match="at least 4 bytes"):
        gpu.post(gpu.place(np.zeros(2, np.uint8)))


def test_a_step_is_recorded_once_and_replayed(gpu, hip, emulated):
    a, b, tensors = numbers(gpu)
    step = Step(gpu, tensors)
    graph = Replayed(gpu, step)
    for _ in range(5):
        graph()
    assert step.calls == 2  # as it is, then recorded
    wanted = b
    for _ in range(5):
        wanted = a + wanted
    np.testing.assert_array_equal(tensors[2].numpy(), wanted)
    names = [call.split()[0] for call in hip.calls()]
    begin, end = names.index("hipStreamBeginCapture"), names.index("hipStreamEndCapture")
    assert names[begin - 2 : begin] == ["hipDeviceSynchronize", "hipStreamCreateWithFlags"]
    assert names[begin + 1 : end] == ["hipModuleLaunchKernel", "hipMemcpyAsync"]
    assert names[end + 1 : end + 8] == [
        "hipGraphInstantiate", "hipGraphDestroy", "hipStreamDestroy", *["hipGraphLaunch"] * 4,
    ]  # fmt: skip
    assert emulated.launches == {"vector_add_kernel": 5}
    assert hip.alive().endswith("1 modules, 0 graphs, 1 executables")


def test_mlcrt_graph_0_runs_every_step_as_it_is(gpu, hip, monkeypatch):
    calls = []
    monkeypatch.setenv("MLCRT_GRAPH", "0")
    step = gpu.step(lambda state, params: calls.append((state, params)), "state", "params")
    for _ in range(3):
        step()
    assert calls == [("state", "params")] * 3 and not any("Capture" in call for call in hip.calls())


def test_a_graph_keeps_the_memory_it_uses(gpu, hip, emulated):
    """Freed tensors of a recorded step are neither reused nor returned to HIP until the graph is gone."""
    tensors = numbers(gpu)[2]
    graph = gpu.record(Step(gpu, tensors))
    used = {t.data_ptr() for t in tensors}
    tensors.clear()
    gpu.close()
    others = [gpu.place(np.zeros(1000, np.float32)) for _ in range(3)]
    assert used.isdisjoint(t.data_ptr() for t in others)
    graph()
    gpu.device.sync()
    assert emulated.error is None and emulated.launches == {"vector_add_kernel": 1}
    del graph
    again = [gpu.place(np.zeros(1000, np.float32)) for _ in range(3)]
    assert used == {t.data_ptr() for t in again}


def test_a_step_that_fails_while_it_is_recorded(gpu, hip, emulated):
    step = Step(gpu, numbers(gpu)[2])
    hip.fail("hipModuleLaunchKernel", 9, times=1)
    with pytest.raises(RocmError, match="launching kernel vector_add_kernel failed"):
        gpu.record(step)
    assert tvm_ffi.get_raw_stream(gpu.device) == 0  # TVM's own stream again
    gpu.record(step)()
    gpu.device.sync()
    assert emulated.launches == {"vector_add_kernel": 1}


def test_python_errors_pass_through_a_recording(gpu, hip):
    def step():
        raise ValueError("in the step")

    with pytest.raises(ValueError, match="in the step"):
        gpu.record(step)


def test_a_step_that_waits_cannot_be_recorded(gpu, hip, emulated):
    def step():
        stream = tvm_ffi.get_raw_stream(gpu.device)
        tvm_ffi.get_global_func("runtime.Device_StreamSync")(gpu.device, stream)

    with pytest.raises(RocmError, match=r"^rocm:0: work on the GPU failed \(HIP error 900: operation not permitted"):
        gpu.record(step)
    assert hip.misused() == ["MISUSE a call that waits, while a stream records"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("hipDeviceSynchronize", "waiting for earlier work failed"),
        ("hipStreamCreateWithFlags", "creating a stream failed"),
        ("hipStreamBeginCapture", "recording a step failed"),
        ("hipStreamEndCapture", "recording a step failed"),
        ("hipGraphInstantiate", "making the recorded step executable .MLCRT_GRAPH=0 runs without. failed"),
    ],
)
def test_recording_fails(gpu, hip, emulated, call, sentence):
    hip.fail(call, 1, times=1)
    with pytest.raises(RocmError, match=rf"^rocm:0: {sentence} \(HIP error 1: invalid argument\)$"):
        gpu.record(Step(gpu, numbers(gpu)[2]))
    if call == "hipStreamEndCapture":  # then it never ended, and the stream goes all the same
        assert hip.misused() == ["MISUSE destroying a stream that records"]


def test_replaying_fails(gpu, hip, emulated):
    graph = gpu.record(Step(gpu, numbers(gpu)[2]))
    hip.fail("hipGraphLaunch", 2, times=1)
    with pytest.raises(RocmError, match=r"^rocm:0: replaying the recorded step failed \(HIP error 2: out of memory\)$"):
        graph()


# time --------------------------------------------------------------------------------------------------------------
def test_tvms_timer_measures_on_the_device(gpu, hip, emulated, tmp_path):
    """The stand-in's clock ticks half a millisecond per piece of work: four launches and the event after them."""
    from mlcrt.targets.rocm import export_options
    from mlcrt.targets.rocm.assembly import target

    file = tmp_path / "lib.so"
    tvm.compile(M.mixed, target()).export_library(str(file), **export_options(None))
    library = tvm_ffi.load_module(str(file), keep_module_alive=False)
    arguments = gpu.place(np.zeros(50, np.float32)), 2.5, 10, gpu.place(np.zeros(64, np.float32)), 50
    measured = library.time_evaluator("mixed", gpu.device, number=4, repeat=3)(*arguments)
    assert [round(seconds * 1e3, 6) for seconds in measured.results] == [2.5 / 4] * 3
