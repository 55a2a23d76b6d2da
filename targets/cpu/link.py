"""Objects → shared library, with the LLD that the ziglang package carries: no compiler on the user's machine.

The library may call libm (sin, cos) and libc (memset). Their symbols are left open and the two are named as needed
libraries through empty stand-ins, so no header, libc or compiler runtime has to be there when linking.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlcrt.errors import MlcrtError

_NEEDED = ("libm.so.6", "libc.so.6")


def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_) -> None:
    """Link ELF objects into the shared library `output` (the signature of TVM's export_library callbacks)."""
    with tempfile.TemporaryDirectory() as scratch:
        stubs = []
        for name in _NEEDED:
            stub = Path(scratch, name)
            _lld("-shared", "-soname", name, "-o", str(stub), str(_empty_object(scratch)))
            stubs.append(str(stub))
        arguments = ["-shared", "--no-as-needed", "-z", "undefs", "-o", str(output), *map(str, objects), *stubs]
        _lld(*arguments, *(options or []))


def binary_object(data: bytes, symbol: str, folder: Path) -> str:
    """An object file in `folder` whose one global symbol stands at the first byte of `data`."""
    file, script = folder / f"{symbol}.bin", folder / f"{symbol}.o"
    file.write_bytes(data)
    inner = "_binary_" + "".join(c if c.isalnum() else "_" for c in str(file)) + "_start"
    _lld("-r", "-m", "elf_x86_64", "-b", "binary", str(file), "-o", str(script), f"--defsym={symbol}={inner}")
    return str(script)


def export_options(_attributes) -> dict:
    """Arguments for TVM's export_library."""
    return {"fcompile": link}


def _empty_object(scratch: str) -> Path:
    """An x86-64 ELF relocatable with no sections: 64 header bytes."""
    path = Path(scratch, "empty.o")
    header = bytearray(64)
    header[:16] = b"\x7fELF\x02\x01\x01" + bytes(9)
    header[16:24] = (1).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
    header[52:54] = (64).to_bytes(2, "little")  # e_ehsize
    header[58:60] = (64).to_bytes(2, "little")  # e_shentsize
    path.write_bytes(header)
    return path


def _lld(*arguments: str) -> None:
    command = [sys.executable, "-m", "ziglang", "ld.lld", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        raise MlcrtError(f"linking failed ({lines[-1]}): check that the ziglang package is installed whole")
