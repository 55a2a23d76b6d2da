"""Devices, memory and copies of the C++ ROCm runtime over a HIP library that checks how it is used."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from fake_hip import DEVICES, OUT_OF_MEMORY, GiB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.targets.rocm import probe, runtime
from mlcrt.targets.rocm.device import RocmError

MiB = 1 << 20


def empty(gpu, size):
    return tvm.runtime.empty((size,), "uint8", gpu.device)


def test_the_devices_are_found(hip):
    found = probe()
    assert found.available
    assert [(d["name"], d["arch"], d["memory_bytes"]) for d in found.devices] == [d[:3] for d in DEVICES]


def test_what_tvm_asks_of_a_device(gpu):
    d = gpu.device
    assert d.exist and not tvm.rocm(7).exist
    assert (d.device_name, d.warp_size, d.compute_version) == ("Fake RX 7900", 32, "11.0")
    assert d.max_shared_memory_per_block == 65536 and list(d.max_thread_dimensions) == [1024, 1024, 1024]
    assert d.multi_processor_count == 48 and d.l2_cache_size_bytes == 6 * MiB
    assert d.total_global_memory == d.available_global_memory == 4 * GiB
    assert tvm.rocm(2).warp_size == 64
    assert d.max_threads_per_block == 256  # what code is generated for, not what the GPU could do
    assert tvm.rocm(7).device_name is None


def test_a_gpu_that_is_not_there(hip):
    with pytest.raises(MlcrtError, match=r"^there is no AMD GPU 3: the HIP runtime finds 3$"):
        runtime(3)
    hip.fail("hipGetDeviceCount", 100)
    with pytest.raises(MlcrtError, match="^the HIP runtime is there but finds no usable AMD GPU: .* open /dev/kfd$"):
        runtime(0)
    assert probe().reason.startswith("the HIP runtime is there but finds no usable AMD GPU: ")


def test_freed_memory_is_used_again(gpu, hip):
    first = empty(gpu, 1000)
    address = first.data_ptr()
    assert hip.calls()[-1] == "hipMalloc 1024"
    del first
    again = empty(gpu, 600)  # of the same class
    assert again.data_ptr() == address and hip.calls() == []
    other = empty(gpu, 2000)
    assert hip.calls() == ["hipMalloc 2048"]
    assert gpu.memory() | {"used": 3072, "cached": 0, "blocks": 2} == gpu.memory()
    del again, other
    assert gpu.memory() | {"used": 0, "cached": 3072, "blocks": 2} == gpu.memory()
    gpu.close()
    assert hip.calls() == ["hipFree"] * 2 and gpu.memory()["blocks"] == 0


def test_large_blocks_waste_little(gpu, hip):
    held = [empty(gpu, size) for size in (1, 65536, 65537, 100 * MiB + 1)]
    assert hip.calls() == [f"hipMalloc {n}" for n in (256, 65536, 131072, 100 * MiB + 65536)]
    assert all(t.data_ptr() % 256 == 0 for t in held)


def test_without_the_pool_blocks_are_exact(gpu, hip, monkeypatch):
    monkeypatch.setenv("MLCRT_POOL", "0")
    del (held := [empty(gpu, 1000)])[0]
    assert hip.calls() == ["hipMalloc 1000", "hipFree"] and held == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300_000), st.integers(0, 255)), max_size=30))
def test_blocks_never_overlap_and_keep_their_bytes(gpu, steps):
    """Any order of taking and giving back."""
    alive = []
    for take, size, fill in steps:
        if take or not alive:
            tensor = empty(gpu, size)
            tensor.copyfrom(np.full(size, fill, np.uint8))
            alive.append((tensor, size, fill))
        else:
            alive.pop(fill % len(alive))
    spans = sorted((t.data_ptr(), t.data_ptr() + size) for t, size, _ in alive)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert all((t.numpy() == fill).all() for t, _, fill in alive)
    assert gpu.memory()["used"] >= sum(size for _, size, _ in alive)


def test_out_of_memory_gives_the_pool_back_first(gpu, hip):
    hip.set_memory(0, 10 * MiB)
    held = [empty(gpu, 4 * MiB), empty(gpu, 4 * MiB)]
    held.clear()
    assert gpu.available_bytes() == 10 * MiB  # what is kept counts as free
    hip.calls()
    big = empty(gpu, 9 * MiB)
    assert hip.calls() == [f"hipMalloc {9 * MiB}", "hipFree", "hipFree", f"hipMalloc {9 * MiB}"]
    assert big.shape == (9 * MiB,)


def test_out_of_memory_says_how_much_there_is(gpu, hip):
    hip.set_memory(0, 3 * GiB)
    held = empty(gpu, GiB)
    sentence = (
        r"^rocm:0 \(Fake RX 7900\) is out of memory: 2\.50 GiB are needed and 2\.00 GiB of 3\.00 GiB are free;"
        r" choose a smaller --context or --quantization, or close other programs that use the GPU$"
    )
    with pytest.raises(RocmError, match=sentence):
        empty(gpu, 5 * GiB // 2)
    assert empty(gpu, GiB).shape == held.shape  # and it goes on


def test_another_failure_of_allocation_is_told_as_it_is(gpu, hip):
    hip.fail("hipMalloc", 999, times=1)
    with pytest.raises(RocmError, match=r"^rocm:0: allocating memory failed \(HIP error 999: unknown error\)$"):
        empty(gpu, 100)


def test_an_apu_uses_host_memory_beyond_its_carve_out(hip):
    apu = runtime(1)
    hip.set_memory(1, 100 * MiB)
    assert apu.memory()["beyond"] > 0 and apu.available_bytes() > 100 * MiB
    within, beyond = empty(apu, 80 * MiB), empty(apu, 80 * MiB)
    assert hip.calls()[-2:] == [f"hipHostMalloc {80 * MiB} 0x80000002", "hipHostGetDevicePointer 0"]
    assert apu.memory()["on_host"] == 80 * MiB
    values = np.arange(80 * MiB, dtype=np.uint8)
    for tensor in (within, beyond):
        tensor.copyfrom(values)
        assert (tensor.numpy() == values).all()
    del within, beyond, tensor
    hip.calls()
    apu.close()
    assert sorted(hip.calls()) == ["hipFree", "hipHostFree"]


def test_an_apu_that_is_full(hip):
    apu = runtime(1)
    hip.set_memory(1, MiB)
    hip.set_host_memory(MiB)
    with pytest.raises(RocmError, match=r"are free, and the host's memory does not have it either; choose"):
        empty(apu, 10 * MiB)
    hip.fail("hipHostGetDevicePointer", 1, times=1)
    hip.set_host_memory(GiB)
    with pytest.raises(RocmError, match=r"^rocm:1: allocating memory failed \(HIP error 1: invalid argument\)$"):
        empty(apu, 10 * MiB)
    assert hip.calls()[-1] == "hipHostFree"


def test_a_gpu_with_its_own_memory_does_not_take_the_hosts(gpu, hip):
    hip.set_memory(0, MiB)
    with pytest.raises(RocmError, match="out of memory"):
        empty(gpu, 2 * MiB)
    assert not any(call.startswith("hipHostMalloc") for call in hip.calls())


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (0,), (70_000,)])
def test_copies_to_and_from_the_host(gpu, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensor = gpu.place(values)
    np.testing.assert_array_equal(tensor.numpy(), values)
    tensor.copyfrom(values + 1)
    np.testing.assert_array_equal(tensor.numpy(), values + 1)


def test_copies_on_and_between_devices(gpu, hip):
    values = np.arange(1000, dtype=np.int32)
    here = gpu.place(values)
    there = tvm.runtime.empty((1000,), "int32", tvm.rocm(2))
    here.copyto(there)
    assert hip.calls()[-1] == "hipMemcpyPeerAsync 4000 from 0 to 2"
    twin = tvm.runtime.empty((1000,), "int32", gpu.device)
    here.copyto(twin)
    assert hip.calls()[-1] == "hipMemcpyAsync 4000 kind 3 stream 0"
    np.testing.assert_array_equal(there.numpy(), values)
    np.testing.assert_array_equal(twin.numpy(), values)


def test_small_writes_do_not_wait(gpu, hip):
    """Position, token and history of a decode step: in the stream's order, with no wait before the end."""
    token, history = gpu.place(np.zeros(1, np.int32)), gpu.place(np.zeros(4, np.int32))
    copy = tvm_ffi.get_global_func("mlcrt.rocm.copy")
    hip.calls()
    for i, value in enumerate((7, -1, 2**31 - 1)):
        gpu.write(token, None, value)
        copy(history, 4 * i, token)
    assert not any("Synchronize" in call for call in hip.calls())
    assert history.numpy().tolist() == [7, -1, 2**31 - 1, 0]
    with pytest.raises(RocmError, match="needs two of its tensors and room for 4 bytes at 16"):
        copy(history, 16, token)
    with pytest.raises(RocmError, match="a device tensor of 4 bytes"):
        gpu.write(history, None, 1)


def test_a_failed_copy_is_one_sentence(gpu, hip):
    tensor = gpu.place(np.zeros(4, np.int32))
    hip.fail("hipMemcpyAsync", OUT_OF_MEMORY, times=1)
    with pytest.raises(RocmError, match=r"^rocm:0: copying memory failed \(HIP error 2: out of memory\)$"):
        tensor.numpy()
    hip.fail("hipSetDevice", 101, times=1)
    with pytest.raises(RocmError, match=r"^rocm:0: choosing the device failed"):
        tensor.numpy()


def test_streams_wait_for_each_other(gpu, hip):
    """A copy in one stream, then one in another that must see it: ordered by an event, which is gone afterwards."""
    device, source = gpu.device, gpu.place(np.arange(8, dtype=np.int32))
    middle, end = (tvm.runtime.empty((8,), "int32", device) for _ in range(2))
    first, second = device.create_raw_stream(), device.create_raw_stream()
    copy = tvm_ffi.get_global_func("mlcrt.rocm.copy")
    with tvm_ffi.use_raw_stream(device, first):
        copy(middle, 0, source)
    sync = tvm_ffi.get_global_func("runtime.Device_StreamSyncFromTo")
    sync(device, first, second)
    with tvm_ffi.use_raw_stream(device, second):
        copy(end, 0, middle)
    device.sync(second)
    assert end.numpy().tolist() == list(range(8))
    assert "hipStreamWaitEvent" in hip.calls()
    device.free_raw_stream(first)
    device.free_raw_stream(second)


def test_work_runs_when_it_is_waited_for(gpu, hip):
    """The stand-in is lazy, so the tests above would see a missing wait: without one the old bytes are there."""
    import ctypes

    a, b = gpu.place(np.ones(2, np.int32)), gpu.place(np.zeros(2, np.int32))
    tvm_ffi.get_global_func("mlcrt.rocm.copy")(b, 0, a)
    raw = (ctypes.c_int32 * 2).from_address(b.data_ptr())
    assert list(raw) == [0, 0]
    gpu.device.sync()
    assert list(raw) == [1, 1]
