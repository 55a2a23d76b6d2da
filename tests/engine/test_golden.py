"""The compiled decoder against the logits of transformers, for every family: all ways to reach a position agree."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from mlcrt.runtime.engine import Engine

TOLERANCE = 2e-4  # of the logits' standard deviation


@pytest.fixture(scope="module", params=tiny.cases())
def case(request, compiled):
    with_engine = Engine(compiled(request.param), "cpu")
    yield tiny.golden(request.param), with_engine
    with_engine.close()


def error(golden: tiny.Golden, rows: np.ndarray, positions) -> float:
    difference = np.abs(rows[:, golden.columns] - golden.logits[list(positions)])
    return float(difference.max() / golden.std)


def test_prefill_of_all_positions(case):
    golden, engine = case
    engine.rollback(0)
    tokens = golden.tokens.tolist()
    rows = engine.score(tokens)
    assert rows.shape == (len(tokens), engine.config.vocab)
    assert error(golden, rows, range(len(tokens))) <= TOLERANCE
    assert rows.argmax(1).tolist() == golden.argmax.tolist()


def test_decode_after_prefill(case):
    golden, engine = case
    engine.rollback(0)
    tokens, start = golden.tokens.tolist(), 5
    rows = [engine.prefill(tokens[:start]).copy()]
    assert engine.greedy_token == int(rows[0].argmax())
    rows += [engine.decode(t).copy() for t in tokens[start:]]
    assert engine.tokens == tokens
    assert error(golden, np.stack(rows), range(start - 1, len(tokens))) <= TOLERANCE


@pytest.mark.parametrize("cuts", [(1, 2, 9, 26), (17, 18, 35), (33,)])
def test_prefill_in_uneven_chunks(case, cuts):
    golden, engine = case
    engine.rollback(0)
    tokens, start, rows, at = golden.tokens.tolist(), 0, [], []
    for end in [c for c in cuts if c < len(golden.tokens)] + [len(golden.tokens)]:
        rows.append(engine.prefill(tokens[start:end]).copy())
        at.append(end - 1)
        start = end
    assert error(golden, np.stack(rows), at) <= TOLERANCE


def test_rollback_forgets_what_followed(case):
    golden, engine = case
    engine.rollback(0)
    tokens = golden.tokens.tolist()
    engine.prefill(tokens[:20])
    engine.prefill([7, 8, 9, 10, 11])
    engine.rollback(20)
    row = engine.decode(tokens[20]).copy()
    assert error(golden, row[None], [20]) <= TOLERANCE
