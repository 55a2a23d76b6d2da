"""Kernels of batched steps as the ROCm target makes them for gfx1100, emulated (see tests/kernels/batch_case.py)."""

from __future__ import annotations

import pytest
from batch_case import check_attention, check_choose, check_linear

from mlcrt.kernels.records import Attention, Linear
from mlcrt.kernels.simt.choose import choose, scratch
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated

LIBRARY = library(attributes("gfx1100"), "float16")


def caller(function):
    kernel = Emulated(function)

    def call(*arrays):
        copies = [array.copy() for array in arrays]
        kernel(*copies)
        return copies

    return call


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f16_asym"])
def test_a_token_does_not_notice_the_others(scheme):
    op = Linear(SCHEMES[scheme], 20, 96, None, 1e-5, False, "silu", False, alike=True)
    check_linear(caller(LIBRARY.build_alike(op, "linear")), op, LIBRARY, 2e-2, [[4], [1, 9, 3]])


def test_paged_attention():
    op = Attention(2, 1, 16, None, "float16", 0.4, 40, None, paged=True, alike=True)
    check_attention(caller(LIBRARY.build_attention(op, "attention")), op, LIBRARY)


def test_choosing_with_masks_and_biases():
    check_choose(caller(choose(300, LIBRARY.machine)), 300, scratch(5))
