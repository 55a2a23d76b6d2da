"""The C++ ROCm runtime against AMD's own header and library, and under the address sanitizer, which finds leaks too."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hip_module as M
import pytest
import tvm
from fake_hip import FOLDER, SOURCES, build_flags
from tvm_ffi import libinfo

from mlcrt.targets.native import compiler
from mlcrt.targets.rocm.device import SIDECAR

pytestmark = pytest.mark.skipif(compiler() is None, reason="the ROCm runtime is C++ and there is no compiler (g++)")
HEADER = Path("/usr/include/hip/hip_runtime_api.h")
IN_CI = os.environ.get("CI") == "true"


def real_library() -> str | None:
    """AMD's libamdhip64 of Debian; without a GPU it loads and finds no device."""
    try:
        ctypes.CDLL("libamdhip64.so.5")
    except OSError:
        return None
    return "libamdhip64.so.5"


def run(code: str, **environment) -> subprocess.CompletedProcess:
    env = os.environ | {k: str(v) for k, v in environment.items()}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


# another process each: HIP is opened once
_RUNTIME = """
from mlcrt.errors import MlcrtError
from mlcrt.targets.rocm import probe, runtime
print(probe().reason)
try:
    runtime()
except MlcrtError as error:
    print(error)
"""


def test_no_hip_library(tmp_path):
    result = run(_RUNTIME, MLCRT_HIP=tmp_path / "libamdhip64.so")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "no AMD HIP runtime (libamdhip64.so) on this machine",
        f"no AMD HIP runtime on this machine (looked for {tmp_path}/libamdhip64.so); install ROCm's HIP runtime and"
        " AMD's GPU driver, or set MLCRT_HIP to its libamdhip64.so",
    ]


def test_a_hip_library_that_is_too_old(tmp_path):
    source, library = tmp_path / "old.cc", tmp_path / "old.so"
    functions = ("hipGetErrorString", "hipGetLastError", "hipRuntimeGetVersion", "hipDriverGetVersion")
    source.write_text("".join(f'extern "C" int {name}() {{ return 100; }}\n' for name in functions))
    subprocess.run([compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    code = _RUNTIME.replace("print(probe().reason)\n", "")
    assert run(code, MLCRT_HIP=library).stdout == (
        f"{library} has no hipGetDeviceCount: this HIP runtime is too old, install ROCm 5.2 or later\n"
    )


@pytest.mark.skipif(not IN_CI and real_library() is None, reason="AMD's libamdhip64.so.5 is not installed")
def test_amds_own_library_without_a_gpu():
    """Every function is there; it finds no device, and that is one sentence."""
    result = run(_RUNTIME, MLCRT_HIP="libamdhip64.so.5")
    sentence = (
        "the HIP runtime is there but finds no usable AMD GPU: is there one, is its kernel driver loaded, and may this "
        "user open /dev/kfd"
    )
    assert result.stdout.splitlines() == [sentence, sentence], result.stderr


@pytest.mark.skipif(not IN_CI and not HEADER.exists(), reason=f"AMD's header {HEADER} is not installed")
def test_signatures_and_numbers_are_those_of_amds_header():
    """The stand-in defines, and the runtime calls, what the header declares: the compiler compares the types."""
    flags = [*build_flags(), "-fsyntax-only", "-Wno-unused-result", "-D__HIP_PLATFORM_AMD__"]
    for source in (*SOURCES, FOLDER / "numbers.cc", SIDECAR.folder / "memory.cc"):
        command = [compiler(), *flags, "-DMLCRT_HIP_HEADER", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]


def _usual_addresses() -> None:
    """The sanitizer wants a range of addresses to itself, and a kernel that scatters libraries widely may use it."""
    ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE; without effect where it is not allowed


def test_no_leak_and_no_bad_access(tmp_path):
    """exercise.cc takes every path of the runtime, failures included, in a process of its own."""
    module = tmp_path / "module.bin"
    module.write_bytes(M.vector_bundle("gfx1030", "gfx1100"))
    tvm_folder, sanitize = Path(tvm.__file__).parent, ["-fsanitize=address", "-O0"]
    flags = [*build_flags(), *sanitize, f"-I{tvm_folder / 'include'}", "-c"]
    sources = [*SIDECAR.sources, FOLDER / "exercise.cc", *SOURCES]

    def compile_one(source: Path) -> str:
        output = tmp_path / f"{source.stem}.o"
        subprocess.run([compiler(), *flags, str(source), "-o", str(output)], check=True)
        return str(output)

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(compile_one, sources))
    objects, fake = made[: -len(SOURCES)], made[-len(SOURCES) :]
    hip, program = tmp_path / "libamdhip64.so", tmp_path / "exercise"
    subprocess.run([compiler(), *sanitize, "-shared", *fake, "-o", str(hip)], check=True)
    folders = [tvm_folder / "lib", Path(libinfo.find_libtvm_ffi()).parent]
    link = [*(f"-L{f}" for f in folders), *(f"-Wl,-rpath,{f}" for f in (*folders, tmp_path))]
    libraries = [str(hip), "-ltvm_runtime", "-ltvm_ffi", "-ldl"]
    subprocess.run([compiler(), *sanitize, *objects, *link, *libraries, "-o", str(program)], check=True)
    result = subprocess.run(
        [str(program), str(hip), str(module)], capture_output=True, text=True, timeout=300, preexec_fn=_usual_addresses
    )
    assert result.returncode == 0 and result.stdout == "nothing left\n", result.stderr[-3000:]
