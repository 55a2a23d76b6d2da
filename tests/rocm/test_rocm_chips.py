"""Kernels made for chips other than gfx1100, emulated: CDNA's waves of 64 lanes with MFMA, RDNA2 with dot products,
RDNA4 with its own WMMA. The cases are those of test_rocm_linear and test_rocm_attention."""

from __future__ import annotations

import pytest
import test_rocm_attention
import test_rocm_linear

from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated

MATRIX = {  # what multiplies many tokens
    "gfx90a": "v_mfma_f32_16x16x16f16", "gfx942": "v_mfma_f32_16x16x16_f16", "gfx1030": "v_dot2c_f32_f16",
    "gfx1200": "v_wmma_f32_16x16x16_f16",
}  # fmt: skip


CHIPS = [chip for chip in MATRIX if chip != "gfx942"]  # which differs from gfx90a in little but its matrix unit


@pytest.fixture
def chip(request, monkeypatch):
    """(name, the kernels that the borrowed tests make while the fixture is alive)."""
    made = []

    def emulated(function):
        made.append(Emulated(function, request.param))
        return made[-1]

    for tests in (test_rocm_linear, test_rocm_attention):
        monkeypatch.setattr(tests, "LIBRARY", library(attributes(request.param), "float16"))
        monkeypatch.setattr(tests, "Emulated", emulated)
    return request.param, made


@pytest.mark.parametrize("chip", MATRIX, indirect=True)
def test_many_tokens(chip):
    name, made = chip
    case = {"scheme": SCHEMES["q4f16_1"], "rows": 34, "columns": 96, "decode": False}
    test_rocm_linear.test_linear({**case, "norm": True, "bias": True, "gate": "silu", "residual": True})
    assert MATRIX[name] in made[0].text


@pytest.mark.parametrize("scheme", ["q4f16_1", "q3f16_1"])
@pytest.mark.parametrize("chip", CHIPS, indirect=True)
def test_one_token(chip, scheme):
    case = {"scheme": SCHEMES[scheme], "rows": 34, "columns": 192, "decode": True}
    test_rocm_linear.test_linear({**case, "norm": True, "bias": False, "gate": None, "residual": True})


@pytest.mark.parametrize("decode", [True, False], ids=["one token", "many tokens"])
@pytest.mark.parametrize("chip", CHIPS, indirect=True)
def test_attention(chip, decode):
    case = {"head_dim": 64, "group": 2, "kv_heads": 1, "window": 40, "softcap": None, "kv": "float16"}
    test_rocm_attention.test_attention({**case, "decode": decode})


@pytest.mark.parametrize("chip", CHIPS, indirect=True)
def test_rope(chip):
    case = {"head_dim": 64, "group": 2, "kv_heads": 1, "partial": 1.0, "norm": True, "kv": "float16"}
    test_rocm_attention.test_rope_append({**case, "decode": True})
