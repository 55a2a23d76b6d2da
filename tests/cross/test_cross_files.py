"""Libraries for Macs and Windows as files, read by a library that knows the formats; and what cannot be asked for.

They are not run here: what is checked is the structure that the other system's loader goes by.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import lief
import pytest

from mlcrt.compile import compile_model
from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.engine import Engine
from mlcrt.select import slot_for
from mlcrt.targets.cpu import attributes, link
from mlcrt.targets.cpu.architecture import windows_flags
from mlcrt.targets.platforms import PLATFORMS, platform_of

# What the TVM runtime of the wheels looks up in a library, besides the functions of the model.
CONTEXT = {"__TVMBackendParallelLaunch", "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace"}
DATA = "__tvm_ffi__library_bin"


def functions(folder: Path) -> set[str]:
    """The exported functions of the ELF library for this machine: the others have to have the same."""
    binary = lief.parse(str(folder / "cpu/lib.so"))
    return {s.name for s in binary.exported_symbols if s.name.startswith("__tvm_ffi_") and s.name != DATA}


def test_the_macos_library(everywhere):
    binary = lief.parse(str(everywhere / "cpu-aarch64-macos/lib.dylib"))
    assert binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    assert binary.build_version.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert binary.build_version.minos == [13, 0, 0]
    assert [lib.name for lib in binary.libraries] == ["@rpath/lib.dylib", "/usr/lib/libSystem.B.dylib"]
    exported = {s.name.removeprefix("_") for s in binary.exported_symbols}
    assert exported >= functions(everywhere) | CONTEXT | {DATA}
    bound = {b.symbol.name: b.library.name if b.has_library else None for b in binary.bindings if b.has_symbol}
    assert {name for name, library in bound.items() if library is None} - {f"_{n}" for n in CONTEXT} == {
        "_TVMFFIErrorSetRaisedFromCStrParts"
    }, "found in the process that loads it; everything else is in the system's library"


def test_the_macos_signature(everywhere):
    """An ad-hoc signature: a code directory whose SHA-256 of each page is that of the file (Apple's cs_blobs.h)."""
    file = everywhere / "cpu-aarch64-macos/lib.dylib"
    data, binary = file.read_bytes(), lief.parse(str(file))
    signature = binary.code_signature
    blob = data[signature.data_offset : signature.data_offset + signature.data_size]
    magic, _, count = struct.unpack_from(">III", blob)
    assert magic == 0xFADE0CC0 and count >= 1
    slots = dict(struct.unpack_from(">II", blob, 12 + 8 * i) for i in range(count))
    directory = blob[slots[0] :]
    magic, _, _, flags, hashes, _, _, pages, limit = struct.unpack_from(">9I", directory)
    size, kind, _, shift = struct.unpack_from(">4B", directory, 36)
    assert (magic, size, kind) == (0xFADE0C02, 32, 2) and flags & 2, "ad hoc, SHA-256"
    assert limit == signature.data_offset and pages == -(-limit // (1 << shift))
    for page in range(pages):
        digest = hashlib.sha256(data[page << shift : min((page + 1) << shift, limit)]).digest()
        assert directory[hashes + size * page :][:size] == digest, f"page {page}"


def test_the_windows_library(everywhere):
    file = everywhere / "cpu-x86-64-v3-windows/lib.dll"
    binary = lief.parse(str(file))
    assert binary.header.machine == lief.PE.Header.MACHINE_TYPES.AMD64
    assert binary.header.has_characteristic(lief.PE.Header.CHARACTERISTICS.DLL)
    assert binary.optional_header.magic == lief.PE.PE_TYPE.PE32_PLUS
    exported = {entry.name for entry in binary.get_export().entries}
    assert exported >= functions(everywhere) | CONTEXT | {DATA}
    imports = {i.name: {entry.name for entry in i.entries} for i in binary.imports}
    assert imports.keys() == {"tvm_ffi.dll", "ucrtbase.dll"}, "no DLL of a compiler"
    assert imports["tvm_ffi.dll"] == {"TVMFFIErrorSetRaisedFromCStrParts"}
    assert binary.optional_header.addressof_entrypoint == 0, "no code runs when it is loaded"
    assert [p.name for p in file.parent.iterdir()] == ["lib.dll"]


def test_sine_and_cosine_of_one_angle(tmp_path):
    """LLVM would make one call of both where the system's C library has one: Windows' has none."""
    import tvm

    from mlcrt.kernels.simd.elementwise import rotary_tables

    module = tvm.IRModule({"kernel": rotary_tables(16, 1, 1.0).with_attr("global_symbol", "kernel")})
    arch = attributes("x86-64-v3-windows")
    compiled = tvm.compile(module, target=tvm.target.Target(arch.tvm_target()))
    compiled.export_library(str(tmp_path / "lib.dll"), fcompile=link.link)
    binary = lief.parse(str(tmp_path / "lib.dll"))
    imports = {i.name: {entry.name for entry in i.entries} for i in binary.imports}
    assert imports["ucrtbase.dll"] == {"sinf", "cosf"}


def test_a_big_stack_frame_on_windows(tmp_path):
    """Above a page of frame, compilers call a stack probe: the linker brings one."""
    source, compiled = tmp_path / "big.c", tmp_path / "big.obj"
    source.write_text("void touch(char *); void touch(char *p) {}\n"
                      "__declspec(dllexport) void big(void) { volatile char b[9000]; b[1] = 1; touch((char *)b); }\n")
    zig("build-obj", "-target", "x86_64-windows-msvc", "-fno-sanitize-c", f"-femit-bin={compiled}", source)
    assert b"__chkstk" in compiled.read_bytes()
    link.link(str(tmp_path / "lib.dll"), [str(compiled)])
    binary = lief.parse(str(tmp_path / "lib.dll"))  # lives as long as this name: what it hands out points into it
    assert [entry.name for entry in binary.get_export().entries] == ["big"]


@pytest.mark.parametrize("frame", [0, 1, 4095, 4096, 4097, 100_000])
def test_the_stack_probe_runs(tmp_path, frame):
    """Its instructions are the same on Linux: it comes back with all registers as they were."""
    source, compiled, library = tmp_path / "probe.s", tmp_path / "probe.o", tmp_path / "lib.so"
    source.write_text(f"""{link._SUPPORT}
.globl probe
probe:
    movq ${frame}, %rax
    movq $77, %rdx
    movq %rsp, %rcx
    call __chkstk
    cmpq %rsp, %rcx
    jne 3f
    leaq (%rax,%rdx), %rax
    ret
3:  ud2
""")
    zig("build-obj", "-target", "x86_64-linux", f"-femit-bin={compiled}", source)
    link.link(str(library), [str(compiled)])
    probe = ctypes.CDLL(str(library)).probe
    probe.restype = ctypes.c_int64
    assert probe() == frame + 77


def zig(*arguments) -> None:
    done = subprocess.run([sys.executable, "-m", "ziglang", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_manifest_knows_each_library(everywhere):
    targets = open_dist(everywhere).manifest["targets"]
    assert {slot: entry["platform"] for slot, entry in targets.items()} == {
        "cpu": "x86_64-linux", "cpu:aarch64-linux": "aarch64-linux", "cpu:aarch64-macos": "aarch64-macos",
        "cpu:x86-64-v3-windows": "x86_64-windows",
    }  # fmt: skip
    for entry in targets.values():
        file = everywhere / entry["library"]
        assert platform_of(file) == entry["platform"] and file.name == PLATFORMS[entry["platform"]].library
    assert targets["cpu:aarch64-linux"]["kv_dtype"] == "float16"


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cpu:aarch64-linux", "lib.so is for ARM64 Linux and this machine is x86-64 Linux; compile it here with"),
        ("cpu:aarch64-macos", "lib.dylib is for ARM64 macOS and this machine is x86-64 Linux; compile it here with"),
        ("cpu:x86-64-v3-windows", "lib.dll is for x86-64 Windows and this machine is x86-64 Linux; compile it"),
        ("cpu:x86-64-v2-windows", r"has no library for cpu:x86-64-v2-windows \(it has: .*cpu.*\); compile again with"),
    ],
)
def test_foreign_libraries_are_refused(everywhere, device, sentence):
    with pytest.raises(MlcrtError, match=sentence):
        Engine(everywhere, device)


def test_a_check_needs_a_machine(everywhere):
    before = (everywhere / "mlcrt.json").read_bytes()
    with pytest.raises(MlcrtError, match="cpu cannot be checked here: the library is for ARM64 macOS and this machine"):
        compile_model(everywhere, None, "cpu:aarch64-macos", check=True, slots=0)
    assert (everywhere / "mlcrt.json").read_bytes() == before


def test_compiling_is_reproducible(everywhere, tmp_path):
    """The same bytes from another process and another folder, so that packages can be compared by their hashes."""
    slot = "cpu:x86-64-v3-windows"
    once = open_dist(everywhere).manifest["targets"][slot]["sha256"]
    folder = shutil.copytree(everywhere, tmp_path / "again", ignore=shutil.ignore_patterns("cpu*"))
    compile_model(folder, None, slot, slots=0)
    assert open_dist(folder).manifest["targets"][slot]["sha256"] == once


# --- names ---


@pytest.mark.parametrize(
    ("arch", "name", "platform"),
    [
        ("x86-64-v3", "x86-64-v3", "x86_64-linux"), ("x86-64-v3-linux", "x86-64-v3", "x86_64-linux"),
        ("aarch64", "aarch64-linux", "aarch64-linux"), ("aarch64-macos", "aarch64-macos", "aarch64-macos"),
        ("x86-64-v4-windows", "x86-64-v4-windows", "x86_64-windows"),
        ("x86-64-windows", "x86-64-windows", "x86_64-windows"),
    ],
)  # fmt: skip
def test_names(arch, name, platform):
    found = attributes(arch)
    assert (found.name, found.platform, found.cross) == (name, platform, platform != "x86_64-linux")
    assert attributes(found.name) == found
    if not arch.startswith("aarch64"):
        level = arch.removesuffix("-linux").removesuffix("-windows")
        assert found.features == attributes(level).features and found.lanes == attributes(level).lanes


@pytest.mark.parametrize("arch", ["aarch64-windows", "x86-64-v3-macos", "aarch64-v9", "native-windows", "-linux"])
def test_wrong_names(arch):
    with pytest.raises(UsageError, match="CPU architecture"):
        attributes(arch)


def test_the_system_of_the_machine_is_the_default(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert attributes("aarch64").name == attributes("").name == attributes("native").name == "aarch64-macos"
    assert attributes("aarch64").cross is False and attributes("aarch64-linux").cross is True
    monkeypatch.setattr("platform.system", lambda: "FreeBSD")
    with pytest.raises(UsageError, match=r"this machine \(aarch64-freebsd\) is no CPU target"):
        attributes("")


def test_what_windows_tells_of_its_processor():
    asked = lambda *there: windows_flags(lambda number: int(number in there))  # noqa: E731
    for level, numbers in (("x86-64", ()), ("x86-64-v2", (38,)), ("x86-64-v3", (38, 40)), ("x86-64-v4", (38, 40, 41))):
        assert asked(*numbers) == set(attributes(level).features)
    assert asked(41) == set(), "a level counts only with those below"


def test_slots():
    here, v2, arm = attributes("x86-64-v3"), attributes("x86-64-v2"), attributes("aarch64-linux")
    assert slot_for({}, "cpu", here) == "cpu"
    assert slot_for({}, "cpu", arm) == "cpu:aarch64-linux", "what cannot run here never takes the plain name"
    there = {"cpu": {"arch": "x86-64-v3"}}
    assert slot_for(there, "cpu", here) == "cpu"
    assert slot_for(there, "cpu", v2) == "cpu:x86-64-v2"
    assert slot_for({"cpu:x86-64-v2": {"arch": "x86-64-v2"}}, "cpu", v2) == "cpu:x86-64-v2"
    assert slot_for({"cpu": "damaged"}, "cpu", v2) == "cpu"


def test_help_names_every_architecture():
    from mlcrt.commands.compile import EXAMPLES

    for name in ("x86-64-v4", "aarch64", "-windows", "-macos", "native"):
        assert re.search(re.escape(name), EXAMPLES)
