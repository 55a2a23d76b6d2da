"""The host's side of drawing on the device: a device made of numpy, which refuses tokens at will."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.runtime.drawing import Drawing, device_settings, on_device
from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams

VOCAB = 50


def logits_after(tokens) -> np.ndarray:
    return np.random.default_rng(tokens).standard_normal(VOCAB).astype(np.float32) * 3


class Tensor(SimpleNamespace):
    def copyfrom(self, values: np.ndarray) -> None:
        self.values = values.copy()


class Engine:
    """An engine and its runtime in one. The cache is `history`: what was run at each position, right or wrong."""

    def __init__(self, params: SamplingParams, context: int, refuses):
        self.params, self.context, self.refuses = params, context, refuses
        self.runtime, self.config = self, SimpleNamespace(vocab=VOCAB)
        self.tokens, self.history, self.position, self.token, self.steps = [], {}, 0, 0, 0
        self.settings, self.kept, self.outcome = (Tensor(values=None) for _ in range(3))
        self._drawing, self._state, self._token = [self.settings, self.kept, self.outcome], ["token"], None

    def errors(self):
        import contextlib

        return contextlib.nullcontext()

    def write(self, tensor, view, value: int) -> None:
        self.token = value

    def read(self, tensor) -> np.ndarray:
        return tensor.values[None]

    def _begin(self) -> None:
        self.position = len(self.tokens)

    def _admit(self, tokens) -> None:
        assert len(self.tokens) < self.context

    def _run(self) -> np.ndarray:
        assert self.position < self.context, "a step was started that has no room in the cache"
        self.history[self.position] = self.token
        self.position += 1
        self.steps += 1
        return logits_after([self.history[i] for i in range(self.position)])

    def decode(self, token: int) -> np.ndarray:
        self._begin()
        self.token = token
        logits = self._run()
        self.tokens.append(token)
        return logits

    def _draw(self) -> None:
        logits = self._run()
        self.token = int(logits.argmax())
        if self.outcome.values[0] < 0:
            return
        self.kept.values = logits
        if self.refuses(self.position):
            self.outcome.values[0] = -1
            return
        sampler = Sampler(self.params, VOCAB)
        sampler.drawn = int(self.outcome.values[1])
        self.token = sampler.sample(logits)
        self.outcome.values[:] = self.token, self.outcome.values[1] + 1

    def post(self, tensor) -> int:
        return int(tensor.values[0])

    def collect(self, ticket: int) -> int:
        return ticket


def host(params: SamplingParams, count: int) -> list[int]:
    sampler, tokens = Sampler(params, VOCAB), [7]
    while len(tokens) < count:
        tokens.append(sampler.sample(logits_after(tokens)))
    return tokens


PARAMS = st.builds(SamplingParams, seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 0.7, 1.5]))


@settings(max_examples=60, deadline=None)
@given(PARAMS, st.sets(st.integers(0, 30)), st.integers(2, 30), st.integers(0, 3))
def test_tokens_are_the_hosts_whichever_the_device_refuses(params, refused, count, room):
    engine = Engine(params, count + room - 1, lambda position: position in refused)
    drawing, tokens = Drawing(engine, Sampler(params, VOCAB)), [7]
    while len(tokens) < count:
        tokens.append(drawing.after(tokens[-1], len(tokens) + 1 == count))
    assert tokens == host(params, count)
    assert engine.tokens == tokens[:-1] == [engine.history[i] for i in range(len(tokens) - 1)]
    assert drawing.refused <= len(refused)


def test_one_step_per_token_and_none_after_the_last():
    engine = Engine(SamplingParams(seed=1), 100, lambda position: False)
    drawing, tokens = Drawing(engine, Sampler(engine.params, VOCAB)), [7]
    while len(tokens) < 21:
        tokens.append(drawing.after(tokens[-1], len(tokens) == 20))
        assert engine.steps == len(tokens) - (len(tokens) == 21)
    assert drawing.refused == 0


def test_a_device_that_always_refuses_is_left_alone_for_longer_and_longer():
    engine = Engine(SamplingParams(seed=1), 500, lambda position: True)
    drawing, tokens = Drawing(engine, Sampler(engine.params, VOCAB)), [7]
    while len(tokens) <= 400:
        tokens.append(drawing.after(tokens[-1]))
    assert drawing.refused == 12  # of tokens 1, 2, 4, 8 … 64, 128, 192, 256 …
    assert engine.steps == 400 + drawing.refused  # each refusal costs the step behind it
    assert tokens == host(engine.params, 401)


def test_an_engine_that_went_elsewhere_meanwhile():
    engine = Engine(SamplingParams(seed=1), 100, lambda position: False)
    sampler = Sampler(engine.params, VOCAB)
    drawing = Drawing(engine, sampler)
    token = drawing.after(drawing.after(7))
    assert engine.position == 3  # the step after it is under way
    del engine.tokens[1:]
    other = Sampler(engine.params, VOCAB)
    other.drawn = sampler.drawn
    assert drawing.after(token + 1) == other.sample(logits_after([7, token + 1]))


def test_broken_logits_are_an_error(monkeypatch):
    engine = Engine(SamplingParams(seed=1), 100, lambda position: True)
    drawing = Drawing(engine, Sampler(engine.params, VOCAB))
    monkeypatch.setattr("test_drawing.logits_after", lambda tokens: np.full(VOCAB, np.nan, np.float32))
    with pytest.raises(MlcrtError, match="damaged"):
        drawing.after(7)


@pytest.mark.parametrize(
    "kw",
    [{"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"logit_bias": {3: 1.0}},
     {"logprobs": 0}, {"temperature": 1e-30}, {"temperature": 1e30}],
)  # fmt: skip
def test_what_the_host_has_to_do(kw):
    assert not on_device(Sampler(SamplingParams(**kw), VOCAB))
    assert on_device(Sampler(SamplingParams(top_k=5, min_p=0.1, seed=3), VOCAB))


def test_settings_of_the_device():
    values = device_settings(Sampler(SamplingParams(temperature=0.5, top_p=0.9, top_k=7, seed=2**63 + 5), VOCAB))
    assert values.dtype == np.int32 and values.shape == (8,)
    np.testing.assert_array_equal(values[:4].view(np.float32), np.float32([2.0, 0.9, -3.4e38, 1.0]))
    assert values[4] == 7 and values[5:7].view(np.uint32).tolist() == [5, 2**31]
    greedy = device_settings(Sampler(SamplingParams(temperature=0, top_k=7), VOCAB))
    np.testing.assert_array_equal(greedy[:4].view(np.float32), np.float32([1.0, 2.0, -3.4e38, 0.0]))
    assert greedy[4] == 1
