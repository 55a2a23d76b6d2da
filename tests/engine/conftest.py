"""Compiled models shared by the tests of this folder; each is made once per run."""

from __future__ import annotations

import shutil

import pytest
import tiny

from mlcrt.compile import compile_model


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """compiled(case, quantization) → dist folder of a tiny golden model; the folder is shared, do not change it."""
    root = tmp_path_factory.mktemp("dist")
    made = {}

    def make(case: str, quantization: str = "q0f32"):
        if (case, quantization) not in made:
            model = tiny.make_tiny(case, root / "models" / case)
            made[case, quantization] = compile_model(model, quantization, "cpu", dist_root=root)
        return made[case, quantization]

    return make


@pytest.fixture
def private(compiled, tmp_path):
    """private(case, quantization) → a copy of the dist folder that the test may damage."""

    def make(case: str, quantization: str = "q0f32"):
        source = compiled(case, quantization)
        return shutil.copytree(source, tmp_path / source.name)

    return make
