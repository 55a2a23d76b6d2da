"""A compiled model with libraries for two architectures, and a cache folder of its own for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny

from mlcrt.compile import compile_model


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """dist/tiny-q4f16_1 with libraries for this CPU and for x86-64-v2; shared, do not change it."""
    root = tmp_path_factory.mktemp("package")
    model = tiny.make_tiny("llama_mha", root / "tiny")
    folder = compile_model(model, "q4f16_1", "cpu", dist_root=root / "dist", slots=0)
    compile_model(folder, None, "cpu:x86-64-v2", slots=0)
    return folder


@pytest.fixture
def dist(compiled, tmp_path) -> Path:
    """A copy of it that the test may change."""
    return shutil.copytree(compiled, tmp_path / "dist" / compiled.name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLCRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


@pytest.fixture(scope="session")
def packed(compiled, tmp_path_factory) -> Path:
    """A package of all of it; shared, do not change it."""
    from mlcrt.package import write_package

    return write_package(compiled, None, tmp_path_factory.mktemp("packed") / "model.tar.zst")
