"""A library with rare kinds of kernels: each module is valid, and what lavapipe can be made to run of it, it runs.

Mesa's lavapipe has as many lanes as its vectors have floats, so LP_NATIVE_VECTOR_WIDTH=512 gives it subgroups of 16.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from device import LAYER_FILE, modules, unavailable, validate_code

from mlcrt.compile import compile_model

KINDS = ("s8f", "s16", "s16m", "s64")  # those that no other test compiles a whole model for


@pytest.fixture(scope="module")
def made(vulkan, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("library")
    model = tiny.make_tiny("qwen3_moe", root / "model")
    return compile_model(model, "q4f16_1", f"vulkan:{'+'.join(KINDS)},cpu", dist_root=root / "dist", slots=0)


def test_every_module_is_valid(made):
    found = modules(next((made / "vulkan").glob("lib.so")))
    assert {kind for _, kind, _ in found} == {*KINDS, ""}
    for name, kind, code in found:
        validate_code(f"{name} for {kind}", code)


_ANSWER = """
import sys
from mlcrt.runtime.engine import Engine
from mlcrt.targets.vulkan import device
engine = Engine(sys.argv[1], sys.argv[2], context=200)
engine.prefill([(7 * i) % 250 + 3 for i in range(140)])
print(device.devices()[0]["subgroup"], engine.greedy(8))
"""


def answer(folder: Path, target: str, **environment: str) -> tuple[int, str]:
    """(lanes of a subgroup, tokens after a prompt)."""
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER, str(folder), target],
        capture_output=True, text=True, timeout=170, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0 and "VUID" not in done.stdout, done.stdout + done.stderr
    lanes, tokens = done.stdout.split(" ", 1)
    return int(lanes), tokens


@pytest.fixture(scope="module")
def expected(made) -> str:
    return answer(made, "cpu")[1]


@pytest.mark.parametrize("kind", ["s8f", "s16"])
def test_subgroups_of_other_sizes_give_the_tokens_of_the_cpu(made, expected, kind):
    size = int(re.sub(r"\D", "", kind))
    lanes, tokens = answer(made, "vulkan", LP_NATIVE_VECTOR_WIDTH=str(32 * size), MLCRT_VULKAN_VARIANT=kind)
    if lanes != size:
        unavailable(f"this Vulkan device has subgroups of {lanes}, whatever LP_NATIVE_VECTOR_WIDTH is")
    assert tokens == expected and len(set(re.findall(r"\d+", tokens))) > 3


def test_what_a_device_lacks_is_one_sentence(made):
    """lavapipe with subgroups of 4: nothing in the library is for so few."""
    done = subprocess.run(
        [sys.executable, "-m", "mlcrt.cli", "chat", str(made), "--device", "vulkan", "--prompt", "x"],
        capture_output=True, text=True, timeout=170, env={**os.environ, "LP_NATIVE_VECTOR_WIDTH": "128"},
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"mlcrt: Vulkan: llvmpipe .* lacks subgroups of \d+ lanes \(it has 4\), which .* needs", line)


def test_the_layers_would_speak_up(device, capfd):
    """Without this, silence would prove nothing."""
    if not LAYER_FILE.exists():
        unavailable("the Vulkan validation layers are not installed (Debian: vulkan-validationlayers)")
    vk = device.vk
    info = vk.VkBufferCreateInfo(size=0, usage=vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT)  # must not be empty
    vk.vkDestroyBuffer(device.device, vk.vkCreateBuffer(device.device, info, None), None)
    assert "VUID-VkBufferCreateInfo-size-00912" in capfd.readouterr().out
