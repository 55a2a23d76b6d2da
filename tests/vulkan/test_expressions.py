"""Random expressions of every type and operator, equal to NumPy: bit for bit for integers and for exact float ops."""

from __future__ import annotations

import numpy as np
import pytest
from direct import THREADS, elementwise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import tirx

INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def edge_values(dtype: str, seed: int) -> np.ndarray:
    """THREADS values: extremes, small numbers of both signs, random bits."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        values = np.concatenate([[0, -0.0, 1, -1, 0.5, -2.5, 100], rng.standard_normal(THREADS) * 8])
        return rng.permutation(values[:THREADS]).astype(dtype)
    info = np.iinfo(dtype)
    small = np.arange(-9, 10) if info.min < 0 else np.arange(20)
    edges = [info.min, info.max, info.max - 1, info.max // 2]
    raw = rng.integers(info.min, info.max, THREADS, dtype=dtype, endpoint=True)
    return rng.permutation(np.concatenate([np.array(edges, dtype), small.astype(dtype), raw])[:THREADS])


# ---- an expression is a tree of tuples; two interpreters give it a meaning

UNARY = ("not", "neg")
BINARY = ("add", "sub", "mul", "min", "max", "div", "mod", "floordiv", "floormod", "and", "or", "xor", "shl", "shr")
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
leaf = st.tuples(st.just("in"), st.integers(0, 2)) | st.tuples(st.just("const"), st.integers(-9, 9))
integer_tree = st.recursive(
    leaf,
    lambda t: st.tuples(st.sampled_from(UNARY), t)
    | st.tuples(st.sampled_from(BINARY), t, t)
    | st.tuples(st.just("select"), st.sampled_from(COMPARE), t, t, t, t)
    | st.tuples(st.just("if"), st.sampled_from(COMPARE), t, t, t, t),
    max_leaves=10,
)
NODES = {
    "add": tirx.Add, "sub": tirx.Sub, "mul": tirx.Mul, "min": tirx.Min, "max": tirx.Max, "div": tirx.Div,
    "mod": tirx.Mod, "floordiv": tirx.FloorDiv, "floormod": tirx.FloorMod, "lt": tirx.LT, "le": tirx.LE,
    "gt": tirx.GT, "ge": tirx.GE, "eq": tirx.EQ, "ne": tirx.NE, "and": tirx.BitwiseAnd, "or": tirx.BitwiseOr,
    "xor": tirx.BitwiseXor, "shl": tirx.LShift, "shr": tirx.RShift,
}  # fmt: skip
NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "floordiv": np.floor_divide, "floormod": np.mod, "mod": np.fmod, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift,
}  # fmt: skip


def wrapped(dtype: str, value: int) -> int:
    return int(np.array(value).astype(dtype))


def as_tir(tree, dtype: str, inputs: list):
    """Divisors that are 0 or -1 become 3; shift counts are taken modulo the width."""

    def const(value):
        return tirx.const(wrapped(dtype, value), dtype)

    def go(t):
        kind = t[0]
        if kind == "in":
            return inputs[t[1]]
        if kind == "const":
            return const(t[1])
        if kind == "not":
            return tirx.bitwise_not(go(t[1]))
        if kind == "neg":
            return tirx.Sub(const(0), go(t[1]))
        if kind in ("select", "if"):
            condition = NODES[t[1]](go(t[2]), go(t[3]))
            if kind == "select":
                return tirx.Select(condition, go(t[4]), go(t[5]))
            return tirx.if_then_else(condition, go(t[4]), go(t[5]))
        a, b = go(t[1]), go(t[2])
        if kind in ("div", "mod", "floordiv", "floormod"):
            bad = tirx.Or(tirx.EQ(b, const(0)), tirx.EQ(b, const(-1)))
            b = tirx.Select(bad, const(3), b)
        if kind in ("shl", "shr"):
            b = tirx.BitwiseAnd(b, const(np.dtype(dtype).itemsize * 8 - 1))
        return NODES[kind](a, b)

    return go(tree)


def as_numpy(tree, dtype: str, inputs: list[np.ndarray]) -> np.ndarray:
    def const(value):
        return np.full(THREADS, wrapped(dtype, value), dtype)

    def go(t):
        kind = t[0]
        if kind == "in":
            return inputs[t[1]]
        if kind == "const":
            return const(t[1])
        if kind == "not":
            return ~go(t[1])
        if kind == "neg":
            return (const(0) - go(t[1])).astype(dtype)
        if kind in ("select", "if"):
            return np.where(NUMPY[t[1]](go(t[2]), go(t[3])), go(t[4]), go(t[5]))
        a, b = go(t[1]), go(t[2])
        if kind in ("div", "mod", "floordiv", "floormod"):
            b = np.where((b == 0) | (b == const(-1)), const(3), b)
        if kind in ("shl", "shr"):
            b = b & const(np.dtype(dtype).itemsize * 8 - 1)
        if kind == "div":  # towards zero
            return ((a - np.fmod(a, b)) // b).astype(dtype)
        return NUMPY[kind](a, b).astype(dtype)

    with np.errstate(all="ignore"):
        return go(tree)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_expressions(execute, dtype):
    inputs = [edge_values(dtype, seed) for seed in (1, 2, 3)]

    @settings(max_examples=12, **RELAXED)
    @given(st.lists(integer_tree, min_size=10, max_size=10))
    def check(trees):
        outputs = {f"y{i}": dtype for i in range(len(trees))}
        module = elementwise(
            {f"x{i}": dtype for i in range(3)},
            outputs,
            lambda x: {f"y{i}": as_tir(t, dtype, list(x.values())) for i, t in enumerate(trees)},
        )
        buffers = {f"x{i}": v for i, v in enumerate(inputs)}
        got = execute(module, lowered=True, **buffers, **{n: np.zeros(THREADS, dtype) for n in outputs})
        for i, tree in enumerate(trees):
            np.testing.assert_array_equal(got[f"y{i}"], as_numpy(tree, dtype, inputs), err_msg=str(tree))

    check()


def binary_case(execute, dtype: str, operators: dict, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Every operator of a table on the same operands."""
    module = elementwise(
        {"x": dtype, "y": dtype},
        dict.fromkeys(operators, dtype),
        lambda v: {name: node(v["x"], v["y"]) for name, node in operators.items()},
    )
    return execute(module, lowered=True, x=x, y=y, **{name: np.zeros(THREADS, dtype) for name in operators})


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_operators(execute, dtype):
    """Sums, products, minima are correctly rounded; quotients within 2.5 ulp (Vulkan's bound)."""
    x, y = edge_values(dtype, 4), edge_values(dtype, 5)
    y = np.where(y == 0, np.array(3, dtype), y).astype(dtype)
    got = binary_case(execute, dtype, {k: NODES[k] for k in ("add", "sub", "mul", "min", "max")}, x, y)
    for name in ("add", "sub", "mul", "min", "max"):
        np.testing.assert_array_equal(got[name], NUMPY[name](x, y), err_msg=name)
    got = binary_case(execute, dtype, {k: NODES[k] for k in ("div", "floordiv", "floormod")}, x, y)
    np.testing.assert_array_max_ulp(got["div"], x / y, maxulp=3)
    quotient = np.floor(x / y)
    np.testing.assert_array_equal(got["floordiv"], quotient)
    tolerance = np.finfo(dtype).eps * 4
    np.testing.assert_allclose(got["floormod"], x - quotient * y, rtol=tolerance, atol=tolerance * 256)


CONVERTIBLE = [*INTEGERS, *FLOATS, "bool"]


@pytest.mark.parametrize("source", CONVERTIBLE)
def test_casts(execute, source):
    """Between all types. Floats stay in the range of the target; narrower integers wrap."""
    if source == "bool":
        x = edge_values("int8", 6) > 0
    elif source.startswith("float"):
        x = np.random.default_rng(6).uniform(0, 100, THREADS).astype(source)
    else:
        x = edge_values(source, 6)
    targets = [t for t in CONVERTIBLE if t != source]
    if source in ("int64", "uint64", "uint32", "int32"):
        x = np.where(np.arange(THREADS) % 2, x, x % 2000)  # so that float16 sees finite values too
        x = x.astype(source)
    module = elementwise({"x": source}, {t: t for t in targets}, lambda v: {t: tirx.Cast(t, v["x"]) for t in targets})
    got = execute(module, lowered=True, x=x, **{t: np.zeros(THREADS, t) for t in targets})
    with np.errstate(all="ignore"):
        for target in targets:
            expected = x.astype(target)
            if target == "float16":  # no promise beyond its range
                inside = np.isfinite(expected)
                np.testing.assert_array_equal(got[target][inside], expected[inside])
            else:
                np.testing.assert_array_equal(got[target], expected, err_msg=target)


def test_bfloat16_rounds_to_nearest_even(execute):
    words = np.random.default_rng(8).integers(0, 2**32, THREADS, dtype=np.uint64).astype(np.uint32)
    words[:8] = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x80000000]
    x = words.view(np.float32)
    up = (words + (0x7FFF + ((words >> 16) & 1))) >> 16
    expected = np.where(np.isnan(x), (words | 0x400000) >> 16, up).astype(np.uint16)

    def body(v):
        narrow = tirx.Cast("bfloat16", v["x"])
        twice = tirx.Add(narrow, narrow)
        return {"y": narrow, "z": tirx.Cast("float32", narrow), "w": tirx.Cast("float32", twice)}

    module = elementwise({"x": "float32"}, {"y": "bfloat16", "z": "float32", "w": "float32"}, body)
    zeros = np.zeros(THREADS, np.float32)
    got = execute(module, lowered=True, x=x, y=np.zeros(THREADS, np.uint16), z=zeros, w=zeros)
    np.testing.assert_array_equal(got["y"], expected)
    wide = (expected.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(got["z"], wide)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got["w"], wide + wide)


@pytest.mark.parametrize(
    ("source", "target"),
    [("float32", "uint32"), ("uint32", "float32"), ("float16", "uint16"), ("int64", "float64"), ("int32", "float32")],
)
def test_reinterpret(execute, source, target):
    x = np.frombuffer(np.random.default_rng(9).bytes(THREADS * np.dtype(source).itemsize), source).copy()
    module = elementwise({"x": source}, {"y": target}, lambda v: {"y": tirx.reinterpret(target, v["x"])})
    got = execute(module, lowered=True, x=x, y=np.zeros(THREADS, target))["y"]
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), x.view(f"u{x.itemsize}"))


@pytest.mark.parametrize(("source", "lanes", "target"), [
    ("uint32", 4, "float16x8"), ("uint32", 4, "int8x16"), ("uint8", 16, "uint32x4"), ("uint8", 8, "uint64"),
    ("int64", 2, "uint16x8"), ("float16", 2, "uint32"),
])  # fmt: skip
def test_reinterpret_changes_the_number_of_lanes(execute, source, lanes, target):
    scalar, _, to_lanes = target.partition("x")
    x = np.frombuffer(np.random.default_rng(9).bytes(THREADS * lanes * np.dtype(source).itemsize), source).copy()
    count = int(to_lanes or 1)

    # both sides have as many bytes; the kernel's buffers differ in element count, so the output is a view of bytes
    def body(v):
        return {"y": tirx.reinterpret(f"{source}x{lanes}", tirx.reinterpret(target, v["x"]))}

    module = elementwise({"x": source}, {"y": source}, body, lanes)
    got = execute(module, lowered=True, x=x, y=np.zeros_like(x))["y"]
    assert count * np.dtype(scalar).itemsize == lanes * x.itemsize
    np.testing.assert_array_equal(got.view(np.uint8), x.view(np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
def test_bit_counting(execute, dtype):
    x = edge_values(dtype, 10)
    bits = x.itemsize * 8
    module = elementwise({"x": dtype}, {"ones": dtype, "zeros": "int32"}, lambda v: {
        "ones": tirx.popcount(v["x"]), "zeros": tirx.call_intrin("int32", "prim.clz", v["x"])})  # fmt: skip
    got = execute(module, lowered=True, x=x, ones=np.zeros_like(x), zeros=np.zeros(THREADS, np.int32))
    strings = [np.binary_repr(int(v) & (2**bits - 1), bits) for v in x]
    np.testing.assert_array_equal(got["ones"], [s.count("1") for s in strings])
    np.testing.assert_array_equal(got["zeros"], [len(s) - len(s.lstrip("0")) for s in strings])


def test_booleans(execute):
    a, b = edge_values("int8", 11) > 0, edge_values("int8", 12) > 0
    got = execute(
        elementwise({"a": "bool", "b": "bool"}, dict.fromkeys(("both", "any", "none", "same"), "bool"), lambda v: {
            "both": tirx.And(v["a"], v["b"]), "any": tirx.Or(v["a"], v["b"]), "none": tirx.Not(tirx.Or(v["a"], v["b"])),
            "same": tirx.EQ(v["a"], v["b"])}),
        lowered=True, a=a, b=b, **dict.fromkeys(("both", "any", "none", "same"), np.zeros(THREADS, bool)),
    )  # fmt: skip
    np.testing.assert_array_equal(got["both"], a & b)
    np.testing.assert_array_equal(got["any"], a | b)
    np.testing.assert_array_equal(got["none"], ~(a | b))
    np.testing.assert_array_equal(got["same"], a == b)


def test_shuffle_broadcast_and_let(execute):
    x = np.arange(THREADS * 4, dtype=np.float32)
    var = tirx.Var("t", "float32x4")

    def body(v):
        reverse = tirx.Shuffle([var], [tirx.const(i, "int32") for i in (3, 2, 1, 0)])
        total = tirx.Add(reverse, tirx.Broadcast(tirx.const(2.0, "float32"), 4))
        return {"y": tirx.Let(var, v["x"], total)}

    got = execute(elementwise({"x": "float32"}, {"y": "float32"}, body, 4), lowered=True, x=x, y=x * 0)["y"]
    np.testing.assert_array_equal(got, x.reshape(-1, 4)[:, ::-1].reshape(-1) + 2)
