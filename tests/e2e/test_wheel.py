"""The wheel, installed into an empty environment outside the checkout, is all that is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "mlcrt", "kernels", "targets")


def checked(command: list, **options) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: building in place would leave files in the checkout, and take old ones from there."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", folder, "--no-deps", "-q", "--wheel-dir", folder / "out"]
    try:
        new_enough = int(version("setuptools").partition(".")[0]) >= 77
        version("wheel")
    except PackageNotFoundError:
        new_enough = False
    checked([*command, "--no-build-isolation"] if new_enough else command)
    (built,) = (folder / "out").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """run(*command) in an environment that has the wheel, and the dependencies of this one by way of a .pth file."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    binaries = folder / "venv" / "bin"
    target = checked([binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    (Path(target) / "dependencies.pth").write_text(
        "\n".join(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    )
    python = ["--python", binaries / "python"]
    checked([sys.executable, "-m", "pip", *python, "install", "-q", "--no-deps", "--no-index", wheel])
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    work = folder / "work"
    work.mkdir()

    def run(name: str, *arguments) -> str:
        return checked([binaries / name, *arguments], cwd=work, env=environment)

    run.folder, run.packages = work, Path(target)
    return run


def test_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("mlcrt", "mlcrt"), ("kernels", "mlcrt/kernels"), ("targets", "mlcrt/targets")):
        inside = [f.relative_to(ROOT / folder) for f in (ROOT / folder).rglob("*") if f.is_file()]
        files = [f for f in inside if not any(p == "__pycache__" or p.startswith(".") for p in f.parts)]
        missing = {f"{package}/{f.as_posix()}" for f in files} - names
        assert files and not missing, f"not in the wheel: {sorted(missing)}"
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"mlcrt"}
    assert not [n for n in names if "test" in Path(n).name or "/tests/" in n]


def test_it_is_the_wheel_that_runs(installed):
    code = "import mlcrt, mlcrt.kernels, mlcrt.targets as t; print(mlcrt.__file__, mlcrt.kernels.__file__, t.__file__)"
    for path in installed("python", "-c", code).split():
        assert Path(path).is_relative_to(installed.packages), path


def test_version_and_devices(installed):
    expected = (ROOT / "mlcrt/version.py").read_text().split('"')[1]
    assert installed("mlcrt", "--version") == f"mlcrt {expected}\n"
    devices = json.loads(installed("mlcrt", "devices", "--json"))
    cpu = next(d for d in devices if d["target"] == "cpu")
    assert cpu["available"] and cpu["devices"][0]["cores"] >= 1


def test_compile_and_chat(installed):
    tiny.make_tiny("qwen3_norms", installed.folder / "model")
    arguments = ("model", "--quantization", "q4f16_1", "--target", "cpu")
    assert installed("mlcrt", "compile", *arguments) == "dist/model-q4f16_1\n"
    assert (installed.folder / "dist/model-q4f16_1/cpu/lib.so").is_file()
    chat = ("chat", "dist/model-q4f16_1", "--prompt", "Hello", "--max-tokens", "8", "--temperature", "0")
    answer = installed("mlcrt", *chat)
    assert answer.endswith("\n") and installed("mlcrt", *chat) == answer
    result = json.loads(installed("mlcrt", *chat, "--json"))
    assert result["text"] + "\n" == answer and result["last"]["completion_tokens"] == 8
