"""The real model of these tests, compiled once per run and scheme, and the `mlcrt` command in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from mlcrt.compile import compile_model
from mlcrt.demo import demo_model
from mlcrt.errors import MlcrtError


@pytest.fixture(scope="session")
def gguf():
    """The Q4_1 GGUF of SmolLM2-135M-Instruct. Without it tests are skipped, but on CI they fail."""
    try:
        return demo_model()
    except MlcrtError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        print(f"skipped: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(gguf, tmp_path_factory):
    """smollm2(quantization=None) → dist folder; `smollm2.seconds` has how long each took."""
    root, made = tmp_path_factory.mktemp("smollm2"), {}

    def make(quantization: str | None = None):
        if quantization not in made:
            started = time.perf_counter()
            made[quantization] = compile_model(gguf, quantization, "cpu", dist_root=root, slots=0)
            make.seconds[quantization] = time.perf_counter() - started
        return made[quantization]

    make.seconds = {}
    yield make
    shutil.rmtree(root, ignore_errors=True)  # close to 1 GB, and pytest keeps the last three runs


@pytest.fixture
def mlcrt(tmp_path):
    """mlcrt(*arguments) → the finished process; it runs in the empty folder mlcrt.folder."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mlcrt.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    run.folder = folder
    return run
