"""The performance model: its bytes are those of the arrays, its instructions those of the emulator, its bound their
arithmetic. And what the issue asks of Llama-2-7B's matrix-vector products on the RX 7900 XTX."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import attributes, library
from mlcrt.targets.rocm.emulate import Emulated
from mlcrt.targets.rocm.model import CARDS, Call, KernelEstimate, estimate, step_estimate, summary

CARD = CARDS["rx7900xtx"]
LIBRARY = library(attributes("gfx1100"), "float16")


def gemv(columns: int, rows: int, gate: str | None, scheme=SCHEMES["q4f16_1"]) -> Call:
    """A linear layer with RMSNorm."""
    op = Linear(scheme, rows, columns, 1, 1e-5, gate=gate)
    parts = list(scheme.tensors(rows, columns).values())
    arguments = [((1, columns), "float32"), *parts, ((columns,), "float32"), ((1, op.units), "float32")]
    inputs = len(arguments) - 1
    function = LIBRARY.build_linear(op, "linear")
    return Call("linear", function, tuple(arguments), inputs, frozenset(range(1, inputs)), 32)


@pytest.mark.parametrize(
    ("columns", "rows", "gate"), [(4096, 256, None), (4096, 512, "silu"), (11008, 128, None)]
)  # fmt: skip
def test_llama2_7b_products_are_bound_by_memory(columns, rows, gate):
    call = gemv(columns, rows, gate)
    (kernel,) = estimate(call, CARD, 16)
    size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in call.arguments)
    assert size <= kernel.bytes <= size + 64 * len(call.arguments)  # the last line of an array counts whole
    assert kernel.memory_s == kernel.bytes / 960e9
    assert kernel.bound == "memory"
    assert max(kernel.valu_s, kernel.lds_s, kernel.l0_s) < 0.5 * kernel.memory_s


@pytest.mark.parametrize(
    ("scheme", "columns"),
    [("q0f32", 4096), ("q8f16_1", 4096), ("q4f16_asym", 4096), ("q4f32_1", 11008), ("q3f16_1", 11008)],
)
def test_products_of_every_scheme_are_bound_by_memory(scheme, columns):
    """Though some take more than one instruction to unpack a code."""
    (kernel,) = estimate(gemv(columns, 64, None, SCHEMES[scheme]), CARD, 16)
    assert kernel.bound == "memory"
    assert max(kernel.valu_s, kernel.lds_s, kernel.l0_s) < 0.7 * kernel.memory_s


def test_touched_lines_and_instructions():
    """One workgroup that reads 4 rows: every line of the weights once, whatever is read twice."""
    op = Linear(SCHEMES["q0f32"], 4, 1024, 1)
    x, w, y = np.ones((1, 1024), np.float32), np.ones((4, 1024), np.float32), np.zeros((1, 4), np.float32)
    (report,) = Emulated(LIBRARY.build_linear(op, "linear"))(x, w, y)
    size = x.nbytes + w.nbytes + y.nbytes
    assert size <= report.touched_bytes <= size + 3 * 64  # an array may begin and end inside a line
    assert report.instructions == sum(report.lines.values())


def test_a_step_of_a_small_model(tmp_path):
    """Every launch of a step is there, as often as the step has it."""
    config = {
        "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    kernels = step_estimate(str(file), "q4f16_1", CARD, 20)
    counts = {}
    for k in kernels:
        name = k.name.partition(",")[0].rstrip("0123456789") if k.name.startswith("linear") else k.name
        counts[name] = counts.get(name, 0) + k.count
    assert counts["linear_q4f16_1_decode"] == 4 * 3 + 1  # qkv, o, gate and up, down; the head
    assert counts["rope_append"] == counts["attention_decode"] == counts["attention_decode, kernel 2"] == 3
    assert counts["embed"] == counts["rotary_tables"] == counts["finish_step"] == 1
    head = SCHEMES["q4f16_1"].tensors(96, 64)
    layer = [(128, 64), (64, 64), (192, 64), (64, 96)]
    stored = sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in head.values()) + 4 * 64
    for rows, columns in layer:
        parts = SCHEMES["q4f16_1"].tensors(rows, columns).values()
        stored += 3 * sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in parts)
    assert summary(kernels)["weight_bytes"] == stored + 3 * 2 * 4 * 64  # and the norms


def test_the_bound_is_the_sum_of_the_longest():
    kernels = [
        KernelEstimate("a", 2, 960, 480, 10, 20, 1e-6, 3e-6, 0.0, 2e-6),
        KernelEstimate("b", 1, 96, 0, 10, 20, 4e-6, 1e-6, 0.0, 0.0),
    ]
    assert [k.bound for k in kernels] == ["valu", "memory"]
    total = summary(kernels)
    assert total["seconds"] == pytest.approx(10e-6) and total["tokens_per_second_bound"] == pytest.approx(1e5)
    assert (total["launches"], total["bytes"], total["weight_bytes"]) == (3, 2016, 960)
    assert total["memory_share"] == pytest.approx(0.6)
    assert total["valu_per_weight_byte"] == pytest.approx(32 * 20 / 960)
