"""An emulated ARM64 machine, and a tiny model compiled for it, for Macs, for Windows and for this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import arm64_machine
import pytest
import tiny

from mlcrt.compile import compile_model

CROSS = ("cpu:aarch64-linux", "cpu:aarch64-macos", "cpu:x86-64-v3-windows")


@pytest.fixture(scope="session")
def arm64(tmp_path_factory) -> arm64_machine.Arm64:
    reason = arm64_machine.missing()
    if reason is None:
        try:
            return arm64_machine.Arm64(arm64_machine.prepare(), tmp_path_factory.mktemp("arm64") / "packages")
        except (OSError, subprocess.SubprocessError) as error:
            words = getattr(error, "stderr", None) or b""
            reason = f"the ARM64 Python could not be fetched: {error} {words.decode(errors='replace')[-300:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    print(f"skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory) -> Path:
    """A dist folder with libraries for this machine and for three others, compiled in one call."""
    root = tmp_path_factory.mktemp("cross")
    model = tiny.make_tiny("qwen3_norms", root / "tiny")
    return compile_model(model, "q4f16_1", ",".join(("cpu", *CROSS)), dist_root=root / "dist", slots=0)
