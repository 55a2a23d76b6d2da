"""An ARM64 Linux in a folder: Debian's python3 for arm64 and the product's own dependencies, run by qemu-user.

apt resolves and downloads with a state folder of its own, so the system's packages and architectures stay as they are.
The folder is kept in the cache; nothing but the stock ARM64 wheels of TVM and NumPy ever loads the libraries there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from mlcrt.targets.native import cache_folder

_DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_WHEELS = ("numpy>=2", "ml_dtypes", "typing_extensions")
_UNUSED = ("tvm/lib/libtvm_compiler", "tvm/include/", "tvm/src/", "tvm/3rdparty/", "numpy/_core/tests/")
ROOT = Path(__file__).parents[2]


class Arm64:
    """run(code, *arguments) runs Python code there with mlcrt and its runtime dependencies importable."""

    def __init__(self, folder: Path, overlay: Path):
        self.folder = folder
        (self.python,) = [p for p in (folder / "root/usr/bin").glob("python3.*") if p.name.count(".") == 1]
        overlay.mkdir(parents=True)
        for name in ("mlcrt", "kernels", "targets"):  # as an installation has them
            place = overlay / "mlcrt" / ("" if name == "mlcrt" else name)
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        self.path = f"{folder / 'site'}:{overlay}"

    def run(self, code: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess:
        command = ["qemu-aarch64", "-L", str(self.folder / "root"), str(self.python), "-c", code, *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": self.path,
                       "PYTHONDONTWRITEBYTECODE": "1", "TVM_USE_RUNTIME_LIB": "1", "TVM_NUM_THREADS": "2"}  # fmt: skip
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=self.folder
        )


def missing() -> str | None:
    """Why there can be none here, if so."""
    for tool, package in (("qemu-aarch64", "qemu-user"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            return f"there is no {tool} (Debian: {package}) to run ARM64 programs with"
    return None


def prepare() -> Path:
    """The folder, made first unless the cache has it. Raises CalledProcessError or OSError when a download fails."""
    place = cache_folder() / "tests" / f"arm64-tvm-{metadata.version('apache-tvm')}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".arm64-", dir=place.parent) as scratch:
        building = Path(scratch, "machine")
        version = _unpack_debian(Path(scratch, "apt"), building / "root")
        _unpack_wheels(Path(scratch, "wheels"), building / "site", version)
        os.replace(building, place)
    return place


def _unpack_debian(work: Path, root: Path) -> str:
    """Unpack Debian's python3 with all it needs into `root`; its version, as 3.11."""
    (work / "state/lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    (work / "apt.conf").write_text(
        f'APT::Architecture "arm64"; APT::Architectures {{"arm64";}}; APT::Install-Recommends "false";\n'
        f'Dir::State "{work}/state"; Dir::State::status "/dev/null"; Dir::Cache "{work}/cache";\n'
        f'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(work / "apt.conf")}
    for command in (["update"], ["install", "-y", "--download-only", *_DEBIAN]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True, capture_output=True, timeout=300)
    root.mkdir(parents=True)
    for package in sorted((work / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True, capture_output=True)
    return os.readlink(root / "usr/bin/python3").removeprefix("python")


def _unpack_wheels(work: Path, site: Path, version: str) -> None:
    pins = [f"{name}=={metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 24, 17)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(work)]
    command += [*platforms, f"--python-version={version}", *pins, *_WHEELS]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [n for n in archive.namelist() if not n.startswith(_UNUSED)])
