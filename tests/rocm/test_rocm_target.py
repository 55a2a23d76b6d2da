"""The ROCm target itself: architectures, code object versions, bundles of several chips, what happens without a GPU."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
import tiny

from mlcrt.compile import compile_model
from mlcrt.dist import open_dist
from mlcrt.errors import UsageError
from mlcrt.targets import parse_targets, rocm
from mlcrt.targets.rocm import assembly
from mlcrt.targets.rocm.architecture import CHIPS, DEFAULT
from mlcrt.targets.rocm.bundle import MAGIC, bundle, unbundle

# EF_AMDGPU_MACH of LLVM's "User Guide for AMDGPU Backend"
MACHINES = {"gfx1030": 0x36, "gfx1100": 0x41, "gfx1151": 0x4A, "gfx1200": 0x48, "gfx90a": 0x3F, "gfx942": 0x4C}


def machine_and_version(code: bytes) -> tuple[int, int]:
    """(architecture number, code object version) of an AMDGPU ELF."""
    assert code[:4] == b"\x7fELF" and code[7] == 64  # ELFOSABI_AMDGPU_HSA
    (kind,) = struct.unpack_from("<H", code, 18)
    assert kind == 224  # EM_AMDGPU
    (flags,) = struct.unpack_from("<I", code, 48)
    return flags & 0xFF, code[8] + 2  # ELFABIVERSION_AMDGPU_HSA_V4 is 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.make_tiny("qwen3_norms", tmp_path_factory.mktemp("rocm") / "model")


@pytest.fixture(scope="module")
def library(model):
    root = model.parent
    dist = compile_model(model, "q4f32_1", "rocm:gfx1100,gfx1030@cov6", dist_root=root, slots=0)
    return dist, (dist / "rocm" / "lib.so").read_bytes()


def test_one_library_holds_every_architecture(library):
    code = library[1]
    codes = unbundle(code[code.index(MAGIC) :])
    assert {arch: machine_and_version(c) for arch, c in codes.items()} == {
        "gfx1100": (MACHINES["gfx1100"], 6), "gfx1030": (MACHINES["gfx1030"], 6),
    }  # fmt: skip
    assert open_dist(library[0]).manifest["targets"]["rocm"]["arch"] == "gfx1100+gfx1030@cov6"


def test_every_architecture_has_the_same_kernels_with_the_same_arguments():
    """One set of host calls serves them all, so what HIP reads of the notes must agree."""
    import rocm_kernels as K
    import tvm

    from mlcrt.targets.rocm.emulator.metadata import _kernel_notes

    arch = rocm.attributes("gfx1100,gfx1030,gfx90a,gfx1200")
    built = tvm.compile(K.gemv(64, 512), tvm.target.Target(arch.tvm_target()))
    (made,) = assembly.listings(built.mod)
    notes = [[(k["symbol_name"], k["args"]) for k in _kernel_notes(text)] for text in made.texts.values()]
    assert list(made.texts) == ["gfx1100", "gfx1030", "gfx90a", "gfx1200"]
    assert notes[0][0][0] == "gemv_kernel" and all(each == notes[0] for each in notes)
    assert assembly.listing(assembly._state["object"]) == made.texts


@pytest.mark.parametrize("arch", MACHINES)
def test_code_is_made_for_the_chip(arch):
    import rocm_kernels as K

    assert machine_and_version(assembly.compile_assembly(K.vector_add, arch).code) == (MACHINES[arch], 5)


@pytest.mark.parametrize("version", [4, 5, 6])
def test_code_object_versions(version):
    import rocm_kernels as K
    import tvm

    tvm.compile(K.vector_add, assembly.target("gfx1100", version))
    assert machine_and_version(assembly._state["object"])[1] == version


def test_attributes():
    assert [c.name for c in rocm.attributes("").chips] == list(DEFAULT)
    assert rocm.attributes("gfx1100+gfx1100").name == "gfx1100@cov5"
    assert rocm.attributes("gfx90a").lanes == 64
    assert rocm.attributes("gfx90a,gfx1030").lanes == 32  # kernels for 32 lanes run in waves of 64 as well
    assert rocm.compiler_missing() is None
    assert set(CHIPS) >= {"gfx1100", "gfx1101", "gfx1030", "gfx1151", "gfx1200", "gfx90a", "gfx942"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rocm", [("rocm", "")]),
        ("rocm:gfx1030,gfx1100,cpu", [("rocm", "gfx1030,gfx1100"), ("cpu", "")]),
        ("rocm:gfx1030,gfx1100@cov6", [("rocm", "gfx1030,gfx1100@cov6")]),
    ],
)
def test_target_lists(text, expected):
    assert parse_targets(text) == expected


@pytest.mark.parametrize("text", ["rocm:gfx1", "rocm:sm_80", "rocm:gfx1100@cov7", "rocm:gfx1100@5"])
def test_unknown_architectures_are_usage_errors(text):
    with pytest.raises(UsageError, match="choose from"):
        parse_targets(text)


def test_bundles():
    codes = {"gfx1030": b"a" * 5000, "gfx1100": b"b"}
    data = bundle(codes)
    assert unbundle(data) == codes
    (count,) = struct.unpack_from("<Q", data, len(MAGIC))
    start, size, length = struct.unpack_from("<QQQ", data, len(MAGIC) + 8)
    assert count == 3 and size == 0 and data[len(MAGIC) + 32 :][:length].startswith(b"host-")
    assert all(data.index(code) % 4096 == 0 for code in (b"aaaa", b"b" + bytes(10)))
    for bad in (b"", b"\x7fELF", MAGIC + struct.pack("<QQQQ", 1, 1 << 40, 5, 4) + b"hip-"):
        with pytest.raises((ValueError, struct.error)):
            unbundle(bad)


def test_without_a_gpu_the_engine_says_so(library):
    if rocm.probe().available:
        pytest.skip("this machine has an AMD GPU")
    assert "HIP runtime" in rocm.probe().reason
    # in a process of its own: which HIP library it takes, a process decides once, and other tests bring one
    code = "import sys; from mlcrt.runtime.engine import Engine; Engine(sys.argv[1], 'rocm')"
    result = subprocess.run([sys.executable, "-c", code, str(library[0])], capture_output=True, text=True)
    assert result.returncode == 1 and "MlcrtError: " in result.stderr and "HIP runtime" in result.stderr


def test_compiling_says_nothing_about_a_missing_rocm(model, tmp_path):
    """On a machine without ROCm, TVM warns about what is not needed; users are spared that. The report is a table."""
    command = [sys.executable, "-m", "mlcrt.cli", "compile", str(model), "--quantization", "q0f32"]
    command += ["--target", "rocm:gfx1100", "--output", str(tmp_path / "out"), "--report"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert result.stdout.strip() == str(tmp_path / "out")
    lines = result.stderr.splitlines()
    header = next(i for i, line in enumerate(lines) if "VGPRs" in line)
    names = f"{lines[header - 1]} {lines[header]}".split()
    assert {"kernel", "LDS", "spills", "scratch", "waves/SIMD", "128-bit", "weights"} <= set(names)
    rows = [line for line in lines if "linear_q0f32_decode" in line]
    assert rows and all("gfx1100" in row for row in rows)
