"""Accuracy of every math function against NumPy in float64, on dense samples; and NaN, infinities, zeros."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from direct import THREADS, elementwise
from tvm import tirx

LANES = 16
N = THREADS * LANES


def run(execute, name: str, *columns: np.ndarray) -> np.ndarray:
    """`name` of float32 or float16 arrays of any length, as the C function or the intrinsic that lowering leaves."""
    dtype = str(columns[0].dtype)
    kind = f"{dtype}x{LANES}"

    def body(loads):
        args = list(loads.values())
        if dtype == "float32":
            return {"y": tirx.call_pure_extern(kind, f"{name}f", *args)}
        return {"y": tirx.call_intrin(kind, f"tirx.{name}", *args)}

    blocks = -(-len(columns[0]) // N)
    module = elementwise({f"x{i}": dtype for i in range(len(columns))}, {"y": dtype}, body, LANES, blocks)
    padded = {f"x{i}": np.resize(c, blocks * N) for i, c in enumerate(columns)}
    got = execute(module, (blocks,), lowered=True, **padded, y=np.zeros(blocks * N, dtype))["y"]
    return got[: len(columns[0])]


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in units of the last place of float32 at exact (float64)."""
    spacing = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / spacing


def sweep(low: float, high: float, count: int = 4 * N) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.concatenate([np.linspace(low, high, count // 2), rng.uniform(low, high, count // 2)]).astype(np.float32)


erf = np.vectorize(math.erf)

RELATIVE = {  # name → (function, low, high, ulp)
    "sqrt": (np.sqrt, 0, 1e6, 3), "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-6, 1e6, 3), "tanh": (np.tanh, -12, 12, 8),
    "erf": (erf, -5, 5, 8), "floor": (np.floor, -1e4, 1e4, 0), "ceil": (np.ceil, -1e4, 1e4, 0),
    "trunc": (np.trunc, -1e4, 1e4, 0), "round": (np.rint, -1e4, 1e4, 0), "nearbyint": (np.rint, -1e4, 1e4, 0),
    "fabs": (np.abs, -10, 10, 0), "log2": (np.log2, 2, 1e6, 8), "log": (np.log, 2, 1e6, 8),
    "log10": (np.log10, 2, 1e6, 8), "log1p": (np.log1p, 1, 1e5, 12),
}  # fmt: skip
ABSOLUTE = {  # name → (function, low, high, bound)
    "sin": (np.sin, -100000, 100000, 3e-7), "cos": (np.cos, -100000, 100000, 3e-7),
    "log": (np.log, 0.5, 2, 2**-21), "log1p": (np.log1p, -0.5, 1, 2**-20),
    "atan": (np.arctan, -50, 50, 2e-3), "asin": (np.arcsin, -1, 1, 2e-3), "acos": (np.arccos, -1, 1, 2e-3),
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_accuracy(execute, name):
    function, low, high, bound = RELATIVE[name]
    x = sweep(low, high)
    assert ulps(run(execute, name, x), function(x.astype(np.float64))).max() <= bound


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_accuracy(execute, name):
    function, low, high, bound = ABSOLUTE[name]
    x = sweep(low, high)
    assert np.abs(run(execute, name, x) - function(x.astype(np.float64))).max() <= bound


@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_exp(execute, name):
    function = getattr(np, name)
    x = sweep(-80, 80)
    assert (ulps(run(execute, name, x), function(x.astype(np.float64))) <= 3 + 2 * np.abs(x)).all()


def test_pow(execute):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0.01, 100, N).astype(np.float32), rng.uniform(-6, 6, N).astype(np.float32)
    exact = np.power(x.astype(np.float64), y.astype(np.float64))
    bound = 2.0**-22 * (8 + 8 * np.abs(y * np.log2(x)))
    assert (np.abs(run(execute, "pow", x, y) - exact) <= bound * exact).all()


def test_pow_of_special_arguments(execute):
    nan, inf = np.nan, np.inf
    x = np.array([-2, -2, -2, 0, 0, 0, nan, 1, 5, -8, inf, inf], np.float32)
    y = np.array([3, 2, -1, 2, 0, -1, 0, nan, 0, 0.5, 2, -1], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run(execute, "pow", x, y), np.power(x, y), rtol=1e-6)


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 80, -80, 1e4, -1e4], np.float32)


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "sqrt", "floor", "log1p"])
def test_special_values(execute, name):
    function = {"erf": lambda x: np.where(np.isnan(x), x, erf(np.nan_to_num(x)))}.get(name) or getattr(np, name)
    with np.errstate(all="ignore"):
        expected = function(SPECIAL.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(run(execute, name, SPECIAL), expected, rtol=3e-5)


@pytest.mark.parametrize("name", ["exp", "tanh", "sqrt", "sin", "erf", "log", "floor", "rsqrt"])
def test_float16_is_correctly_rounded_but_for_one_ulp(execute, name):
    x = np.linspace(0.01, 8, N).astype(np.float16)
    wide = x.astype(np.float64)
    exact = {"erf": erf, "rsqrt": lambda v: 1 / np.sqrt(v)}.get(name, getattr(np, name, None))(wide)
    error = np.abs(run(execute, name, x).astype(np.float64) - exact)
    assert (error <= 1.01 * np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)).all()


def test_fma_and_fmod(execute):
    rng = np.random.default_rng(5)
    a, b, c = (rng.standard_normal(N).astype(np.float32) for _ in range(3))
    np.testing.assert_allclose(run(execute, "fma", a, b, c), a * b + c, rtol=1e-5, atol=1e-6)
    b = np.abs(b) + 0.5
    np.testing.assert_allclose(run(execute, "fmod", a * 3, b), np.fmod(a * 3, b), rtol=1e-5, atol=1e-6)


def test_min_max_return_the_number_beside_nan(execute):
    a = np.array([1, np.nan, 3, np.nan, np.inf, -np.inf], np.float32)
    b = np.array([2, 2, np.nan, np.nan, 1, 1], np.float32)
    module = elementwise(
        {"a": "float32", "b": "float32"},
        {"low": "float32", "high": "float32", "ne": "int32", "lt": "int32"},
        lambda x: {
            "low": tirx.Min(x["a"], x["b"]),
            "high": tirx.Max(x["a"], x["b"]),
            "ne": tirx.Select(tirx.NE(x["a"], x["b"]), tirx.const(1, "int32"), tirx.const(0, "int32")),
            "lt": tirx.Select(tirx.LT(x["a"], x["b"]), tirx.const(1, "int32"), tirx.const(0, "int32")),
        },
    )
    pad = {name: np.resize(v, THREADS) for name, v in (("a", a), ("b", b))}
    zero = np.zeros(THREADS, np.int32)
    got = execute(module, lowered=True, **pad, low=zero.view("f4"), high=zero.view("f4"), ne=zero, lt=zero)
    np.testing.assert_array_equal(got["low"][:6], np.fmin(a, b))
    np.testing.assert_array_equal(got["high"][:6], np.fmax(a, b))
    np.testing.assert_array_equal(got["ne"][:6], (a != b).astype(np.int32))
    np.testing.assert_array_equal(got["lt"][:6], (a < b).astype(np.int32))


def test_an_unknown_function_is_refused_by_name():
    from mlcrt.targets.vulkan.codegen import CodegenError, compile_kernels

    module = elementwise(
        {"x": "float32"}, {"y": "float32"}, lambda x: {"y": tirx.call_pure_extern("float32", "lgammaf", x["x"])}
    )
    with pytest.raises(CodegenError, match=r"kernel elementwise .* lgammaf"):
        compile_kernels(module)
    assert isinstance(module, tvm.IRModule)
