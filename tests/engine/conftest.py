"""Compiled models shared by the tests of this folder; each is made once per run."""

from __future__ import annotations

import shutil

import pytest
import tiny

from mlcrt.compile import compile_model


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """compiled(case, quantization, slots, target) → dist folder of a tiny golden model; it is shared, do not change it.

    Without kernels for many sequences (slots 0), whose making takes as long again, unless a test is about them.
    """
    root = tmp_path_factory.mktemp("dist")
    made = {}

    def make(case: str, quantization: str = "q0f32", slots: int | None = 0, target: str = "cpu"):
        key = case, quantization, slots, target
        if key not in made:
            model = tiny.make_tiny(case, root / f"models{slots}" / case)
            folder = root / f"{slots}-{target.partition(':')[2]}"
            made[key] = compile_model(model, quantization, target, dist_root=folder, slots=slots)
        return made[key]

    return make


@pytest.fixture
def private(compiled, tmp_path):
    """private(case, quantization) → a copy of the dist folder that the test may damage."""

    def make(case: str, quantization: str = "q0f32"):
        source = compiled(case, quantization)
        return shutil.copytree(source, tmp_path / source.name)

    return make
