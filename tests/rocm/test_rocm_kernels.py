"""TensorIR kernels compiled by TVM for gfx1100, run on the emulator and compared with NumPy; and broken ones caught."""

import math

import numpy as np
import pytest
import rocm_kernels as K
from tvm import tirx

from mlcrt.targets.rocm.assembly import compile_assembly
from mlcrt.targets.rocm.emulator import EmulationError, Launch, OutOfBounds, Program, Race, Unwritten, UnwrittenMemory

RNG = np.random.default_rng(0)


def halves(*shape):
    return RNG.normal(size=shape).astype(np.float16)


def singles(x):
    return np.asarray(x, np.float32)


def execute(function, grid, block, args, **options):
    program = Program.parse(compile_assembly(function, **options).text)
    (name,) = program.kernels
    return Launch(program, name, grid, block, args).run()


def test_vector_add():
    a, b = RNG.normal(size=(2, 1000)).astype(np.float32)
    c = np.full(1000, np.nan, np.float32)
    report = execute(K.vector_add, (8,), (128,), {"a": a, "b": b, "c": Unwritten(c)})
    np.testing.assert_array_equal(c, a + b)
    assert report.bytes("global", "load") == 8000 and report.bytes("global", "store") == 4000
    assert report.waves == 32 and report.coalescing() == pytest.approx(1.0, abs=0.01)


def test_gemv_with_lds_reduction():
    w, x, y = halves(64, 512), halves(512), np.zeros(64, np.float16)
    report = execute(K.gemv(64, 512), (64,), (128,), {"W": w, "x": x, "y": Unwritten(y)})
    np.testing.assert_allclose(singles(y), singles(w) @ singles(x), rtol=2e-3, atol=2e-2)
    assert report.barriers >= 64 * 8 and report.lds_bytes == 512


def dequantise(words, scales):
    codes = (words[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    return (codes.reshape(len(words), -1).astype(np.float32) - 7) * np.repeat(singles(scales), 32, axis=1)


def test_q4_gemv():
    rows, columns = 32, 2048
    w = RNG.integers(0, 2**32, (rows, columns // 8), dtype=np.uint32)
    s, x, y = halves(rows, columns // 32), halves(columns), np.zeros(rows, np.float16)
    report = execute(K.q4_gemv(rows, columns), (rows // 4,), (32, 4), {"W": w, "S": s, "x": x, "y": Unwritten(y)})
    wanted = dequantise(w, s) @ singles(x)
    np.testing.assert_allclose(singles(y), wanted, rtol=2e-3, atol=2e-3 * abs(wanted).max())
    assert report.bytes("global", "load", 16) >= w.nbytes  # the weights come in 128-bit loads
    assert report.mnemonics["ds_bpermute_b32"] == 5 * rows


def test_rms_norm():
    x, g, y = halves(3, 1024), halves(1024), np.zeros((3, 1024), np.float16)
    execute(K.rms_norm(3, 1024), (3,), (256,), {"x": x, "g": g, "y": Unwritten(y)})
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * g.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=1e-3, atol=1e-5)


def test_softmax():
    x = RNG.normal(scale=4, size=(9, 100)).astype(np.float32)
    x[3] = -1e30
    x[3, 7] = 50
    y = np.zeros_like(x)
    execute(K.softmax(9, 100), (9,), (32,), {"x": x, "y": Unwritten(y)})
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(axis=1, keepdims=True), rtol=2e-6, atol=1e-30)


def test_gemm_through_lds():
    a, b, c = halves(64, 32), halves(64, 32), np.zeros((64, 64), np.float32)
    report = execute(K.gemm(64, 64, 32), (2, 2), (16, 16), {"A": a, "B": b, "C": Unwritten(c)})
    np.testing.assert_allclose(c, singles(a) @ singles(b).T, rtol=1e-5, atol=1e-4)
    assert report.bytes("lds", "load") > 0 and report.bytes("lds", "store") > 0


def test_wmma_from_a_linked_file():
    a, b = halves(64, 16, 16), halves(64, 16, 16)
    c = RNG.normal(size=(64, 32, 8)).astype(np.float32)
    before = c.copy()
    report = execute(K.wmma, (64,), (32,), {"A": a, "B": b, "C": c})
    product = np.einsum("gik,gjk->gij", singles(a), singles(b))
    lane, register = np.meshgrid(np.arange(32), np.arange(8), indexing="ij")
    np.testing.assert_allclose(c - before, product[:, 2 * register + lane // 16, lane % 16], rtol=1e-4, atol=1e-4)
    assert report.classes["WMMA"] == 64


# what must be caught -----------------------------------------------------------------------------------------------
def test_stock_barriers_race():
    """TVM's own barrier does not wait for LDS stores on gfx11; the same kernel is fine with the mended one (above)."""
    args = {"W": halves(64, 512), "x": halves(512), "y": np.zeros(64, np.float16)}
    with pytest.raises(Race, match="s_barrier.*LDS stores in flight"):
        execute(K.gemv(64, 512), (64,), (128,), args, mend_barriers=False)


def test_a_removed_barrier_races():
    text = compile_assembly(K.gemv(64, 512)).text.replace("\ts_barrier\n", "\ts_nop 0\n", 1)
    args = {"W": halves(64, 512), "x": halves(512), "y": np.zeros(64, np.float16)}
    with pytest.raises(Race, match="with no barrier in between"):
        Launch(Program.parse(text), "gemv_kernel", (64,), (128,), args).run()


def test_an_index_past_the_end():
    a, c = np.zeros((2, 1000), np.float32)
    with pytest.raises(OutOfBounds, match=r"global_load_b32.*offset 4000 of its 4000 .*workgroup 7, wave 3, lane 8"):
        execute(K.add_past_the_end, (8,), (128,), {"a": a.copy(), "c": c.copy()})


def test_reading_an_output_before_it_is_written():
    a = np.zeros(1000, np.float32)
    with pytest.raises(UnwrittenMemory, match="buffer 'b'"):
        execute(K.vector_add, (8,), (128,), {"a": a, "b": Unwritten(a.copy()), "c": a.copy()})


def test_the_wrong_number_of_workgroups_leaves_bytes_unwritten():
    """Half the grid: the second kernel reads what nobody stored."""
    from mlcrt.targets.rocm.emulator import Memory

    memory, zeros = Memory(), np.zeros(1000, np.float32)
    program = Program.parse(compile_assembly(K.vector_add).text)
    c = memory.map(np.zeros(1000, np.float32), "c", written=False)
    Launch(program, "vector_add_kernel", (4,), (128,), {"a": zeros, "b": zeros, "c": c}, memory=memory).run()
    with pytest.raises(UnwrittenMemory, match="bytes 2048 to 2051 of buffer 'c'"):
        Launch(program, "vector_add_kernel", (8,), (128,), [c, zeros, zeros.copy()], memory=memory).run()


def test_arguments_as_a_driver_packs_them():
    """Two addresses and a third: by position, without names, 8 bytes each."""
    from mlcrt.targets.rocm.emulator import Memory

    memory, program = Memory(), Program.parse(compile_assembly(K.vector_add).text)
    a, b = np.arange(2000, dtype=np.float32).reshape(2, 1000)
    c = np.zeros(1000, np.float32)
    places = [memory.map(array, "device memory").start for array in (a, b, c)]
    packed = b"".join(p.to_bytes(8, "little") for p in places)
    Launch(program, "vector_add_kernel", (8,), (128,), packed, memory=memory).run()
    np.testing.assert_array_equal(c, a + b)
    with pytest.raises(EmulationError, match="more than 16 bytes"):
        Launch(program, "vector_add_kernel", (8,), (128,), packed[:16], memory=memory)


def test_arrays_that_share_lds():
    """TVM's StorageRewrite puts `second` into the allocation of `first`; its code generator would then lose it."""
    kernel = K.shared_twice
    x, y = RNG.normal(size=64).astype(np.float32), np.zeros(64, np.float32)
    report = execute(kernel, (1,), (64,), {"x": x, "y": Unwritten(y)})
    np.testing.assert_array_equal(y, ((x + 1) * 2)[::-1] + 3)
    assert report.lds_bytes == 256


# every operator TVM lowers for float16, float32 and integers -------------------------------------------------------
def reals(kind, low, high):
    return np.random.default_rng(1).uniform(low, high, 256).astype(kind)


FLOAT_FUNCTIONS = {
    "exp": (-6, 6, np.exp), "log": (0.05, 8, np.log), "sqrt": (0, 9, np.sqrt), "rsqrt": (0.01, 9, lambda x: x**-0.5),
    "tanh": (-5, 5, np.tanh), "sigmoid": (-8, 8, lambda x: 1 / (1 + np.exp(-x))),
    "erf": (-3, 3, np.vectorize(math.erf)),
    "floor": (-9, 9, np.floor), "ceil": (-9, 9, np.ceil), "round": (-9, 9, np.rint), "trunc": (-9, 9, np.trunc),
    "abs": (-9, 9, np.abs), "exp2": (-6, 6, np.exp2), "log2": (0.05, 8, np.log2), "nearbyint": (-9, 9, np.rint),
    "log10": (0.05, 8, np.log10), "sin": (-3, 3, np.sin), "cos": (-3, 3, np.cos),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("name", FLOAT_FUNCTIONS)
def test_float_functions(name, kind):
    low, high, reference = FLOAT_FUNCTIONS[name]
    x, y = reals(kind, low, high), np.zeros(256, kind)
    execute(K.elementwise(getattr(tirx, name), kind, kind), (4,), (64,), {"a": x, "out": Unwritten(y)})
    wanted = reference(x.astype(np.float64))
    # float16 erf, sin and cos are computed in float16 by LLVM and lose digits
    tolerance = 2e-6 if kind == "float32" else 2e-2 if name in ("erf", "sin", "cos") else 4e-3
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


FLOAT_PAIRS = {
    "div": (lambda a, b: a / b, np.divide), "max": (tirx.max, np.maximum), "min": (tirx.min, np.minimum),
    "sub": (lambda a, b: a - b, np.subtract), "mul": (lambda a, b: a * b, np.multiply),
    "pow": (lambda a, b: tirx.power(tirx.abs(a), b), lambda a, b: np.abs(a) ** b),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("name", FLOAT_PAIRS)
def test_float_pairs(name, kind):
    function, reference = FLOAT_PAIRS[name]
    a, b, y = reals(kind, 0.1, 4), reals(kind, -3, 3)[::-1].copy(), np.zeros(256, kind)
    execute(K.elementwise(function, kind, kind, 2), (4,), (64,), {"a": a, "b": b, "out": Unwritten(y)})
    with np.errstate(all="ignore"):
        wanted = reference(a.astype(np.float64), b.astype(np.float64)).astype(kind)
    if name != "pow":
        np.testing.assert_array_equal(y, reference(a, b))
    np.testing.assert_allclose(y, wanted, rtol=3e-6 if kind == "float32" else 1e-2)


INTEGER_PAIRS = {
    "floordiv": (tirx.floordiv, np.floor_divide), "floormod": (tirx.floormod, np.mod),
    "truncdiv": (tirx.truncdiv, lambda a, b: np.trunc(a.astype(np.longdouble) / b)),
    "max": (tirx.max, np.maximum), "min": (tirx.min, np.minimum), "mul": (lambda a, b: a * b, np.multiply),
    "shl": (lambda a, b: tirx.shift_left(a, b & 7), lambda a, b: np.left_shift(a, b & 7)),
    "shr": (lambda a, b: tirx.shift_right(a, b & 7), lambda a, b: np.right_shift(a, b & 7)),
    "select": (lambda a, b: tirx.Select(a < b, a + b, a - b), lambda a, b: np.where(a < b, a + b, a - b)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["int32", "uint32", "int8", "int64"])
@pytest.mark.parametrize("name", INTEGER_PAIRS)
def test_integer_pairs(name, kind):
    function, reference = INTEGER_PAIRS[name]
    info = np.iinfo(kind)
    rng = np.random.default_rng(3)
    a, b = rng.integers(info.min, info.max, (2, 256), dtype=kind, endpoint=True)
    a[:64], b[64:128] = rng.integers(0, 100, 64), rng.integers(1, 100, 64)
    b[b == 0] = 1
    if info.min < 0:
        a[a == info.min] += 1
    y = np.zeros(256, kind)
    execute(K.elementwise(function, kind, kind, 2), (4,), (64,), {"a": a, "b": b, "out": Unwritten(y)})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, reference(a, b).astype(kind))


KINDS = ["float32", "float16", "int32", "uint8", "int8", "int64"]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_casts(kind, to):
    if kind == to:
        return
    unsigned = kind[0] == "u" or to[0] == "u"
    x = reals("float32", 0 if unsigned else -100, 100).astype(kind)
    y = np.zeros(256, to)
    execute(K.elementwise(lambda a: tirx.Cast(to, a), kind, to), (4,), (64,), {"a": x, "out": Unwritten(y)})
    np.testing.assert_array_equal(y, x.astype(to))


def test_a_large_launch():
    """Every wave of 256 workgroups, in batches: counts and bytes are those of the shape."""
    w = RNG.integers(0, 2**32, (1024, 512), dtype=np.uint32)
    args = {"W": w, "S": halves(1024, 128), "x": halves(4096), "y": Unwritten(np.zeros(1024, np.float16))}
    program = Program.parse(compile_assembly(K.q4_gemv(1024, 4096)).text)
    report = Launch(program, "q4_gemv_kernel", (256,), (32, 4), args).run()
    assert report.waves == 1024 and report.bytes("global", "load", 16) >= w.nbytes
    assert report.instructions == sum(report.lines.values()) > 100_000
