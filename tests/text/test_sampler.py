"""The sampler against a reference that sorts everything in Python, and against counted draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime import sampler
from mlcrt.runtime.sampler import Sampler, logprob
from mlcrt.runtime.sampling import SamplingParams, parse_logit_bias
from mlcrt.runtime.threefry import threefry, uniform


def reference(logits, params: SamplingParams, prompt=(), answer=()) -> dict[int, float]:
    """Token → probability, by the definitions: penalties, bias, temperature, top-k, top-p, min-p. Ties stay."""
    values = {i: float(x) for i, x in enumerate(logits)}
    for i in {*prompt, *answer}:
        values[i] = values[i] / params.repetition_penalty if values[i] > 0 else values[i] * params.repetition_penalty
    for i in set(answer):
        values[i] -= params.frequency_penalty * list(answer).count(i) + params.presence_penalty
    for i, bias in params.logit_bias.items():
        values[i] += bias
    if params.temperature == 0:
        return {max(values, key=lambda i: (values[i], -i)): 1.0}
    top = max(values.values())
    odds = {i: math.exp((x - top) / params.temperature) for i, x in values.items()}
    order = sorted(odds, key=lambda i: -odds[i])
    if params.top_k:
        last = odds[order[min(params.top_k, len(order)) - 1]]
        order = [i for i in order if odds[i] >= last]
    if params.top_p < 1:
        need, kept, mass = params.top_p * sum(odds[i] for i in order), [], 0.0
        for i in order:
            if mass >= need and odds[i] < odds[kept[-1]]:
                break
            kept.append(i)
            mass += odds[i]
        order = kept
    order = [i for i in order if odds[i] >= params.min_p]
    total = sum(odds[i] for i in order)
    return {i: odds[i] / total for i in order if odds[i] > 0}


def limit(degrees: int) -> float:
    """The chi-square value that is exceeded once in a million (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


def check_draws(logits, params, prompt=(), answer=(), draws=1500):
    expected = reference(logits, params, prompt, answer)
    sampler = Sampler(params, len(logits), prompt)
    for token in answer:
        sampler.accept(token)
    penalised = sampler._penalised(np.asarray(logits, np.float32)).copy()
    counts = np.bincount([sampler._choose(penalised) for _ in range(draws)], minlength=len(logits))
    assert set(np.flatnonzero(counts)) <= set(expected)
    rare = [i for i, p in expected.items() if p * draws < 5]
    cells = [(counts[i], p * draws) for i, p in expected.items() if p * draws >= 5]
    if rare:
        cells.append((sum(counts[i] for i in rare), max(sum(expected[i] for i in rare) * draws, 1.0)))
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    assert chi_square < limit(max(len(cells) - 1, 1)), (counts, expected)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 7, 500]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.25]),
    logit_bias=st.dictionaries(st.integers(0, 11), st.sampled_from([-100.0, -1.0, 2.0]), max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
TOKENS = st.lists(st.integers(0, 11), max_size=6)


# Logits on a coarse grid, so that ties happen and no probability lies within rounding of a filter's edge by accident.
@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(-9, 9), min_size=12, max_size=12), PARAMS, TOKENS, TOKENS)
def test_draws_follow_the_reference(grid, params, prompt, answer):
    rounded = [x * 0.37 for x in grid]
    check_draws(rounded, params, prompt, answer, 600)


@pytest.mark.parametrize(
    "kw", [{}, {"top_p": 1.0}, {"top_p": 0.6}, {"top_k": 40, "top_p": 1.0}, {"min_p": 0.2, "top_p": 1.0}]
)
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_large_vocabulary(kw, spread):
    logits = np.random.default_rng(1).normal(size=3001).astype(np.float32) * spread
    logits[7] = logits[2999] = logits.max() + 2
    check_draws(logits, SamplingParams(temperature=0.9, seed=5, **kw), draws=4000)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=12, max_size=12), PARAMS, TOKENS, TOKENS)
def test_penalties_and_bias_by_their_definitions(grid, params, prompt, answer):
    logits = np.array(grid, np.float32) * 0.37
    sampler = Sampler(params, 12, prompt)
    for token in answer:
        sampler.accept(token)
    for i, got in enumerate(sampler._penalised(logits)):
        value, penalty = float(logits[i]), params.repetition_penalty
        if i in prompt or i in answer:
            value = value / penalty if value > 0 else value * penalty
        if i in answer:
            value -= answer.count(i) * params.frequency_penalty + params.presence_penalty
        assert got == pytest.approx(value + params.logit_bias.get(i, 0.0), abs=1e-4)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_random_numbers_are_the_published_ones(key, counter, words):
    """Known answers of Random123 for threefry2x32 with 20 rounds."""
    assert threefry(key, counter) == words


def test_random_numbers_are_uniform():
    numbers = np.array([uniform(2**63 + 5, i) for i in range(4000)])
    assert 0 <= numbers.min() < 0.002 and 0.998 < numbers.max() < 1
    counts = np.histogram(numbers, 40, (0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < limit(39)


@pytest.mark.parametrize("reach", [1.0, 4.0, 16.0])
@pytest.mark.parametrize(
    "kw",
    [{}, {"top_p": 0.9}, {"top_k": 5}, {"top_k": 40, "top_p": 0.7}, {"min_p": 0.05}, {"min_p": 1e-4, "top_p": 0.99}],
)
def test_leaving_out_the_unlikely_changes_no_draw(monkeypatch, kw, reach):
    """With a short reach many draws could depend on what was left out, and are made from all tokens."""
    draw = np.random.default_rng(3)
    params = SamplingParams(temperature=0.8, seed=11, **kw)
    rows = [(draw.normal(size=3000) * scale).astype(np.float32) for scale in (0.5, 4, 16, 48) for _ in range(60)]
    rows += [np.round(row, 1) for row in rows[60:120]]  # equal logits
    whole = Sampler(params, 3000)
    monkeypatch.setattr(whole, "_draw_from_few", lambda *_: None)
    expected = [whole.sample(row) for row in rows]
    monkeypatch.setattr(sampler, "_REACH", reach)
    short, few = Sampler(params, 3000), []
    real = short._draw_from_few
    monkeypatch.setattr(short, "_draw_from_few", lambda *a: few.append(real(*a)) or few[-1])
    assert [short.sample(row) for row in rows] == expected
    if reach == 16.0:
        assert any(token is not None for token in few), "some draws should look at a few tokens only"
    if reach == 1.0 and not kw:
        assert None in few


def test_equal_seeds_give_equal_tokens():
    logits = np.random.default_rng(0).normal(size=(40, 500)).astype(np.float32)

    def run(seed):
        sampler = Sampler(SamplingParams(seed=seed, temperature=1.0, repetition_penalty=1.1), 500)
        return [sampler.sample(row) for row in logits]

    assert run(3) == run(3) != run(4)
    assert run(None) != run(None)


def test_greedy_takes_the_first_of_the_best_and_leaves_the_logits_alone():
    logits = np.array([0, 5, 5, 1], np.float32)
    kept = logits.copy()
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=2.0, logit_bias={0: 4.5}), 4)
    assert [sampler.sample(logits) for _ in range(3)] == [1, 2, 0]
    assert (logits == kept).all()


def test_hot_and_cold():
    logits = np.array([0, 1, 50, -np.inf], np.float32)
    assert Sampler(SamplingParams(temperature=1e-300, seed=0), 4).sample(logits) == 2
    hot = Sampler(SamplingParams(temperature=1e30, top_p=1.0, seed=0), 4)
    assert {hot.sample(logits) for _ in range(200)} == {0, 1, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_broken_logits(bad, temperature):
    logits = np.zeros(100, np.float32)
    logits[60] = bad
    with pytest.raises(MlcrtError, match="damaged"):
        Sampler(SamplingParams(temperature=temperature), 100).sample(logits)
    with pytest.raises(MlcrtError, match="damaged"):
        Sampler(SamplingParams(), 100).sample(np.full(100, -np.inf, np.float32))
    with pytest.raises(MlcrtError, match="shape"):
        Sampler(SamplingParams(), 100).sample(np.zeros(99, np.float32))


def test_logprobs_are_those_of_the_model():
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32) * 4
    exact = logits.astype(np.float64) - math.log(np.exp(logits.astype(np.float64)).sum())
    got = logprob(logits, 17, 5)
    assert got.token == 17 and got.logprob == pytest.approx(exact[17], abs=1e-5)
    assert [t for t, _ in got.top] == list(np.argsort(-exact)[:5])
    assert [x for _, x in got.top] == pytest.approx(sorted(exact)[::-1][:5], abs=1e-5)
    assert logprob(logits, 17).top == () and len(logprob(logits[:3], 1, 5).top) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
        ("temperature", True), ("temperature", None), ("top_p", 0), ("top_p", 1.01), ("top_k", -1), ("top_k", 1.5),
        ("min_p", -0.1), ("min_p", 2), ("repetition_penalty", 0), ("presence_penalty", 2.1), ("frequency_penalty", -3),
        ("logit_bias", [1]), ("logit_bias", {"x": 1}), ("logit_bias", {-1: 1}), ("logit_bias", {1: 101}),
        ("seed", -1), ("seed", 2**64), ("seed", 1.0), ("max_tokens", 0), ("stop", [""]), ("stop", [1]),
        ("ignore_eos", 1), ("logprobs", 21), ("nonsense", 1),
    ],
)  # fmt: skip
def test_settings_are_checked(name, value):
    with pytest.raises(UsageError, match=name) as caught:
        SamplingParams().but(**{name: value})
    assert "\n" not in str(caught.value)


def test_bias_must_be_in_the_vocabulary():
    with pytest.raises(UsageError, match="tokens 0 to 9"):
        Sampler(SamplingParams(logit_bias={10: 1}), 10)


def test_settings_from_text():
    params = SamplingParams()
    assert params.but_parsed("temperature", "0.5").temperature == 0.5
    assert params.but_parsed("seed", "12").seed == 12
    assert params.but(seed=1).but_parsed("seed", "none").seed is None
    assert params.but_parsed("stop", "é\\n").but_parsed("stop", "b").stop == ("é\n", "b")
    assert params.but_parsed("logit_bias", "5=-2").but_parsed("logit_bias", "6=1").logit_bias == {5: -2.0, 6: 1.0}
    assert params.but_parsed("ignore_eos", "true").ignore_eos is True
    assert params.but(stop="x", logit_bias={"3": 1}).stop == ("x",)
    with pytest.raises(UsageError, match="did you mean temperature"):
        params.but_parsed("temperatur", "1")
    with pytest.raises(UsageError, match="42=-100"):
        parse_logit_bias(["a=b"])
