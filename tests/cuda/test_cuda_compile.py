"""Compiling for CUDA without a GPU: the library holds machine code and nothing that a load would compile."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from mlcrt.compile import compile_model
from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.engine import Engine
from mlcrt.targets import ProbeResult, cuda, parse_targets
from mlcrt.targets.cuda import fatbin

PTX, ELF = 1, 2
FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)


def test_library_holds_machine_code_and_no_source(library):
    code = library[1].read_bytes()
    assert FATBIN_MAGIC in code
    assert b"__global__" not in code and b"#include" not in code
    assert entries(code) == {(ELF, 80), (ELF, 90), (PTX, 90)}  # PTX of the newest, for later architectures


def entries(code: bytes) -> set[tuple[int, int]]:
    """(kind, architecture) of what a fat binary holds; the layout is that of CUDA's fatbinary_section.h."""
    at = code.index(FATBIN_MAGIC)
    header, size = struct.unpack_from("<HQ", code, at + 6)
    end, at, found = at + header + size, at + header, set()
    while at < end:
        kind, entry_header, entry_size = struct.unpack_from("<H2xIQ", code, at)
        found.add((kind, struct.unpack_from("<I", code, at + 28)[0]))
        at += entry_header + entry_size
    return found


def launch_tags(dist: Path) -> dict[str, list[str]]:
    """Kernel → launch tags, as the compiler wrote them into the library."""
    found, code = {}, (dist / "cuda" / "lib.so").read_bytes()
    start = code.index(text(b"fatbin")) + len(text(b"fatbin"))
    reader = fatbin._Reader(code[start:])
    for _ in range(reader.u64()):
        name = reader.text()
        reader.text()
        reader.vector(4)
        found[name.decode()] = [reader.text().decode() for _ in range(reader.u64())]
        reader.vector(4)
    return found


def test_kernels_start_early_only_where_every_architecture_can_wait(library, tmp_path, monkeypatch):
    early = fatbin.OVERLAP_TAG.decode()
    assert not any(early in tags for tags in launch_tags(library[0]).values())  # sm_80 cannot
    monkeypatch.setattr(fatbin, "compile_source", lambda source, sms: b"")  # the tags are ours, the code is not wanted
    model = tiny.make_tiny("mixtral", tmp_path / "model")
    tags = launch_tags(compile_model(model, "q4f32_1", "cuda:sm_90", dist_root=tmp_path, slots=2))
    assert {name for name in tags if early not in tags[name]} == {"last_row_kernel"}  # a stock kernel that never waits


def test_the_tag_of_dynamic_memory_stays_last():
    """TVM's runtime demands that of a kernel's launch tags."""
    dynamic = b"tirx.use_dyn_shared_memory"
    function = text(b"k") + text(b"k") + struct.pack("<Q", 0)
    function += struct.pack("<Q", 2) + text(b"blockIdx.x") + text(dynamic) + struct.pack("<Q", 0)
    source = text(b"__global__ void k(int* x) { mlcrt_overlap(); }")
    made = fatbin._compile_payload(text(b"cuda") + struct.pack("<Q", 1) + function + source, lambda _: b"code")
    assert 0 < made.index(fatbin.OVERLAP_TAG) < made.index(dynamic)


def test_attention_of_one_token_is_one_kernel_and_products_of_many_use_tensor_cores(library):
    names = set(launch_tags(library[0]))
    assert "rope_attention_kernel" in names and not any(n.startswith("attention_decode") for n in names)
    prefill = {n for n in names if n.startswith("linear_q4f16_1_prefill")}
    kinds = {n.removesuffix("_kernel") for n in prefill if n.endswith("_kernel")}
    assert kinds
    for kind in kinds:  # prepare the activations, then one of two products
        assert {f"{kind}_kernel_1", f"{kind}_kernel_2"} <= prefill


def test_experts_are_two_kernels_for_one_token_and_six_for_many(library):
    """One: gate and up, down. Many: choose, sort, prepare, the two products, add up."""
    kernels = sorted(name for name in launch_tags(library[0]) if name.startswith("moe_"))
    assert kernels == [
        "moe_decode_kernel", "moe_decode_kernel_1", "moe_prefill_kernel",
        *(f"moe_prefill_kernel_{i}" for i in range(1, 6)),
    ]  # fmt: skip


def test_rows_to_gather_are_not_where_copies_arrive(library):
    """TVM does not see what asynchronous copies write, and gave the list of rows the place of their target."""
    source = (library[0].parent / "kernels.cu").read_bytes()
    product = re.search(rb"moe_prefill_kernel_3\([^;{]*\) \{(.*?)\n\}", source, re.S)[1]
    assert b"mlcrt_copy16" in product and b"extern __shared__" in product
    assert re.search(rb"\n  __shared__ [^;]*\bint \w+\[128\];", product)


def test_loads_of_what_other_kernels_write_stay_behind_the_wait(monkeypatch):
    monkeypatch.setattr(fatbin.nvrtc, "available", lambda: True)
    monkeypatch.setattr(fatbin.nvrtc, "compile_fatbin", lambda source, numbers: source)
    weights = b"uint* __restrict__ w_codes_ptr, half* __restrict__ w_scales_ptr)"
    arguments = b"(float* __restrict__ x, int* __restrict__ t, half* __restrict__ h, " + weights
    kept = b"(float* x, int* t, half* h, " + weights
    assert fatbin.compile_source(arguments, ("sm_90",)) == kept


def generated(kernels, arch, **functions) -> tuple[str, dict[str, str]]:
    """(CUDA source of these PrimFuncs, kernel → its body)"""
    import tvm

    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    with tvm.transform.PassContext(opt_level=3, disabled_pass=list(kernels.skipped_passes)):
        source = tvm.compile(module, target=tvm.target.Target(arch.tvm_target())).mod.imports[0].inspect_source()
    found = [b for b in source.split("__global__")[1:] if "{" in b.split(";")[0]]
    return source, {b.split("(")[1].split()[-1]: b for b in found}


@pytest.mark.parametrize("window", [None, 40])
def test_batched_steps_use_tensor_cores(window):
    from mlcrt.kernels.records import Attention, Linear
    from mlcrt.quant.scheme import SCHEMES

    arch = cuda.attributes("sm_90")
    kernels = cuda.library(arch, "float16")
    linear = Linear(SCHEMES["q4f16_1"], 64, 96, None, 1e-5, gate="silu", alike=True)
    attention = Attention(4, 1, 32, None, "float16", 0.2, window, paged=True, alike=window is None)
    built = {"linear": kernels.build_alike(linear, "linear"), "attention": kernels.build_attention(attention, "attend")}
    bodies = generated(kernels, arch, **built)[1]
    used = {name for name, body in bodies.items() if "mlcrt_mma(" in body}
    assert used == {*(f"linear_kernel_{i}" for i in (1, 2, 3)), "attention_kernel"}  # up to 8, 16 and 32 tokens at once
    assert all("mlcrt_overlap()" in body for body in bodies.values())


def test_hopper_alone_multiplies_by_warpgroups():
    """Machine code for sm_90a and no PTX, which nothing else would run; three kinds of block where few are needed."""
    from mlcrt.kernels.records import Linear
    from mlcrt.quant.scheme import SCHEMES

    arch = cuda.attributes("sm_90a")
    kernels = cuda.library(arch, "float16")
    linear = Linear(SCHEMES["q4f16_1"], 256, 256, None, 1e-5, gate="silu")
    source, bodies = generated(kernels, arch, linear=kernels.build_linear(linear, "linear"))
    products = {name: body for name, body in bodies.items() if "mlcrt_warpgroup_mma" in body}
    assert set(products) == {"linear_kernel_1", "linear_kernel_2", "linear_kernel_3"}
    assert all("mlcrt_overlap()" in body for body in bodies.values())
    steady = kernels.build_linear(replace(linear, steady=True), "linear")  # one order, however many tokens there are
    assert sum("mlcrt_warpgroup_mma" in body for body in generated(kernels, arch, linear=steady)[1].values()) == 1
    kernels.routed = True  # a model with experts
    assert "mlcrt_warpgroup_mma" not in generated(kernels, arch, linear=kernels.build_linear(linear, "linear"))[0]
    if cuda.compiler_missing() and os.environ.get("CI") != "true":
        pytest.skip(cuda.compiler_missing())
    code = fatbin.compile_source(source.encode(), arch.sms)
    assert entries(code) == {(ELF, 90)}


def test_tensor_cores_find_their_rows_aligned(monkeypatch):
    """The 128-byte exchange of 16-byte units goes by address bits 7 to 9."""
    monkeypatch.setattr(fatbin.nvrtc, "available", lambda: True)
    monkeypatch.setattr(fatbin.nvrtc, "compile_fatbin", lambda source, numbers: source)
    given = b"  extern __shared__ __align__(64) uchar memory[];"
    assert fatbin.compile_source(given, ("sm_90a",)) == given.replace(b"64", b"1024")


def gpus(monkeypatch, *archs: str) -> None:
    devices = [{"id": f"cuda:{i}", "arch": arch} for i, arch in enumerate(archs)]
    monkeypatch.setattr(cuda.device, "probe", lambda: ProbeResult(bool(devices), devices))


@pytest.mark.parametrize(
    ("archs", "expected"),
    [
        ([], "sm_80+sm_86+sm_89+sm_90"),
        (["sm_90", "sm_90"], "sm_90a"),
        (["sm_90", "sm_86"], "sm_86+sm_90"),
        (["sm_199"], "sm_80+sm_86+sm_89+sm_90"),  # PTX of the newest runs there
    ],
)
def test_without_a_name_it_is_this_machines_gpus(monkeypatch, archs, expected):
    gpus(monkeypatch, *archs)
    assert cuda.attributes().name == expected


@pytest.mark.parametrize(
    ("gpu", "runs"),
    [
        ("sm_75", {"sm_75+sm_80"}),
        ("sm_89", {"sm_75+sm_80", "sm_80+sm_90", "sm_89"}),  # machine code of the same major number, no older PTX
        ("sm_90", {"sm_75+sm_80", "sm_80+sm_90", "sm_89", "sm_90a"}),  # PTX of sm_89
        ("sm_120", {"sm_75+sm_80", "sm_80+sm_90", "sm_89"}),
    ],
)
def test_which_library_runs_on_which_gpu(monkeypatch, gpu, runs):
    gpus(monkeypatch, gpu)
    libraries = ["sm_75+sm_80", "sm_80+sm_90", "sm_89", "sm_90a"]
    missing = {name: cuda.missing_features(list(cuda.attributes(name).features)) for name in libraries}
    assert {name for name in libraries if not missing[name]} == runs
    for name in set(libraries) - runs:
        assert missing[name] == [f"a GPU that runs {name.replace('+', ' or ')} (cuda:0 is {gpu})"]


def test_the_best_of_several_libraries_is_the_one_made_for_the_newest():
    order = ["sm_75+sm_90", "sm_80+sm_90", "sm_90", "sm_90a"]
    ranks = [cuda.rank(list(cuda.attributes(name).features)) for name in order]
    assert ranks == sorted(set(ranks)) and cuda.rank([]) < ranks[0]  # libraries of older versions name none


@pytest.mark.parametrize(("kernel", "expected"), [(b"a", True), (b"b", False), (b"ab", True)])
def test_which_kernels_wait_for_the_one_in_front(kernel, expected):
    source = b"""__global__ void a(int* x);
__global__ void b(int* x);
__global__ void __launch_bounds__(64) a(int* x) { mlcrt_overlap(); }
__global__ void b(int* x) { x[0] = 1; }
__global__ void ab(int* x) { if (x) { mlcrt_overlap(); } }
"""
    assert fatbin.overlaps(source, kernel) is expected


def test_before_ampere_there_are_no_tensor_core_kernels():
    from mlcrt.kernels.mma.library import Library

    assert isinstance(cuda.library(cuda.attributes("sm_80"), "float16"), Library)
    assert not isinstance(cuda.library(cuda.attributes("sm_75,sm_80"), "float16"), Library)


def test_manifest_names_the_architectures(library):
    entry = open_dist(library[0]).manifest["targets"]["cuda"]
    assert entry["arch"] == "sm_80+sm_90" and entry["features"] == ["sm_80", "sm_90"]
    assert entry["kv_block"] == 16


def test_without_a_gpu_the_engine_says_so(library):
    if cuda.probe().available:
        pytest.skip("this machine has a GPU")
    with pytest.raises(MlcrtError, match="cuda"):
        Engine(library[0], "cuda")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda:sm_80,sm_90,cpu", [("cuda", "sm_80,sm_90"), ("cpu", "")]),
        ("cpu:x86-64-v3,cuda", [("cpu", "x86-64-v3"), ("cuda", "")]),
        (" cpu ", [("cpu", "")]),
    ],
)
def test_target_lists(text, expected):
    assert parse_targets(text) == expected


@pytest.mark.parametrize("text", ["cuda:sm_1", "cuda:sm_80,sm_90a", "cuda:hopper", "gpu", "", "cpu,sm_90"])
def test_unknown_targets_are_usage_errors(text):
    with pytest.raises(UsageError):
        parse_targets(text)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def payload(form: bytes, code: bytes) -> bytes:
    function = text(b"k") + text(b"k") + struct.pack("<Q", 2) + b"\x03\x40\x01\x00" * 2
    function += struct.pack("<Q", 1) + text(b"blockIdx.x") + struct.pack("<Q2i", 2, 0, 0)
    return text(form) + struct.pack("<Q", 1) + function + text(code)


def tree(code: bytes, form: bytes = b"cuda") -> bytes:
    """A library importing a CUDA module and another one, serialised by the layout in fatbin.py."""
    rows, children = [0, 2, 2, 2], [1, 2]
    body = struct.pack("<Q4Q", 4, *rows) + struct.pack("<Q2Q", 2, *children)
    body += text(b"_lib") + text(b"cuda") + text(payload(form, code)) + text(b"other") + text(b"left alone")
    return struct.pack("<Q", len(body)) + body


def test_replacing_source_keeps_everything_else():
    seen = []
    result = fatbin.replace_cuda_source(tree(b"source"), lambda code: seen.append(code) or b"longer machine code")
    assert seen == [b"source"]
    assert result == tree(b"longer machine code", b"fatbin")


def test_machine_code_is_not_compiled_again():
    def never(_code: bytes) -> bytes:
        raise AssertionError("compiled twice")

    assert fatbin.replace_cuda_source(tree(b"binary", b"fatbin"), never) == tree(b"binary", b"fatbin")


def test_compiler_errors_are_one_sentence():
    if cuda.compiler_missing() and os.environ.get("CI") != "true":
        pytest.skip(cuda.compiler_missing())
    with pytest.raises(MlcrtError, match="(nvcc|nvrtc) failed") as error:
        fatbin.compile_source(b"this is not CUDA", ("sm_90",))
    assert "\n" not in str(error.value)


def test_a_missing_cuda_runtime_is_one_sentence(monkeypatch):
    from mlcrt.targets.cuda import device

    def missing(name, *_args, **_kwargs):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    result = device.probe()
    assert not result.available and "driver" in result.reason
    with pytest.raises(MlcrtError, match="^no NVIDIA driver .* choose another --device$"):
        device.CudaRuntime()
    monkeypatch.setattr(device, "probe", lambda: ProbeResult(True, [{"id": "cuda:0"}]))
    with pytest.raises(MlcrtError, match=r"libcudart\.so\.13.*pip install"):
        device.CudaRuntime()
