"""Fixtures: a Vulkan device (lavapipe from Debian's mesa-vulkan-drivers will do) and a function that runs kernels."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from device import LAYER, LAYER_FILE, Device, unavailable, validate, validator

from mlcrt.targets.vulkan.codegen import compile_kernels, lower

sys.path.append(str(Path(__file__).parents[1] / "kernels"))  # harness: random weights


if LAYER_FILE.exists():  # before anything in this process, or started by it, opens Vulkan
    os.environ["VK_INSTANCE_LAYERS"] = LAYER


@pytest.fixture(autouse=True)
def layers_find_nothing(request):
    """The validation layers watch every call that a test makes, and say on stdout what is wrong with one."""
    if not LAYER_FILE.exists():
        yield
        return
    said = request.getfixturevalue("capfd")
    yield
    out = "".join(said.readouterr())
    assert not re.search("VUID|UNASSIGNED-", out), out[-2000:]


@pytest.fixture(scope="session", autouse=True)
def modules_are_valid():
    """spirv-val sees whatever a test compiles for the target; libraries that other processes make are read for it."""
    from mlcrt.targets.vulkan import build

    if validator() is None:  # tests that are about validity say so
        yield
        return

    def validated(*arguments):
        shaders = compile_kernels(*arguments)
        for shader in shaders:
            validate(shader)
        return shaders

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_kernels", validated)
        yield


@pytest.fixture(scope="session")
def device() -> Device:
    try:
        return Device()
    except Exception as error:  # the package, the loader or the driver is missing: each raises its own kind
        unavailable(f"there is no Vulkan device ({type(error).__name__}: {error})")


@pytest.fixture(scope="session")
def vulkan():
    """The Vulkan target's module, where it has a device; its pipeline cache is this run's own."""
    from mlcrt.targets import vulkan as target

    probed = target.probe()
    if not probed.available:
        unavailable(f"the vulkan target has no device ({probed.reason})")
    return target


@pytest.fixture(scope="session")
def run_kernel(vulkan):
    """run_kernel(module, inputs, outputs): compile a module with the one PrimFunc through TVM and the
    target, call it on device tensors; the outputs as it left them."""
    import tvm

    from mlcrt.kernels.simt import Library
    from mlcrt.targets.vulkan import attributes
    from mlcrt.targets.vulkan import tiles as _registers_the_code_generator  # noqa: F401

    def call(module, inputs: list, outputs: list) -> list[np.ndarray]:
        device = vulkan.runtime().device
        (name,) = (var.name_hint for var in module.functions)
        with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):
            kernel = tvm.compile(module, target=tvm.target.Target(attributes("s8").tvm_target()))[name]
        tensors = [tvm.runtime.tensor(array, device) for array in (*inputs, *outputs)]
        kernel(*tensors)
        return [tensor.numpy() for tensor in tensors[len(inputs) :]]

    return call


@pytest.fixture(scope="session")
def execute(device):
    """execute(module, grid, lowered=False, **arguments): compile the one kernel of a module, validate it, run it; the
    arrays as it left them, by the names of the kernel's buffers. Scalars may be given as numbers."""

    def call(module, grid=(1,), lowered=False, **arguments) -> dict[str, np.ndarray]:
        (shader,) = compile_kernels(module if lowered else lower(module))
        validate(shader)
        missing = device.missing(shader)
        if missing or shader.min_subgroup_size > device.subgroup_size:
            pytest.skip(f"{device.name} lacks {missing or f'subgroups of {shader.min_subgroup_size}'}")
        named = {}
        for argument in shader.arguments:
            name = argument.name if argument.name in arguments else argument.name.removesuffix("_ptr")
            named[argument.name] = arguments[name]
        return {k.removesuffix("_ptr"): v for k, v in device.run(shader, named, grid).items()}

    return call
