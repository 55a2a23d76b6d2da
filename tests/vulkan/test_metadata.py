"""What a module declares is what it needs: capabilities, arguments, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from device import validate
from direct import THREADS, elementwise, strided_copy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import tirx

from mlcrt.targets.vulkan.codegen import compile_kernels
from mlcrt.targets.vulkan.codegen.metadata import FEATURES_OF_CAPABILITY
from mlcrt.targets.vulkan.codegen.spirv import CAPABILITIES

BASE = {"bufferDeviceAddress", "shaderInt64", "property:shaderSignedZeroInfNanPreserveFloat32"}
STORAGE16, STORAGE8 = "storageBuffer16BitAccess", "storageBuffer8BitAccess"
HALF = "property:shaderSignedZeroInfNanPreserveFloat16"


def f32(value):
    return tirx.Cast("float32", value)


CASES = {  # what is done → (input type, output type, expression, requirements beyond the base)
    "float32 only": ("float32", "float32", lambda x: tirx.Add(x, x), set()),
    "float16 is only stored": ("float16", "float32", f32, {STORAGE16}),
    "float16 is computed": ("float16", "float16", lambda x: tirx.Add(x, x), {STORAGE16, "shaderFloat16", HALF}),
    "float16 function in float32": ("float16", "float16", lambda x: tirx.call_intrin("float16", "tirx.exp", x),
                                    {STORAGE16}),
    "int8 is only stored": ("int8", "float32", f32, {STORAGE8}),
    "int8 is computed": ("int8", "int8", lambda x: tirx.Add(x, x), {STORAGE8, "shaderInt8"}),
    "int8 passes through": ("int32", "int32", lambda x: tirx.Cast("int32", tirx.Cast("int8", x)), {"shaderInt8"}),
    "bool": ("bool", "bool", lambda x: tirx.Not(x), {STORAGE8}),
    "bfloat16": ("bfloat16", "float32", f32, {STORAGE16}),
    "float64": ("float64", "float64", lambda x: tirx.Add(x, x),
                {"shaderFloat64", "property:shaderSignedZeroInfNanPreserveFloat64"}),
    "dot product": ("int32", "int32", lambda x: tirx.call_pure_extern("int32", "dot4_i8", x, x, x),
                    {"shaderIntegerDotProduct"}),
    "subgroup": ("float32", "float32", lambda x: tirx.call_pure_extern("float32", "subgroup_add", x),
                 {"subgroup:basic", "subgroup:arithmetic"}),
    "subgroup of float16": ("float16", "float16", lambda x: tirx.call_pure_extern("float16", "subgroup_max", x),
                            {"subgroup:basic", "subgroup:arithmetic", "shaderSubgroupExtendedTypes", STORAGE16,
                             "shaderFloat16", HALF}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_requirements_are_exact(name):
    source, target, body, extra = CASES[name]
    (shader,) = compile_kernels(elementwise({"x": source}, {"y": target}, lambda v: {"y": body(v["x"])}))
    assert set(shader.requirements) == BASE | extra
    assert shader.subgroup == any(r.startswith("subgroup:") for r in extra)
    validate(shader)


def test_every_capability_has_its_features():
    assert set(CAPABILITIES) == set(FEATURES_OF_CAPABILITY)


def test_arguments_in_call_order():
    (shader,) = compile_kernels(elementwise({"b": "int8", "a": "float32"}, {"y": "float32"}, lambda v: {"y": v["a"]}))
    assert [(a.name, a.dtype, a.offset) for a in shader.arguments] == [
        ("b_ptr", "pointer", 0), ("a_ptr", "pointer", 8), ("y_ptr", "pointer", 16)]  # fmt: skip
    assert shader.push_constant_bytes == 24 and shader.workgroup_size == (64, 1, 1) and shader.shared_bytes == 0


def instructions(module) -> list[list[int]]:
    """[opcode, operands …] of the one kernel of a module."""
    (shader,) = compile_kernels(module)
    words, out, at = np.frombuffer(shader.code, np.uint32).tolist(), [], 5
    while at < len(words):
        out.append([words[at] & 0xFFFF, *words[at + 1 : at + (words[at] >> 16)]])
        at += words[at] >> 16
    return out


def count_stores(module) -> int:
    return sum(i[0] == 62 for i in instructions(module))


def test_memory_is_decorated_by_its_use():
    """Only read: NonWritable. Read and written in a kernel with barriers: Coherent, and the barrier orders it."""

    def decorations(module) -> set[int]:
        return {i[3] for i in instructions(module) if i[0] == 72} - {35}

    def barriers(module) -> list[int]:
        constants = {i[2]: i[3] for i in instructions(module) if i[0] == 43}
        return [constants[i[3]] for i in instructions(module) if i[0] == 224]

    assert decorations(strided_copy("float32", 4, 4, 0, 256, True)) == {24}
    assert barriers(strided_copy("float32", 4, 4, 0, 256, True)) == [0x108]
    exchange = strided_copy("float32", 4, 4, 0, 256, True, in_place=True)
    assert decorations(exchange) == {23}
    assert barriers(exchange) == [0x148]


def test_pointers_with_a_byte_offset_are_not_taken_for_aligned(execute):
    x = np.arange(512).astype(np.float32)
    module = strided_copy("float32", 4, 4, 0, 256, False, byte_offset=20)
    assert count_stores(module) == 1 and sum(i[0] == 61 for i in instructions(module)) > 4
    np.testing.assert_array_equal(execute(module, lowered=True, x=x, y=x[:256] * 0)["y"], x[5:261])


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 4), ("float16", 8), ("int8", 16), ("int64", 2)])
def test_sixteen_bytes_are_one_access(dtype, lanes):
    assert count_stores(elementwise({"x": dtype}, {"y": dtype}, lambda v: {"y": v["x"]}, lanes)) == 1


@pytest.mark.parametrize(
    ("dtype", "lanes", "stride", "offset", "expected"),
    [("float32", 4, 4, 4, 1), ("float32", 4, 4, 2, 2), ("float32", 4, 5, 0, 4), ("float32", 4, 4, 1, 4),
     ("float16", 8, 8, 2, 4), ("float16", 8, 9, 0, 8), ("int8", 16, 20, 0, 4), ("float32", 8, 8, 0, 2),
     ("float32", 6, 8, 0, 2)],
)  # fmt: skip
def test_accesses_are_no_wider_than_they_are_aligned(dtype, lanes, stride, offset, expected):
    """lavapipe would forgive a misaligned access; a GPU does not."""
    assert count_stores(strided_copy(dtype, lanes, stride, offset, 4096, False)) == expected


DTYPES = ["int8", "float16", "int32", "int64"]


def test_vector_accesses_at_any_offset_and_stride(execute):
    """x[stride * thread + offset + (0 .. lanes)], read and written: as wide as aligned, never wrong."""
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(DTYPES), st.integers(2, 16), st.integers(0, 20), st.integers(0, 9), st.booleans())
    def check(dtype, lanes, gap, offset, shared):
        stride = lanes + gap
        size = stride * THREADS + offset
        x = np.arange(size).astype(dtype)
        got = execute(strided_copy(dtype, lanes, stride, offset, size, shared), lowered=True, x=x, y=x * 0)["y"]
        touched = (np.arange(THREADS)[:, None] * stride + offset + np.arange(lanes)).reshape(-1)
        expected = np.zeros_like(x)
        expected[touched] = x[touched]
        np.testing.assert_array_equal(got, expected)

    check()
