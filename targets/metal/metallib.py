"""Kernels compiled ahead with Xcode's Metal compiler, where there is one; elsewhere the Mac compiles them at load."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from mlcrt.errors import MlcrtError

from .architecture import MACOS

_CALLBACK = "tvm_callback_metal_compile"  # TVM calls it with each kernel's source


def offer_compiler() -> None:
    """Make TVM's code generator use Xcode's compiler if `xcrun` is on PATH, and plain source otherwise."""
    import tvm_ffi

    if shutil.which("xcrun"):
        tvm_ffi.register_global_func(_CALLBACK, lambda source, _target: (compile_source(source), "metallib"), True)
    elif tvm_ffi.get_global_func(_CALLBACK, allow_missing=True):
        tvm_ffi.registry.remove_global_func(_CALLBACK)


def compile_source(source: str) -> bytes:
    """Metal Shading Language → the bytes of a metallib."""
    with tempfile.TemporaryDirectory() as scratch:
        file, output = Path(scratch, "kernel.metal"), Path(scratch, "kernel.metallib")
        file.write_text(source, encoding="utf-8")
        flags = ["-O3", "-std=metal3.0", f"-mmacosx-version-min={MACOS}", "-o", str(output)]
        command = ["xcrun", "-sdk", "macosx", "metal", *flags, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not output.is_file():
            lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
            raise MlcrtError(f"xcrun metal failed: {lines[0]}; install Xcode, or take xcrun from PATH to embed source")
        return output.read_bytes()
