"""Kernels of batched steps on a Vulkan device (see tests/kernels/batch_case.py)."""

from __future__ import annotations

import pytest
import tvm
from batch_case import check_attention, check_choose, check_linear
from harness import label, pairwise

from mlcrt.kernels.records import Attention, Linear
from mlcrt.kernels.simt import Library
from mlcrt.kernels.simt.choose import choose, scratch
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.vulkan.architecture import Variant
from mlcrt.targets.vulkan.tiles import machine, tiles


def library(tag: str, kv: str = "float16") -> Library:
    return Library(tiles(Variant(tag)), kv, machine(Variant(tag)))


@pytest.fixture
def caller(vulkan):
    """caller(build, name, tag) → what check_… calls."""

    def make(build, name: str, tag: str):
        name, device = f"{name}__v_{tag}_", vulkan.runtime().device
        module = tvm.IRModule({name: build(name).with_attr("global_symbol", name)})
        with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):
            kernel = tvm.compile(module, target=tvm.target.Target(vulkan.attributes("s8").tvm_target()))[name]

        def call(*arrays):
            tensors = [tvm.runtime.tensor(array, device) for array in arrays]
            kernel(*tensors)
            return [tensor.numpy() for tensor in tensors]

        return call

    return make


LINEAR = [
    ("q4f16_1", "s8", 96, 10, "silu"), ("q4f16_1", "s8f", 1120, 7, None), ("q4f32_1", "s8", 64, 24, "gelu_tanh"),
    ("q3f16_1", "s8f", 320, 19, None), ("q8f16_1", "s8", 576, 3, "silu"), ("q4f16_asym", "s8f", 96, 40, None),
    ("q0f16", "s8f", 321, 9, "silu"), ("q0f32", "s8", 72, 20, None),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tag", "columns", "units", "gate"), LINEAR, ids=str)
def test_a_token_does_not_notice_the_others(caller, scheme, tag, columns, units, gate):
    norm = 1e-5 if columns % 64 == 0 else None
    rows = 2 * units if gate else units
    op = Linear(SCHEMES[scheme].row_major(), rows, columns, None, norm, True, gate, not gate, alike=True)
    kernels = library(tag)
    call = caller(lambda name: kernels.build_alike(op, name), "linear", tag)
    bound = 1e-4 if scheme.endswith(("f32", "f32_1")) else 2e-2
    check_linear(call, op, kernels, bound, [[0], [9, 3], [1, 2, 0, 7, 6]])


PAGED = pairwise(
    head_dim=(16, 80), group=(1, 3), kv_heads=(1, 2), window=(None, 5, 40), softcap=(None, 3.0),
    kv=("float16", "float32"), decoding=(True, False),
)[:5]  # fmt: skip


@pytest.mark.parametrize("case", PAGED, ids=label)
def test_paged_attention(caller, case):
    heads = case["kv_heads"] * case["group"]
    op = Attention(
        heads, case["kv_heads"], case["head_dim"], None, case["kv"], 0.4, case["window"], case["softcap"],
        paged=True, alike=case["decoding"],
    )  # fmt: skip
    kernels = library("s8", case["kv"])
    check_attention(caller(lambda name: kernels.build_attention(op, name), "attention", "s8"), op, kernels)


def test_choosing_with_masks_and_biases(caller):
    call = caller(lambda name: choose(1000, machine(Variant("s8")), name), "choose", "s8")
    check_choose(call, 1000, scratch(5))
