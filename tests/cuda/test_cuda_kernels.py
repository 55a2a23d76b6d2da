"""Kernels for tensor cores, executed on the CPU from their CUDA source, against float64: prompts' products.

All are generated first and compiled side by side: `make` names what a test wants, `run` gives it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import emulate
import numpy as np
import pytest
from harness import error, random_weight, unwritten
from linear_case import complete, record
from moe_case import Case as MoeCase
from moe_case import spaces

from mlcrt.kernels import Space
from mlcrt.kernels.mma import warpgroup
from mlcrt.kernels.mma.linear import PrefillTiles
from mlcrt.kernels.records import Moe
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
    with ThreadPoolExecutor(2) as pool:  # compilers, while TVM generates the next
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
    ("sm_90a", 2, "q3f16_1", 70, 512, {**PLAIN, "norm": True}, (17, 130)),
    ("sm_90a", 0, "q4f16_asym", 70, 200, {**PLAIN, "residual": True}, (130,)),
    ("sm_90", 2, "q4f16_1", 100, 448, FUSED, (1, 17, 130)),  # both kinds
    ("sm_90", 0, "q8f16_1", 70, 96, {**PLAIN, "bias": True}, (17, 130)),
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
