"""Objects → shared library, with the linkers that the ziglang package carries: no compiler on the user's machine.

The objects tell the system they are for, and every system is linked on every system.

What a library may call is libm (sin, cos), libc (memset), and one function of TVM's FFI that raises errors. On Linux
and macOS the loader finds that last one in the process; Windows binds imports to a DLL by name. No header, libc or
compiler runtime has to be there when linking: stand-ins name the system's libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlcrt.errors import MlcrtError

_NEEDED = ("libm.so.6", "libc.so.6")
_ELF_MACHINES = {62: "elf_x86_64", 183: "aarch64linux"}  # e_machine → LLD's name of the emulation
_X86_64_COFF = b"\x64\x86"  # IMAGE_FILE_MACHINE_AMD64
_ARM64_MACHO = bytes.fromhex("cffaedfe 0c000001")  # MH_MAGIC_64, CPU_TYPE_ARM64
_IMPORTS = {
    "tvm_ffi.dll": ("TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIErrorSetRaisedFromCStr"),
    # The Universal C Runtime, part of Windows since 10. Only what is called becomes an import.
    "ucrtbase.dll": (
        "memcpy", "memmove", "memset", "sinf", "cosf", "tanf", "expf", "exp2f", "logf", "log2f", "powf", "sqrtf",
        "tanhf", "erff", "fmaf", "fmodf", "floorf", "ceilf", "truncf", "roundf", "rintf", "nearbyintf", "sin", "cos",
        "exp", "log", "pow",
    ),
}  # fmt: skip
# What compilers take for granted on Windows. __chkstk is called for a frame above a page, %rax bytes of it, because a
# stack grows there one touched page at a time; _fltused tells Microsoft's C library that floating point is used.
_SUPPORT = """
.globl _fltused
.globl __chkstk
.data
_fltused: .long 0
.text
__chkstk:
    pushq %rdx
    pushq %rax
    leaq 24(%rsp), %rdx
    negq %rax
    addq %rdx, %rax
1:  subq $4096, %rdx
    cmpq %rax, %rdx
    jb 2f
    orb $0, (%rdx)
    jmp 1b
2:  orb $0, (%rax)
    popq %rax
    popq %rdx
    ret
"""


def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_) -> None:
    """Link objects into the shared library `output` (the signature of TVM's export_library callbacks)."""
    with open(objects[0], "rb") as file:
        head = file.read(20)
    with tempfile.TemporaryDirectory() as scratch:
        if head[:4] == b"\x7fELF":
            _link_elf(output, objects, options or [], Path(scratch), int.from_bytes(head[18:20], "little"))
        elif head[:8] == _ARM64_MACHO:
            _link_macho(output, objects, options or [], Path(scratch))
        elif head[:2] == _X86_64_COFF:
            _link_dll(output, objects, options or [], Path(scratch))
        else:
            raise MlcrtError(f"linking failed ({objects[0]} is an object of an unknown kind)")


def _link_elf(output: str, objects: Sequence[str], options: Sequence[str], scratch: Path, machine: int) -> None:
    emulation = ("-m", _ELF_MACHINES[machine])
    stubs = []
    for name in _NEEDED:
        stub = scratch / name
        _zig("ld.lld", *emulation, "-shared", "-soname", name, "-o", str(stub), str(_empty_object(scratch, machine)))
        stubs.append(str(stub))
    arguments = [*emulation, "-shared", "--no-as-needed", "-z", "undefs", "-o", str(output), *map(str, objects), *stubs]
    _zig("ld.lld", *arguments, *options)


def _link_macho(output: str, objects: Sequence[str], options: Sequence[str], scratch: Path) -> None:
    """A dylib with an ad-hoc signature, which macOS on ARM64 demands of all code."""
    arguments = ["-dynamic", "-target", "aarch64-macos.13.0", "-OReleaseFast", "-fno-compiler-rt", "-fstrip"]
    arguments += ["-fallow-shlib-undefined", "-install_name", f"@rpath/{Path(output).name}", f"-femit-bin={output}"]
    _zig("build-lib", *arguments, *map(str, objects), *options, caches=scratch)


def _link_dll(output: str, objects: Sequence[str], options: Sequence[str], scratch: Path) -> None:
    libraries = []
    for dll, names in _IMPORTS.items():
        definition, stub = scratch / f"{dll}.def", scratch / f"{dll}.lib"
        definition.write_text("\n".join((f"LIBRARY {dll}", "EXPORTS", *names, "")))
        _zig("dlltool", "-m", "i386:x86-64", "-d", str(definition), "-l", str(stub))
        libraries.append(str(stub))
    source, support = scratch / "support.s", scratch / "support.obj"
    source.write_text(_SUPPORT)
    _zig("build-obj", "-target", "x86_64-windows-gnu", "-fstrip", f"-femit-bin={support}", str(source), caches=scratch)
    # -Brepro: a hash of the contents where the time of linking would stand
    arguments = ["-dll", "-noentry", "-nodefaultlib", "-Brepro", "-machine:x64", f"-out:{output}"]
    arguments.append(f"-implib:{scratch / 'import.lib'}")
    _zig("lld-link", *arguments, *map(str, objects), str(support), *libraries, *options)


def binary_object(data: bytes, symbol: str, folder: Path) -> str:
    """An object file in `folder` whose one global symbol stands at the first byte of `data`."""
    file, script = folder / f"{symbol}.bin", folder / f"{symbol}.o"
    file.write_bytes(data)
    inner = "_binary_" + "".join(c if c.isalnum() else "_" for c in str(file)) + "_start"
    _zig("ld.lld", "-r", "-m", "elf_x86_64", "-b", "binary", str(file), "-o", str(script), f"--defsym={symbol}={inner}")
    return str(script)


def export_options(_attributes) -> dict:
    """Arguments for TVM's export_library."""
    return {"fcompile": link}


def _empty_object(scratch: Path, machine: int) -> Path:
    """An ELF relocatable with no sections: 64 header bytes."""
    path = scratch / "empty.o"
    header = bytearray(64)
    header[:16] = b"\x7fELF\x02\x01\x01" + bytes(9)
    header[16:24] = (1).to_bytes(2, "little") + machine.to_bytes(2, "little") + (1).to_bytes(4, "little")
    header[52:54] = (64).to_bytes(2, "little")  # e_ehsize
    header[58:60] = (64).to_bytes(2, "little")  # e_shentsize
    path.write_bytes(header)
    return path


def _zig(*arguments: str, caches: Path | None = None) -> None:
    """Run one of ziglang's commands; those that compile keep what they cache in `caches`."""
    environment = dict(os.environ)
    if caches is not None:
        environment |= {"ZIG_GLOBAL_CACHE_DIR": str(caches), "ZIG_LOCAL_CACHE_DIR": str(caches)}
    command = [sys.executable, "-m", "ziglang", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line]
        raise MlcrtError(f"linking failed ({(errors or lines)[-1]}): check that the ziglang package is installed whole")
