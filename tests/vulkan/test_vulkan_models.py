"""Whole models on a Vulkan device: golden logits of every family, and SmolLM2 with the CPU's greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from mlcrt.compile import compile_model
from mlcrt.runtime.engine import Engine

TOLERANCE = 2e-4  # of the logits' standard deviation, in float32
_MOE = ("mixtral", "qwen3_moe")


@pytest.fixture(scope="module")
def compiled(vulkan, tmp_path_factory):
    root = tmp_path_factory.mktemp("dist")
    return lambda case, scheme, targets="vulkan:s8": compile_model(
        tiny.make_tiny(case, root / "models" / case), scheme, targets, dist_root=root
    )


@pytest.mark.parametrize("case", [c for c in tiny.cases() if c not in _MOE])
def test_golden_logits(compiled, case):
    golden = tiny.golden(case)
    tokens, start = golden.tokens.tolist(), 21
    engine = Engine(compiled(case, "q0f32"), "vulkan")
    rows = [engine.prefill(tokens[:start]).copy()]
    rows += [engine.decode(token).copy() for token in tokens[start:]]
    assert engine.greedy_token == int(rows[-1].argmax())
    difference = np.abs(np.stack(rows)[:, golden.columns] - golden.logits[start - 1 :])
    assert difference.max() <= TOLERANCE * golden.std
    engine.rollback(0)
    scored = engine.score(tokens[: engine.chunk])
    assert np.abs(scored[:, golden.columns] - golden.logits[: len(scored)]).max() <= TOLERANCE * golden.std
    assert scored.argmax(1).tolist() == golden.argmax.tolist()[: len(scored)]
    engine.close()
