"""A small model compiled for two generations of NVIDIA GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny

from mlcrt.compile import compile_model
from mlcrt.targets import cuda
from mlcrt.targets.cuda import fatbin


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> tuple[Path, Path]:
    """(dist folder, library); the CUDA source lies beside the folder."""
    if cuda.compiler_missing() and os.environ.get("CI") != "true":
        pytest.skip(cuda.compiler_missing())
    root = tmp_path_factory.mktemp("cuda")
    model = tiny.make_tiny("qwen3_moe", root / "model")
    compile_source = fatbin.compile_source

    def keep(source: bytes, sms: tuple[str, ...]) -> bytes:
        (root / "kernels.cu").write_bytes(source)
        return compile_source(source, sms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fatbin, "compile_source", keep)
        dist = compile_model(model, "q4f16_1", "cuda:sm_80,sm_90", dist_root=root, slots=2)
    return dist, dist / "cuda" / "lib.so"
