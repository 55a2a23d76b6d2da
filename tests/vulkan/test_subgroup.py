"""Subgroup operations at whatever subgroup size the device has, and integer dot products."""

from __future__ import annotations

import numpy as np
import pytest
from direct import THREADS, elementwise
from tvm import tirx

from mlcrt.targets.vulkan.codegen import compile_kernels


def call(dtype: str, name: str, *args):
    return tirx.call_pure_extern(dtype, name, *args)


@pytest.fixture
def groups(device):
    """values [THREADS] → [number of subgroups, subgroup size]."""
    if device.subgroup_size > THREADS:
        pytest.skip(f"subgroups of {device.subgroup_size} are larger than the workgroup")
    return lambda x: x.reshape(-1, device.subgroup_size)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32", "float16", "int64"])
def test_reductions(execute, groups, dtype):
    names = {"subgroup_add": np.sum, "subgroup_max": np.max, "subgroup_min": np.min}
    x = np.random.default_rng(1).integers(0 if dtype[0] == "u" else -50, 50, THREADS).astype(dtype)
    outputs = dict.fromkeys(names, dtype)
    module = elementwise({"x": dtype}, outputs, lambda v: {n: call(dtype, n, v["x"]) for n in names})
    got = execute(module, lowered=True, x=x, **dict.fromkeys(names, np.zeros_like(x)))
    for name, function in names.items():
        expected = np.broadcast_to(function(groups(x), axis=1, keepdims=True), groups(x).shape)
        np.testing.assert_array_equal(groups(got[name]), expected, err_msg=name)


def test_shuffles_votes_and_identity(execute, groups, device):
    size = device.subgroup_size
    x = np.random.default_rng(2).standard_normal(THREADS).astype(np.float32)
    lane = np.arange(THREADS) % size
    zero = tirx.const(0.0, "float32")

    def body(v):
        number = call("int32", "subgroup_lane")
        last = call("int32", "subgroup_size") - 1
        return {
            "reverse": call("float32", "subgroup_shuffle", v["x"], last - number),
            "swap": call("float32", "subgroup_shuffle_xor", v["x"], tirx.const(1, "int32")),
            "first": call("float32", "subgroup_broadcast", v["x"]),
            "any": tirx.Cast("float32", call("bool", "subgroup_any", tirx.GT(v["x"], tirx.const(1.5, "float32")))),
            "all": tirx.Cast("float32", call("bool", "subgroup_all", tirx.LT(v["x"], tirx.const(1.5, "float32")))),
            "who": tirx.Cast("float32", call("int32", "subgroup_id") * 1000 + number),
            "count": tirx.Select(tirx.GT(v["x"], zero), zero, tirx.Cast("float32", call("int32", "subgroup_count"))),
        }

    names = ("reverse", "swap", "first", "any", "all", "who", "count")
    module = elementwise({"x": "float32"}, dict.fromkeys(names, "float32"), body)
    got = {k: groups(v) for k, v in execute(module, lowered=True, x=x, **dict.fromkeys(names, x * 0)).items()}
    g = groups(x)
    np.testing.assert_array_equal(got["reverse"], g[:, ::-1])
    np.testing.assert_array_equal(got["swap"], g[:, np.arange(size) ^ 1])
    np.testing.assert_array_equal(got["first"], np.repeat(g[:, :1], size, axis=1))
    np.testing.assert_array_equal(got["any"], np.repeat((g > 1.5).any(1, keepdims=True), size, axis=1))
    np.testing.assert_array_equal(got["all"], np.repeat((g < 1.5).all(1, keepdims=True), size, axis=1))
    np.testing.assert_array_equal(got["who"], groups(np.arange(THREADS) // size * 1000 + lane))
    np.testing.assert_array_equal(got["count"], np.where(g > 0, 0, THREADS // size))


@pytest.mark.parametrize("kind", ["", "_up", "_down", "_xor"])
def test_warp_shuffles_stay_in_their_group(execute, device, kind):
    width, amount = 4, 3
    x = np.arange(THREADS, dtype=np.int32) * 7
    mask, number = tirx.const(0, "uint32"), tirx.const(amount, "int32")

    def body(v):
        size = tirx.const(width, "int32")
        return {"y": tirx.call_intrin("int32", f"tirx.tvm_warp_shuffle{kind}", mask, v["x"], number, size, size)}

    module = elementwise({"x": "int32"}, {"y": "int32"}, body)
    (shader,) = compile_kernels(module)
    assert shader.min_subgroup_size == width and shader.subgroup
    got = execute(module, lowered=True, x=x, y=x * 0)["y"]
    t = np.arange(THREADS)
    lane, base = t % width, t // width * width
    source = {
        "": base + amount, "_up": np.where(lane >= amount, t - amount, t),
        "_down": np.where(lane + amount < width, t + amount, t), "_xor": base + (lane ^ amount),
    }[kind]  # fmt: skip
    np.testing.assert_array_equal(got, x[source])


@pytest.mark.parametrize(("name", "dtype"), [("dot4_i8", "int8"), ("dot4_u8", "uint8")])
def test_integer_dot_product(execute, name, dtype):
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2**32, THREADS, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    c = rng.integers(-1000, 1000, THREADS).astype(np.int32)
    module = elementwise(
        {"a": "uint32", "b": "uint32", "c": "int32"},
        {"y": "int32"},
        lambda v: {"y": call("int32", name, v["a"], v["b"], v["c"])},
    )
    got = execute(module, lowered=True, a=a, b=b, c=c, y=c * 0)["y"]
    bytes_a, bytes_b = (v.view(dtype).reshape(-1, 4).astype(np.int32) for v in (a, b))
    np.testing.assert_array_equal(got, (bytes_a * bytes_b).sum(1) + c)


def test_dp4a_of_vectors(execute):
    rng = np.random.default_rng(4)
    a, b = (rng.integers(-128, 128, THREADS * 4).astype(np.int8) for _ in range(2))

    def body(v):
        total = tirx.call_intrin("int32", "tirx.dp4a", v["a"], v["b"], tirx.const(5, "int32"))
        return {"y": tirx.reinterpret("int8x4", total)}

    got = execute(elementwise({"a": "int8", "b": "int8"}, {"y": "int8"}, body, 4), lowered=True, a=a, b=b, y=a * 0)["y"]
    wide = a.reshape(-1, 4).astype(np.int32) * b.reshape(-1, 4)
    np.testing.assert_array_equal(got.view(np.int32), wide.sum(1) + 5)
