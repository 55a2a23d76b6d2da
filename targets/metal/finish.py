"""What happens to each kernel's source when the code generator has written it: checked against the hardware's limits,
and compiled ahead with Xcode's Metal compiler where there is one. Elsewhere the Mac compiles kernels at load."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from mlcrt.errors import MlcrtError

from .architecture import MACOS, THREADGROUP_BYTES

_METAL = ("-sdk", "macosx", "metal")
_BYTES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "half": 2, "int": 4, "uint": 4, "float": 4, "long": 8}
_ARRAY = re.compile(r"^ *threadgroup (\w+?)([234]?) \w+\[(\d+)\];", re.MULTILINE)


def offer() -> None:
    """Have TVM's code generator pass each kernel through `finish`."""
    import tvm_ffi

    tvm_ffi.register_error("MlcrtError", MlcrtError)  # so that it is still one after TVM has passed it on
    tvm_ffi.register_global_func("tvm_callback_metal_compile", finish, override=True)


def finish(source: str, _target=None) -> tuple[str | bytes, str]:
    """(payload, its format for TVM's Metal runtime) of one kernel; MlcrtError where no Apple GPU can run it."""
    used = threadgroup_bytes(source)
    if used > THREADGROUP_BYTES:
        name = re.search(r"kernel void (\w+)", source)
        raise MlcrtError(
            f"the Metal kernel {name[1] if name else ''} needs {used} bytes of threadgroup memory and Apple GPUs have"
            f" {THREADGROUP_BYTES}: this model cannot be compiled for metal yet; use --target cpu"
        )
    return (compile_source(source), "metallib") if has_compiler() else (source, "metal")


def has_compiler() -> bool:
    """Whether xcrun finds Apple's Metal compiler: every Mac has an xcrun, the compiler comes with Xcode (since 26 as a
    component of its own). Asked once for each xcrun."""
    xcrun = shutil.which("xcrun")
    return xcrun is not None and _runs(xcrun)


@functools.lru_cache
def _runs(xcrun: str) -> bool:
    try:
        return subprocess.run([xcrun, *_METAL, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def threadgroup_bytes(source: str) -> int:
    """Threadgroup memory that a kernel declares; vectors of three take the space of four."""
    return sum(
        _BYTES[kind] * (4 if lanes == "3" else int(lanes or 1)) * int(count)
        for kind, lanes, count in _ARRAY.findall(source)
    )


def compile_source(source: str) -> bytes:
    """Metal Shading Language → the bytes of a metallib."""
    with tempfile.TemporaryDirectory() as scratch:
        file, output = Path(scratch, "kernel.metal"), Path(scratch, "kernel.metallib")
        file.write_text(source, encoding="utf-8")
        flags = ["-O3", "-std=metal3.0", f"-mmacosx-version-min={MACOS}", "-o", str(output)]
        command = ["xcrun", *_METAL, *flags, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not output.is_file():
            lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
            raise MlcrtError(f"xcrun metal failed: {lines[0]}; take xcrun from PATH to embed the kernels as source")
        return output.read_bytes()
