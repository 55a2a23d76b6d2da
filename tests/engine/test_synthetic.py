"""Synthetic models: real shapes, random weights, the ordinary engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from mlcrt.compile import compile_model
from mlcrt.errors import UsageError
from mlcrt.measure.synthetic import SHAPES, make_synthetic, synthetic_config
from mlcrt.runtime.engine import Engine


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4f16_0", "q4f16_asym", "q0f16"])
def test_synthetic_model_runs_with_sane_activations(tmp_path, quantization):
    config = tmp_path / "odd.json"
    config.write_text(json.dumps(tiny.record("qwen3_norms")["config"]))
    folder = make_synthetic(str(config), quantization, tmp_path / "dist")
    compile_model(str(folder), None, "cpu", slots=0)
    engine = Engine(folder, "cpu")
    logits = engine.prefill([1, 2, 3])
    assert np.isfinite(logits).all() and 0.05 < logits.std() < 50
    steps = engine.greedy(5)
    assert len(steps) == 6 and engine.tokens == [1, 2, 3, *steps[:-1]]


def test_greedy_equals_step_by_step(compiled):
    engine = Engine(compiled("qwen3_norms"), "cpu")
    engine.prefill([5, 6, 7])
    fast = engine.greedy(6)
    engine.rollback(0)
    slow = [int(engine.prefill([5, 6, 7]).argmax())]
    for _ in range(6):
        slow.append(int(engine.decode(slow[-1]).argmax()))
    assert fast == slow


PUBLISHED = [("llama3-8b", 8.03e9), ("llama2-7b", 6.74e9), ("llama3.2-1b", 1.236e9)]


@pytest.mark.parametrize(("shape", "parameters"), PUBLISHED)
def test_known_shapes_have_the_published_size(shape, parameters):
    from mlcrt.models import parameters as parameters_of

    _, config = synthetic_config(shape)
    count = sum(int(np.prod(p.shape)) for p in parameters_of(config))
    assert abs(count / parameters - 1) < 0.01
    assert shape in SHAPES


def test_unknown_shape_is_a_usage_error():
    with pytest.raises(UsageError, match="llama3-8b"):
        synthetic_config("llama9-1t")
