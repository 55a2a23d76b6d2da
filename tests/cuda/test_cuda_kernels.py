"""Kernels for tensor cores, executed on the CPU from their CUDA source, against float64: prompts and batched steps.

All are generated first and compiled side by side: `make` names what a test wants, `run` gives it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import emulate
import numpy as np
import pytest
from batch_case import check_attention
from harness import error, random_weight, unwritten
from linear_case import complete, record
from moe_case import Case as MoeCase
from moe_case import spaces
from test_kernel_attention import BLOCKS, reference

from mlcrt.kernels import Space
from mlcrt.kernels.arguments import BLOCK
from mlcrt.kernels.mma import alike, warpgroup
from mlcrt.kernels.mma.linear import PrefillTiles
from mlcrt.kernels.records import Attention, Linear, Moe
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets import cuda

LIBRARY = {arch: cuda.library(cuda.attributes(arch), "float16") for arch in ("sm_90", "sm_90a")}
BOUND = 1e-2  # of the results' root mean square: activations and weights are rounded to float16, 2**-11 each
BUILT: dict = {}


def make(name: str, arch: str, build) -> str:
    """Remember a kernel to be compiled with the others; its name."""
    BUILT[name] = (arch, build)
    return name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(name, *arrays) → the arrays after the kernel, which gave the same bits whichever thread went first."""
    missing = emulate.missing()
    if missing and os.environ.get("CI") != "true":
        pytest.skip(missing)
    folder, roots = tmp_path_factory.mktemp("kernels"), {}
    with ThreadPoolExecutor(1) as pool:  # the compiler, while TVM generates the next
        machine, objects = pool.submit(emulate.compiled_machine, folder), []
        for name, (arch, build) in BUILT.items():
            roots[name], *kernels = emulate.generate(build(), arch, LIBRARY[arch].skipped_passes)
            objects.append(pool.submit(emulate.build, *kernels, folder / f"{name}.so", machine))
        for built in objects:
            built.result()
    executables = {name: emulate.Executable(root, folder / f"{name}.so") for name, root in roots.items()}

    def call(name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        one, other = (executables[name](*arrays, reverse=reverse) for reverse in (False, True))
        for given, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(given, again)
        return one

    return call


# What decides the kind of block: for warpgroups the multiprocessors (`warpgroup.kinds`), else `PrefillTiles.few`.
PLAIN = {"norm": False, "bias": False, "gate": None, "residual": False}
FUSED = {"norm": True, "bias": True, "gate": "silu", "residual": True}
LINEAR = [
    # arch, decides, scheme, units, columns, fused, tokens
    ("sm_90a", 4, "q4f16_1", 100, 1280, FUSED, (1, 17, 130, 257)),  # all three kinds, stages used over again
    ("sm_90a", 0, "q4f16_1", 200, 448, PLAIN, (1, 17, 130)),
    ("sm_90a", 0, "q4f16_1", 37, 96, {**FUSED, "gate": "gelu_tanh"}, (17, 130)),
    ("sm_90a", 1, "q3f16_1", 70, 512, {**PLAIN, "norm": True}, (17, 130)),
    ("sm_90", 2, "q4f16_1", 100, 448, FUSED, (1, 17, 130)),  # both kinds
    ("sm_90", 0, "q4f16_asym", 70, 200, {**PLAIN, "bias": True}, (17, 130)),
]


def linear_name(arch: str, decides: int, op) -> str:
    def build():
        library = cuda.library(cuda.attributes(arch), "float16")
        library.multiprocessors, library.prefill_tiles = decides, PrefillTiles(few=decides)
        return library.build_linear(op, "linear")

    name = f"{arch}_{op.scheme.name}_{op.units}x{op.columns}_{len(BUILT)}"
    return make(name, arch, build)


def linear_case(arch, decides, scheme, units, columns, fused, tokens):
    op = record({"scheme": SCHEMES[scheme], "columns": columns, **fused}, units, None)
    name = linear_name(arch, decides, op)
    return pytest.param(name, arch, op, tokens, id=name)


@pytest.mark.parametrize(("name", "arch", "op", "tokens"), [linear_case(*case) for case in LINEAR])
def test_products_of_prompts(name, arch, op, tokens, run):
    draw = np.random.default_rng(op.rows * op.columns)
    parts, weights = random_weight(draw, op.scheme, op.rows, op.columns)
    for n in tokens:
        x = draw.standard_normal((n, op.columns)).astype(np.float32)
        arguments, expected = complete(op, draw, x, parts, weights)
        y, *_ = run(name, *arguments, unwritten(n, op.units), *workspaces(LIBRARY[arch].linear_scratch(op, n)))[
            len(arguments) :
        ]
        assert error(y, expected) <= BOUND, f"{n} tokens"


def workspaces(made: list) -> list[np.ndarray]:
    return [np.full(s.shape, np.nan, s.dtype) for s in map(Space.of, made)]


def test_the_first_case_is_of_every_kind():
    _, multiprocessors, scheme, units, columns, fused, tokens = LINEAR[0]
    op = record({"scheme": SCHEMES[scheme], "columns": columns, **fused}, units, None)
    kinds = warpgroup.kinds(op, multiprocessors)
    met = [next(tiles for tiles, most in kinds if most is None or -(-n // 128) <= most) for n in tokens]
    assert met == [warpgroup.FEWEST, warpgroup.FEWEST, warpgroup.FEW, warpgroup.MANY]


EXPERTS = [
    ("sm_90a", "q4f16_1", "q4f16_1", (128, 64, 3, 2), (1, 200)),  # an expert with more than one block of tokens
    ("sm_90", "q4f16_1", "q4f16_1", (128, 64, 3, 2), (1, 200)),
    ("sm_90a", "q4f16_1", "q8f16_1", (96, 72, 6, 3), (23,)),
]


def experts_case(arch, up, down, shape, tokens):
    op = Moe(SCHEMES[up], SCHEMES[down], *shape, True, "silu", None, 1e-5, True)
    name = f"{arch}_experts_{up}_{down}"
    make(name, arch, lambda: LIBRARY[arch].build_moe(op, "moe"))
    return pytest.param(name, arch, op, tokens, id=name)


@pytest.mark.parametrize(("name", "arch", "op", "tokens"), [experts_case(*case) for case in EXPERTS])
def test_experts_gather_their_tokens(name, arch, op, tokens, run):
    case = MoeCase(op)
    for n in tokens:
        inputs, expected = case(n)
        y = run(name, *inputs, unwritten(n, op.hidden), *spaces(LIBRARY[arch], op, n))[len(inputs)]
        assert error(y, expected) <= BOUND, f"{n} tokens"


def as_fragments(v: np.ndarray) -> np.ndarray:
    """V [kv_heads, positions, head_dim] in the cache's order: blocks of 16 positions; of each, by 16 elements of the
    head, the eight rows of a fragment of V^T with their pairs of fours."""
    heads, positions, dim = v.shape
    split = v.reshape(heads, positions // 16, 4, 4, dim // 16, 2, 8)
    return split.transpose(0, 1, 4, 6, 2, 5, 3).reshape(heads, positions, dim)


ATTENTION = [
    # heads, kv_heads, head_dim, window, softcap
    (6, 2, 80, None, None),
    (4, 1, 64, 40, 3.0),
]


def attention_case(heads, kv_heads, dim, window, softcap):
    op = Attention(heads, kv_heads, dim, None, "float16", 0.4, window, softcap)
    name = make(f"attention{dim}", "sm_90", lambda: LIBRARY["sm_90"].build_attention(op, "attention"))
    return pytest.param(name, op, id=name)


@pytest.mark.parametrize(("name", "op"), [attention_case(*case) for case in ATTENTION])
def test_attention_of_prompts(name, op, run):
    draw = np.random.default_rng(op.head_dim)
    shape = LIBRARY["sm_90"].kv_shapes(op.kv_heads, op.head_dim, BLOCKS)[0]
    k, v = (draw.standard_normal((op.kv_heads, BLOCKS * BLOCK, op.head_dim)).astype(np.float16) for _ in range(2))
    for position, n in ((0, 1), (31, 17), (0, 70)):
        later_k, later_v = k.copy(), v.copy()  # what a longer text that was rolled back leaves
        later_k[:, position + n :], later_v[:, position + n :] = 6e4, -6e4
        q = draw.standard_normal((n, op.heads, op.head_dim)).astype(np.float32)
        arguments = [q.reshape(n, -1), later_k.reshape(shape), as_fragments(later_v).reshape(shape)]
        *_, out = run(name, *arguments, np.array([position], np.int32), unwritten(n, op.heads * op.head_dim))
        expected = reference(op, q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), position)
        assert error(out, expected.reshape(n, -1)) <= 5e-3, f"{n} tokens at {position}"


PAGED = Attention(6, 2, 32, None, "float16", 0.4, 40, None, paged=True, alike=True)
make("paged", "sm_90", lambda: LIBRARY["sm_90"].build_attention(PAGED, "attention"))


def test_paged_attention(run):
    check_attention(lambda *arrays: run("paged", *arrays), PAGED, LIBRARY["sm_90"], 5e-3)


def together_case(columns: int, chip: int):
    """chip: the multiprocessors that decide how many warps and rows a block has."""
    op = Linear(SCHEMES["q4f16_1"], 160, columns, None, 1e-5, True, "silu", False, alike=True)

    def build():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alike, "CHIP", chip)
            patch.setattr(alike, "MANY", 2 * chip * alike.WARP_ROWS)
            return LIBRARY["sm_90"].build_alike(op, "linear")

    name = make(f"together{chip}", "sm_90", build)
    return pytest.param(name, op, id=name)


# More steps than warps share, the last one partial; and two warps' rows in a block.
@pytest.mark.parametrize(("name", "op"), [together_case(2208, 132), together_case(608, 1)])
def test_a_token_does_not_notice_the_others(name, op, run):
    draw = np.random.default_rng(op.columns)
    parts, weights = random_weight(draw, op.scheme, op.rows, op.columns)
    x = draw.standard_normal((37, op.columns)).astype(np.float32)
    (_, *others), expected = complete(op, draw, x, parts, weights)

    def of(which) -> np.ndarray:
        made = workspaces(LIBRARY["sm_90"].alike_scratch(op, len(which)))
        return run(name, x[which], *others, unwritten(len(which), op.units), *made)[1 + len(others)]

    everyone = of(list(range(37)))  # blocks of 32 tokens
    assert error(everyone, expected) <= BOUND
    for which in ([4], [36, 3, 1], list(range(20, 32))):  # of 8, 8 and 16
        np.testing.assert_array_equal(of(which), everyone[which])
