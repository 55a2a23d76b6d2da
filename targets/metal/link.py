"""Objects → an ad-hoc signed arm64 .dylib, with the Mach-O linker that the ziglang package carries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlcrt.errors import MlcrtError

from .architecture import MACOS, MetalArch


def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_) -> None:
    """Link Mach-O objects into the shared library `output` (the signature of TVM's export_library callbacks).

    What the objects take from TVM stays undefined: the process that loads the library has it. Zig's own runtime
    libraries are left out: the objects bring their half-precision conversions, and building them would take seconds.
    """
    command = [
        *(sys.executable, "-m", "ziglang", "build-lib", "-dynamic", "-target", f"aarch64-macos.{MACOS}", "-lc"),
        *("-fno-compiler-rt", "-fno-ubsan-rt", "-fallow-shlib-undefined"),
        *("-install_name", f"@rpath/{Path(output).name}", f"-femit-bin={output}"),
        *map(str, objects),
        *(options or []),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"ZIG_LOCAL_CACHE_DIR": scratch, "ZIG_GLOBAL_CACHE_DIR": scratch}
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **caches})
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        raise MlcrtError(f"linking for macOS failed: {lines[0]}; reinstall ziglang if it is incomplete")


link.output_format = "dylib"


def export_options(_attributes: MetalArch) -> dict:
    """Arguments for TVM's export_library."""
    return {"fcompile": link}
