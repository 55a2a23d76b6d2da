"""The macOS library that Linux makes: Mach-O structure and signature, embedded kernels, and what a Mac-less user sees.

Structure is read by LIEF; the layout of a code signature is that of Apple's published cs_blobs.h.
"""

from __future__ import annotations

import hashlib
import platform
import re
import struct
from pathlib import Path

import lief
import msl
import numpy as np
import pytest
import tiny
import tvm
import twin

from mlcrt.compile import compile_model
from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.engine import Engine
from mlcrt.targets import ProbeResult, metal, parse_targets
from mlcrt.targets.metal import device, finish

MACHO = lief.MachO


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("metal")
    return compile_model(tiny.make_tiny("qwen3_norms", root / "model"), "q4f16_1", "metal", dist_root=root, slots=0)


@pytest.fixture(scope="module")
def dylib(made) -> MACHO.Binary:
    return MACHO.parse(str(made / "metal" / "lib.dylib")).at(0)


def test_structure(made, dylib):
    header = dylib.header
    assert header.cpu_type == MACHO.Header.CPU_TYPE.ARM64
    assert header.file_type == MACHO.Header.FILE_TYPE.DYLIB
    assert dylib.build_version.platform == MACHO.BuildVersion.PLATFORMS.MACOS
    assert list(dylib.build_version.minos) == [13, 0, 0]
    names = {library.command: library.name for library in dylib.libraries}
    assert names[MACHO.LoadCommand.TYPE.ID_DYLIB] == "@rpath/lib.dylib"
    assert names[MACHO.LoadCommand.TYPE.LOAD_DYLIB] == "/usr/lib/libSystem.B.dylib"
    assert len(names) == len(dylib.libraries) == 2
    assert MACHO.check_layout(dylib)[0]


def test_it_needs_nothing_that_a_mac_with_tvm_lacks(dylib):
    exported = {s.name for s in dylib.exported_symbols}
    assert "___tvm_ffi__library_bin" in exported
    bound = {b.symbol.name for b in dylib.bindings if b.has_symbol} - exported
    assert bound <= {"dyld_stub_binder", "_TVMFFIErrorSetRaisedFromCStrParts"}


def test_ad_hoc_signature(made, dylib):
    data = (made / "metal" / "lib.dylib").read_bytes()
    at = dylib.code_signature.data_offset
    magic, _, count = struct.unpack_from(">3I", data, at)
    assert magic == 0xFADE0CC0
    blobs = [struct.unpack_from(">2I", data, at + 12 + 8 * i) for i in range(count)]
    directory = at + next(offset for kind, offset in blobs if kind == 0)
    magic, length, _, flags, hashes, _, _, slots, limit = struct.unpack_from(">9I", data, directory)
    size, kind, _, page = struct.unpack_from(">4B", data, directory + 36)
    assert magic == 0xFADE0C02 and flags & 0x2, "not ad-hoc signed"
    assert (size, kind) == (32, 2), "not SHA-256"
    assert limit == at and slots == -(-limit // (1 << page))
    for i in range(slots):
        stored = data[directory + hashes + 32 * i :][:32]
        assert stored == hashlib.sha256(data[i << page : min((i + 1) << page, limit)]).digest(), f"page {i}"


def embedded(dylib) -> dict[str, msl.Kernel]:
    symbol = next(s for s in dylib.exported_symbols if s.name == "___tvm_ffi__library_bin")
    section = next(s for s in dylib.sections if s.virtual_address <= symbol.value < s.virtual_address + s.size)
    content = bytes(section.content)[symbol.value - section.virtual_address :]
    return msl.kernels_of_tree(content[: 8 + struct.unpack_from("<Q", content)[0]])


def test_embedded_kernels_are_those_that_the_tests_execute(made, dylib, tmp_path):
    _, kernels = twin.compile_twin(made, tmp_path)
    inside = embedded(dylib)
    assert inside == kernels
    assert msl.check(list(inside.values())) == []
    assert {re.sub(r"\d*_kernel(_\d+)?$", "", name) for name in inside} >= {
        "attention_decode", "attention_prefill", "embed", "finish_step", "linear_q4f16_1_decode",
        "linear_q4f16_1_prefill", "rope_append", "rotary_tables",
    }  # fmt: skip
    for kernel in inside.values():
        assert kernel.signature and kernel.threadgroup_bytes <= 32768
    # TVM's Metal runtime binds every buffer at offset 0
    planned = next(tmp_path.glob("*-plan-memory.py")).read_text()
    offsets = re.findall(r"R\.memory\.alloc_tensor\(\w+, R\.prim_value\((\d+)\)|alloc_tensor\(\w+, (\d+)", planned)
    assert offsets and {a or b for a, b in offsets} == {"0"}


def test_manifest_and_same_bytes_again(made):
    entry = open_dist(made).manifest["targets"]["metal"]
    assert (entry["library"], entry["arch"]) == ("metal/lib.dylib", "apple-m1")
    before = (made / "metal" / "lib.dylib").read_bytes()
    compile_model(made, None, "metal:apple-m1", slots=0)
    assert (made / "metal" / "lib.dylib").read_bytes() == before


def test_xcode_compiles_the_kernels_where_it_is(tmp_path, monkeypatch):
    """A stand-in for xcrun that puts the last argument's content behind a mark into the file after -o."""
    tool = tmp_path / "xcrun"
    tool.write_text('#!/bin/sh\nfor last; do :; done\n[ "$last" = --version ] && exit\n'
                    'while [ "$1" != -o ]; do shift; done\n'
                    '(printf MTLB; cat "$last") > "$2"\n')  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    source = "kernel void k() {\n  threadgroup float x[4];\n}\n"
    assert finish.finish(source) == (b"MTLB" + source.encode(), "metallib")
    library = metal.library(metal.attributes(), "float16")
    module = tvm.IRModule({"softcap": library.build_softcap(8, 1, 2.0).with_attr("global_symbol", "softcap")})
    tree = msl.tree_of_module(tvm.compile(module, target=msl.twin()).mod)
    assert b"metallib" in tree and b"MTLB#include <metal_stdlib>" in tree
    tool.write_text("#!/bin/sh\necho 'k.metal:1: error: bad kernel' >&2\nexit 1\n")
    with pytest.raises(MlcrtError, match="bad kernel"):
        finish.finish(source)


def test_an_xcrun_without_xcode_is_as_good_as_none(tmp_path, monkeypatch):
    """What every Mac has: it is there and finds no Metal compiler."""
    tool = tmp_path / "xcrun"
    tool.write_text("#!/bin/sh\necho 'xcrun: error: unable to find utility \"metal\"' >&2\nexit 72\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert finish.finish("kernel void k() {\n}\n") == ("kernel void k() {\n}\n", "metal")


def test_a_kernel_beyond_the_hardware_is_refused():
    source = "kernel void big() {\n  threadgroup float4 a[2000];\n  threadgroup half b[385];\n}\n"
    with pytest.raises(MlcrtError, match="big needs 32770 bytes.*--target cpu"):
        finish.finish(source)


def test_architectures():
    assert parse_targets("metal,cpu:x86-64-v3") == [("metal", ""), ("cpu", "x86-64-v3")]
    with pytest.raises(UsageError, match="apple-m1"):
        parse_targets("metal:sm_90")


def test_without_a_mac_there_is_a_reason(made):
    if platform.system() == "Darwin":
        pytest.skip("this is a Mac")
    result = metal.probe()
    assert not result.available and "Mac with Apple silicon" in result.reason and "Linux" in result.reason
    with pytest.raises(MlcrtError, match="ARM64 macOS"):
        Engine(made, "metal")
    with pytest.raises(MlcrtError, match="Mac with Apple silicon"):
        metal.runtime()
    assert device.working_set_left() is None


@pytest.mark.parametrize(
    ("machine", "version", "expected"),
    [("arm64", "14.4.1", ""), ("arm64", "12.7", "macOS 12.7"), ("x86_64", "13.6", "Apple silicon")],
)
def test_probe_on_macs(machine, version, expected, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), machine))
    answers = {"machdep.cpu.brand_string": "Apple M2 Pro", "hw.memsize": "34359738368"}
    monkeypatch.setattr(device, "_sysctl", answers.__getitem__)
    result = device.probe()
    assert result.available == (not expected) and expected in result.reason
    if result.available:
        assert result.devices[0]["name"] == "Apple M2 Pro" and result.devices[0]["memory_bytes"] == 32 << 30


def test_greedy_steps_leave_their_tokens_on_the_device(monkeypatch):
    """Everything but TVM's Metal device itself, which only a Mac has: the CPU stands in for it."""
    monkeypatch.setattr(device, "probe", lambda: ProbeResult(True))
    monkeypatch.setattr(device, "load_tvm_runtime", lambda *which: None)
    monkeypatch.setattr(tvm, "metal", tvm.cpu)
    runtime = device.runtime()
    token = runtime.place(np.array([1], np.int32))

    def step() -> None:
        runtime.write(token, None, 3 * int(runtime.read(token)[0]))

    assert runtime.run_steps(step, 4, token) == [3, 9, 27, 81]
