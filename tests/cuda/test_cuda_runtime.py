"""The CUDA runtime on a stand-in for CUDA's libraries: loading compiles nothing, and the host is one step behind."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import refusing
from test_cuda_compile import FATBIN_MAGIC

from mlcrt.targets.native import compiler

SOURCE = Path(__file__).parent / "fakecuda" / "cuda.cc"


@pytest.fixture(scope="module")
def fake_cuda(tmp_path_factory) -> Path:
    """A folder for LD_LIBRARY_PATH with both libraries."""
    folder = tmp_path_factory.mktemp("fakecuda")
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: cuda*; };\n")
    for name, more in (("libcudart.so.13", [f"-Wl,--version-script={versions}"]), ("libcuda.so.1", [])):
        options = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-std=c++17", f"-Wl,-soname,{name}", *more]
        subprocess.run([compiler(), *options, str(SOURCE), "-o", str(folder / name)], check=True)
    return folder


@pytest.fixture(scope="module")
def used(fake_cuda, library, tmp_path_factory):
    """used(**environment) → (the process that used the model, what it asked of CUDA)."""

    @functools.cache
    def run(**environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log = tmp_path_factory.mktemp("log") / "calls"
        done = refusing.use(library[0], "cuda", LD_LIBRARY_PATH=str(fake_cuda), FAKE_CUDA_LOG=str(log), **environment)
        return done, log.read_text().splitlines() if log.is_file() else []

    return run


@pytest.mark.parametrize("environment", [{}, {"TVM_USE_RUNTIME_LIB": "1"}], ids=["whole", "runtime"])
def test_loading_and_running_compiles_nothing(used, environment):
    done, calls = used(**environment)
    assert done.returncode == 0 and done.stdout.startswith("compiled nothing"), done.stderr[-3000:]
    modules = [call for call in calls if call.startswith("module")]
    assert set(modules) == {f"module {int.from_bytes(FATBIN_MAGIC, 'little'):08x}"}  # machine code, not PTX or source


def test_a_sampled_step_is_one_launch_and_the_next_starts_before_it_is_waited_for(used):
    done, calls = used()
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = [call.removeprefix("record ") for call in calls if call.startswith("record")]
    assert "draw_token_kernel_1" in recorded and recorded[-1] == "finish_step_kernel_1"  # greedy(): without drawing
    start = calls.index("replay")
    step = ["replay", "copy 4 to the host", "event"]
    # recorded when the second step starts; from then on each step starts before the one in front is waited for
    assert calls[start : start + 16] == [*step, "wait for an event"] * 4
    before = calls[:start]
    assert before.count("event") == 1 and "wait for an event" not in before  # the first step's, under way


def test_mlcrt_graph_0_launches_every_kernel(used):
    done, calls = used(MLCRT_GRAPH="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(call.startswith(("record", "replay")) for call in calls)
    assert calls.count("launch draw_token_kernel_1") == calls.count("event") == calls.count("wait for an event") == 6


def test_every_kernel_of_a_step_is_timed(fake_cuda, library, tmp_path):
    command = [sys.executable, "-m", "mlcrt.cli", "bench", str(library[0]), "--device", "cuda", "--contexts", "16"]
    command += ["-n", "4", "-p", "8", "--repeat", "1", "--profile", "--json"]
    found = {**os.environ, "LD_LIBRARY_PATH": str(fake_cuda), "FAKE_CUDA_LOG": str(tmp_path / "calls")}
    done = subprocess.run(command, capture_output=True, text=True, env=found)
    assert done.returncode == 0, done.stderr[-3000:]
    profile = json.loads(done.stdout)["profile"]
    calls = profile["calls"]
    assert profile["sum_ms"] == pytest.approx(calls * 0.01) and calls <= profile["launches"] <= 2 * calls
    kernels = {row["kernel"].rstrip("0123456789") for row in profile["kernels"]}  # numbered where there are several
    assert {"embed", "finish_step", "rope_attention"} < kernels
    done = subprocess.run(command, capture_output=True, text=True, env={**found, "FAKE_CUDA_TIMES": "13"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search("mlcrt: [a-z]+[a-z0-9_]* cannot be timed .CUDA error 719", done.stderr.splitlines()[-1])
