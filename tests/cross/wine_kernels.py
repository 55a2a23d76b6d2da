"""Two kernels of a Windows DLL, run under Wine with the stock Windows wheels of TVM, against the same kernels here.

    apt-get install wine64 && python tests/cross/wine_kernels.py

Not part of the test suite: it fetches 70 MB of wheels and 100 MB of Wine, and zig compiles its C runtime for a minute.
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

import numpy as np
import tvm

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simd.elementwise import rotary_tables
from mlcrt.kernels.simd.linear import linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.cpu import attributes, export_options
from mlcrt.targets.cpu.tiles import tiles

HERE = Path(__file__).parent
MOST = 1e-6  # of error, absolute; the values are of order one


def compiled(arch):
    q4 = Linear(SCHEMES["q4f16_1"].row_major(), 64, 64, 1)
    functions = {"linear": linear(q4, tiles(arch).linear), "rotary": rotary_tables(16, 1, 1.0)}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    return tvm.compile(module, target=tvm.target.Target(arch.tvm_target()))


def main() -> int:
    wine = shutil.which("wine64") or next(map(str, Path("/usr/lib/wine").glob("wine64")), None)
    if wine is None:
        print("there is no wine64 here", file=sys.stderr)
        return 1
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((1, 64)).astype(np.float32), np.zeros((1, 64), np.float32)
    codes, scales = draw.integers(0, 2**32, (64, 8), np.uint32), draw.uniform(-0.1, 0.1, (64, 2)).astype(np.float16)
    inv_freq, position = (1e4 ** -(np.arange(16) / 16)).astype(np.float32), np.array([7], np.int32)
    cosine, sine = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    here, expected = compiled(attributes("x86-64-v3-linux")), []
    for name, arrays, results in (
        ("linear", (x, codes, scales, y), (3,)), ("rotary", (inv_freq, position, cosine, sine), (2, 3)),
    ):  # fmt: skip
        tensors = [tvm.runtime.tensor(a) for a in arrays]
        here[name](*tensors)
        expected += [tensors[i].numpy().ravel() for i in results]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arch = attributes("x86-64-v3-windows")
        compiled(arch).export_library(str(folder / "lib.dll"), **export_options(arch))
        (folder / "input.bin").write_bytes(b"".join(a.tobytes() for a in (x, codes, scales, inv_freq, position)))
        fetch_wheels(folder)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-O1"]
        command += [f"-I{folder / 'wheels/tvm_ffi/include'}", str(HERE / "wine_kernels.c"), "-o"]
        subprocess.run([*command, str(folder / "run.exe")], check=True)
        environment = {**os.environ, "WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all", "WINEARCH": "win64"}
        done = subprocess.run([wine, "run.exe"], cwd=folder, env=environment, capture_output=True, text=True)
        subprocess.run([wine, "wineboot", "-e"], env=environment, capture_output=True)
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            return 1
        got = np.array([float(line) for line in done.stdout.split()], np.float32)
    error = float(np.abs(got - np.concatenate(expected)).max())
    print(f"{len(got)} values, largest difference {error:.1e}")
    return int(not error <= MOST)


def fetch_wheels(folder: Path) -> None:
    """The DLLs of the Windows wheels beside the program, their headers in wheels/."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pins = [f"{name}=={metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--platform=win_amd64", f"--python-version={version}", "-d", str(folder / "wheels")]
    subprocess.run([*command, *pins], check=True)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith(".h") or (n.endswith(".dll") and "compiler" not in n)]
            archive.extractall(folder / "wheels", names)
    for library in (folder / "wheels").rglob("*.dll"):
        shutil.copy(library, folder / library.name)


if __name__ == "__main__":
    sys.exit(main())
