"""`hip`: three GPUs for one test, with everything given back at its end; skipped where there is no C++ compiler."""

import gc

import pytest
from fake_hip import DEVICES, fake_hip

from mlcrt.targets.native import compiler


@pytest.fixture
def hip():
    if compiler() is None:
        pytest.skip("the ROCm runtime is C++ and there is no compiler (g++)")
    fake = fake_hip()
    fake.show()
    yield fake
    for call in list(fake.failing):
        fake.fail(call, 0, times=0)
    gc.collect()
    give_back()
    misuse = [call for call in fake.log() if call.startswith("MISUSE")]
    left = fake.alive()
    fake.hide()
    assert not misuse and left == NOTHING


NOTHING = "0 allocations, 0 streams, 0 events, 0 modules, 0 graphs, 0 executables"


def give_back() -> None:
    """What TVM's and the runtime's pools keep goes back to HIP."""
    import tvm_ffi

    clear = tvm_ffi.get_global_func("vm.builtin.memory_manager.clear", allow_missing=True)
    if clear:  # tvm was imported
        clear()
    release = tvm_ffi.get_global_func("mlcrt.rocm.release", allow_missing=True)
    for device in range(len(DEVICES)) if release else ():
        release(device)


@pytest.fixture
def gpu(hip):
    """The engine's view of GPU 0, a Fake RX 7900 with gfx1100."""
    from mlcrt.targets.rocm import runtime

    return runtime(0)
