"""Whole models through the Metal kernels: the engine's prefill, decode, greedy run and score give the right tokens."""

from __future__ import annotations

import numpy as np
import tiny
import twin

from mlcrt.runtime.engine import Engine


def test_same_tokens_as_the_cpu_target(tmp_path, monkeypatch):
    case, scheme = "llama3_gqa7", "q4f16_1"
    model = tiny.make_tiny(case, tmp_path / "model")
    metal = twin.engine(model, scheme, tmp_path, monkeypatch, "cpu,metal")
    cpu = Engine(tmp_path / f"model-{scheme}", "cpu")
    tokens = [int(t) for t in tiny.golden(case).tokens]
    for engine in (cpu, metal):
        engine.prefill(tokens[:-2])
    for token in tokens[-2:]:
        expected, got = cpu.decode(token).copy(), metal.decode(token).copy()
        assert np.abs(got - expected).max() <= 0.02 * expected.std()
    assert metal.greedy(12) == cpu.greedy(12)
    scores = [e.score(tokens[:20]) for e in (metal, cpu)]
    assert np.abs(scores[0] - scores[1]).max() <= 0.02 * scores[1].std()


def test_float_logits_are_those_of_transformers(tmp_path, monkeypatch):
    """With fast math, as TVM's runtime compiles kernels on a Mac."""
    case = "gemma2_softcap"
    engine = twin.engine(
        tiny.make_tiny(case, tmp_path / "model"), "q0f32", tmp_path, monkeypatch, flags=("-ffast-math",)
    )
    golden = tiny.golden(case)
    logits = engine.score([int(t) for t in golden.tokens[: engine.chunk]])[:, golden.columns]
    assert np.abs(logits - golden.logits[: len(logits)]).max() <= 2e-4 * golden.std
