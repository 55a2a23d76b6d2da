"""A two-layer Llama that converts and compiles in two seconds."""

from __future__ import annotations

import shutil

import pytest
import tiny
from small_llama import CONFIG, shapes

from mlcrt.compile import compile_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tiny.write_folder(folder, CONFIG, shapes())
    return folder


@pytest.fixture(scope="session")
def compiled(model, tmp_path_factory):
    """compiled(quantization) → dist folder with a library for this CPU; without
    kernels for many sequences, and shared: do not change it."""
    root, made = tmp_path_factory.mktemp("dist"), {}

    def make(quantization: str = "q0f32"):
        if quantization not in made:
            made[quantization] = compile_model(model, quantization, "cpu", dist_root=root, slots=0)
        return made[quantization]

    return make


@pytest.fixture
def private(compiled, tmp_path):
    """private(quantization) → a copy of the dist folder, alone in its folder, that the test may change."""

    def make(quantization: str = "q0f32"):
        source = compiled(quantization)
        return shutil.copytree(source, tmp_path / "dist" / source.name)

    return make
