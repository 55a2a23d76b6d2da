"""The scheduler over an engine that checks every step: answers, turns, limits, time, leaving and shutting down."""

from __future__ import annotations

import contextlib
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_batch import ToyBatchEngine, allowed, expected, hidden_of, logits_after

from mlcrt.runtime.sampler import Sampler, logprob
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.serve.interface import GenerationRequest, QueueFull, RequestRefused, SchedulerClosed
from mlcrt.serve.scheduler import BatchScheduler

VOCAB = 50
GREEDY = SamplingParams(temperature=0.0)
WAIT = 60  # seconds: far more than anything here takes


class Client:
    """Collects the events of one request. `held_after_first`: an engine that waits once the first has come, so that
    the request is under way for as long as the test wants it to be."""

    def __init__(self, held_after_first=None):
        self.events = []
        self.over = threading.Event()
        self.first = threading.Event()
        self.hold = held_after_first

    def __call__(self, event):
        assert not self.over.is_set(), "an event after the last"
        self.events.append(event)
        if self.hold is not None and not self.first.is_set():
            self.hold.held.clear()
        self.first.set()
        if event.finish_reason is not None:
            self.over.set()

    def wait(self):
        assert self.over.wait(WAIT), "the request did not end"
        return self

    @property
    def tokens(self):
        return [e.token for e in self.events if e.token is not None]

    @property
    def reason(self):
        return self.events[-1].finish_reason


@contextlib.contextmanager
def serving(engine=None, **settings):
    engine = engine or ToyBatchEngine()
    scheduler = BatchScheduler(engine, **settings)
    try:
        yield scheduler, engine
    finally:
        engine.held.set()
        scheduler.close(drain=False)
        assert engine.closed and not scheduler._thread.is_alive()


def request(prompt, max_tokens=8, **more):
    return GenerationRequest(prompt, more.pop("sampling", GREEDY), max_tokens, **more)


def start(scheduler, *args, held_after_first=None, **more):
    client = Client(held_after_first)
    client.handle = scheduler.submit(request(*args, **more), client)
    return client


def running(scheduler, count):
    """Wait until so many run."""
    end = time.monotonic() + WAIT
    while scheduler.stats()["running"] < count:
        assert time.monotonic() < end, "they were not admitted"
        time.sleep(0.001)


# --- answers ---


def test_answers_are_those_of_one_after_the_other():
    prompts = [[i, *range(1, 2 + 3 * i)] for i in range(1, 11)]
    with serving() as (scheduler, engine):
        engine.held.clear()
        clients = [start(scheduler, p, 5 + i) for i, p in enumerate(prompts)]
        engine.held.set()
        for i, (client, prompt) in enumerate(zip(clients, prompts, strict=True)):
            assert client.wait().tokens == expected(prompt, 5 + i, VOCAB)
            assert client.reason == "length"
            last = client.events[-1]
            assert (last.prompt_tokens, last.completion_tokens) == (len(prompt), 5 + i)
        stats = scheduler.stats()
        assert stats["finished"] == {"length": 10} and stats["running"] == stats["queued"] == 0
        assert stats["tokens_generated"] == sum(range(5, 15))
        assert max(decoding for _, decoding in engine.log) == 3


def test_a_stop_token_ends_the_answer_and_is_reported():
    answer = expected([7, 8, 9], 20, VOCAB)
    stop = frozenset({answer[4]})
    with serving() as (scheduler, _):
        client = start(scheduler, [7, 8, 9], 20, stop_token_ids=stop).wait()
    assert client.tokens == answer[: answer.index(answer[4]) + 1] and client.reason == "stop"


@pytest.mark.parametrize("size, count", [(64, 1), (63, 2), (60, 5)])
def test_an_answer_without_limit_ends_where_the_context_does(size, count):
    prompt = [i % VOCAB for i in range(size)]
    with serving() as (scheduler, _):
        client = start(scheduler, prompt, None).wait()
    assert client.tokens == expected(prompt, count, VOCAB) and client.reason == "length"


def test_sampling_with_a_seed_is_the_samplers():
    params = SamplingParams(
        temperature=1.3, top_p=0.9, seed=5, repetition_penalty=1.2, frequency_penalty=0.5, logit_bias={3: 4.0}
    )
    tokens, sampler = [4, 5, 6], Sampler(params, VOCAB, [4, 5, 6])
    for _ in range(12):
        tokens.append(sampler.sample(logits_after(tokens, VOCAB)))
    with serving() as (scheduler, _):
        client = start(scheduler, [4, 5, 6], 12, sampling=params).wait()
    assert client.tokens == tokens[3:]


def test_a_bias_acts_without_the_host_and_logprobs_are_the_models_own():
    params = SamplingParams(temperature=0.0, logit_bias={11: 100.0, 12: -100.0})
    with serving() as (scheduler, _):
        client = start(scheduler, [1, 2], 4, sampling=params, logprobs=3).wait()
    assert client.tokens == [11] * 4
    tokens = [1, 2]
    for event in client.events:
        assert event.logprob == logprob(logits_after(tokens, VOCAB), event.token, 3)
        tokens.append(event.token)


class Even:
    """Only even tokens, then 1 after `count` of them: finished."""

    def __init__(self, count):
        self.count, self.accepted = count, []

    def mask(self, out):
        ids = range(0, VOCAB, 2) if len(self.accepted) < self.count else [1]
        for token in ids:
            out[token // 32] |= np.array(1 << (token % 32), np.uint32).view(np.int32)

    def accept(self, token):
        self.accepted.append(token)

    @property
    def finished(self):
        return self.accepted[-1:] == [1]


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=2.0, seed=1)])
def test_a_constraint_decides_what_may_come(sampling):
    with serving() as (scheduler, _):
        both = Even(5), Even(3)
        clients = [(c, start(scheduler, [9, 9], 30, sampling=sampling, constraint=c)) for c in both]
        free = start(scheduler, [9, 9], 30).wait()
        for constraint, client in clients:
            client.wait()
            assert client.reason == "stop" and client.tokens == constraint.accepted
            assert len(client.tokens) == constraint.count + 1 and all(t % 2 == 0 for t in client.tokens[:-1])
        assert free.tokens == expected([9, 9], 30, VOCAB)


class Nothing(Even):
    def mask(self, out):
        if len(self.accepted) < self.count:
            super().mask(out)


class Broken(Even):
    def accept(self, token):
        raise ValueError("words of the prompt")


@pytest.mark.parametrize("kind, words", [(Nothing, "allows no token"), (Broken, r"^internal error \(ValueError\)$")])
def test_a_constraint_that_fails_ends_its_request_alone(kind, words):
    with serving() as (scheduler, engine):
        other = start(scheduler, [5], 30)
        client = start(scheduler, [9, 9], 30, constraint=kind(2)).wait()
        assert client.reason == "error"
        assert re.search(words, client.events[-1].error)
        assert other.wait().tokens == expected([5], 30, VOCAB)
        assert scheduler.stats()["running"] == 0 and not engine.open


def test_embeddings_are_the_mean_of_hidden_states():
    prompt = [i % VOCAB for i in range(40)]
    with serving() as (scheduler, _):
        start(scheduler, prompt, 3).wait()  # a known prefix must not be skipped
        found = scheduler.embeddings(prompt, WAIT)
    wanted = np.mean([hidden_of(prompt[: i + 1]) for i in range(40)], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.dtype == np.float32


# --- turns ---


def test_a_long_prompt_does_not_hold_up_answers():
    engine = ToyBatchEngine(context=512, chunk=32, reuse=False)
    with serving(engine, prefill_tokens=8) as (scheduler, _):
        writer = start(scheduler, [1], 200, held_after_first=engine)
        assert writer.first.wait(WAIT)
        reader = start(scheduler, [i % VOCAB for i in range(300)], 1)
        engine.held.set()
        reader.wait()
        assert reader.tokens == expected([i % VOCAB for i in range(300)], 1, VOCAB)
        writer.wait()
    both = [(prompt, decoding) for prompt, decoding in engine.log if prompt and decoding]
    assert len(both) >= 300 // 8 and all(prompt <= 8 and decoding == 1 for prompt, decoding in both)


def test_clients_take_turns_and_priorities_come_first():
    order = []

    def note(name):
        def on_event(event):
            if event.finish_reason:
                order.append(name)

        return on_event

    engine = ToyBatchEngine(slots=1)
    with serving(engine) as (scheduler, _):
        engine.held.clear()
        done = start(scheduler, [9], 1)
        running(scheduler, 1)
        for i in range(4):
            scheduler.submit(request([1], 1, client="greedy"), note(f"greedy{i}"))
        for i in range(2):
            scheduler.submit(request([2], 1, client="modest"), note(f"modest{i}"))
        scheduler.submit(request([3], 1, client="greedy", priority=-1), note("urgent"))
        engine.held.set()
        done.wait()
        scheduler.close(drain=True)
    assert order == ["urgent", "greedy0", "modest0", "greedy1", "modest1", "greedy2", "greedy3"]


def test_the_queue_has_a_limit_and_takes_all_or_none():
    engine = ToyBatchEngine(slots=2)
    with serving(engine, queue_limit=3) as (scheduler, _):
        engine.held.clear()
        clients = [Client() for _ in range(2)]
        scheduler.submit_all([request([i], 2) for i in range(2)], clients)  # at once: a step takes those that are there
        running(scheduler, 2)
        more = [Client() for _ in range(4)]
        with pytest.raises(QueueFull) as caught:
            scheduler.submit_all([request([9], 2)] * 4, more)
        assert 1 <= caught.value.retry_after_s <= 60
        assert scheduler.stats()["queued"] == 0 and scheduler.stats()["refused"] == 4
        scheduler.submit_all([request([9], 2)] * 3, more[:3])
        with pytest.raises(QueueFull):
            scheduler.submit(request([9], 2), more[3])
        engine.held.set()
        for client in [*clients, *more[:3]]:
            client.wait()
        assert not more[3].events


def test_samples_of_one_prompt_share_its_prefill():
    prompt = [i % VOCAB for i in range(50)]
    engine = ToyBatchEngine(slots=4)
    with serving(engine) as (scheduler, _):
        engine.held.clear()
        clients = [Client() for _ in range(4)]
        seeds = [SamplingParams(temperature=1.0, seed=i) for i in range(4)]
        scheduler.submit_all([request(prompt, 3, sampling=s) for s in seeds], clients)
        engine.held.set()
        for client in clients:
            client.wait()
        assert len({tuple(c.tokens) for c in clients}) > 1
    assert sum(prompt for prompt, _ in engine.log) == 50 + 3 * 2
    assert sorted(c.events[-1].cached_tokens for c in clients) == [0, 48, 48, 48]  # what was there after three chunks


# --- leaving ---


def test_who_cancels_frees_the_slot_within_one_step():
    engine = ToyBatchEngine(slots=1)
    with serving(engine) as (scheduler, _):
        client = start(scheduler, [1], None, held_after_first=engine)
        assert client.first.wait(WAIT)
        waiting = start(scheduler, [2], 2)
        client.handle.cancel()
        client.handle.cancel()
        assert len(engine.log) == 1
        engine.held.set()
        assert waiting.wait().tokens == expected([2], 2, VOCAB)
        assert client.wait().reason == "cancelled"
        # at most one step that had begun, then the two of the other request
        assert len(engine.log) <= 1 + 1 + 2
        client.handle.cancel()


def test_figures_when_the_last_one_has_left():
    """Nothing that was cancelled counts, neither before its last event nor until the next request."""
    engine = ToyBatchEngine(slots=1)
    with serving(engine) as (scheduler, _):
        figures = []
        seen = threading.Event()

        class Leaving(Client):
            def __call__(self, event):
                if event.finish_reason is not None:
                    figures.append(scheduler.stats())
                    seen.set()
                super().__call__(event)

        client = Leaving(engine)
        client.handle = scheduler.submit(request([1], None), client)
        assert client.first.wait(WAIT)
        client.handle.cancel()
        engine.held.set()
        assert seen.wait(WAIT)
        (stats,) = figures
        assert (stats["running"], stats["queued"], stats["kv_tokens"]) == (0, 0, 0)
        assert stats["finished"] == {"cancelled": 1} and stats["kv_cached_tokens"] > 0


def test_cancelling_what_waits_and_what_is_being_read():
    engine = ToyBatchEngine(slots=1, context=600, chunk=4)
    with serving(engine) as (scheduler, _):
        engine.held.clear()  # in the first of 125 steps that the long prompt takes
        reading = start(scheduler, [i % VOCAB for i in range(500)], 5)
        waiting = start(scheduler, [3], 5)
        running(scheduler, 1)
        for client in (waiting, reading):
            client.handle.cancel()
        engine.held.set()
        for client in (waiting, reading):
            assert client.wait().reason == "cancelled" and client.tokens == []
        assert sum(prompt for prompt, _ in engine.log) <= 4
        assert start(scheduler, [4], 3).wait().tokens == expected([4], 3, VOCAB)


def test_a_receiver_that_fails_has_left():
    def burst(event):
        raise ConnectionError("gone")

    with serving(ToyBatchEngine(slots=1)) as (scheduler, engine):
        scheduler.submit(request([1], None), burst)
        assert start(scheduler, [2], 3).wait().tokens == expected([2], 3, VOCAB)
        assert scheduler.stats()["finished"] == {"cancelled": 1, "length": 1}


def test_time_runs_out_while_waiting_and_while_writing():
    now = [0.0]
    engine = ToyBatchEngine(slots=1, context=100_000, delay=0.001)
    with serving(engine, clock=lambda: now[0]) as (scheduler, _):
        writing = start(scheduler, [1], None, timeout_s=10)
        assert writing.first.wait(WAIT)
        waiting = start(scheduler, [2], 3, timeout_s=5)
        patient = start(scheduler, [3], 3, timeout_s=100)
        now[0] = 6.0
        assert waiting.wait().reason == "timeout" and waiting.tokens == []
        assert not writing.over.is_set()
        now[0] = 11.0
        assert writing.wait().reason == "timeout"
        assert patient.wait().tokens == expected([3], 3, VOCAB)
        engine.held.clear()
        with pytest.raises(TimeoutError):
            scheduler.embeddings([1, 2], 0.05)
        engine.held.set()


# --- ending ---


def test_draining_finishes_what_was_accepted():
    with serving(ToyBatchEngine(slots=2, delay=0.001)) as (scheduler, engine):
        clients = [start(scheduler, [i], 20) for i in range(6)]
        scheduler.close(drain=True)
        assert all(c.over.is_set() and c.tokens == expected([i], 20, VOCAB) for i, c in enumerate(clients))
        for call in (lambda: scheduler.submit(request([1]), print), lambda: scheduler.embeddings([1])):
            with pytest.raises(SchedulerClosed, match="shutting down"):
                call()


def test_closing_at_once_and_draining_too_long_cancel():
    for arguments in ({"drain": False}, {"drain": True, "timeout_s": 0.05}):
        with serving(ToyBatchEngine(slots=2, context=100_000, delay=0.001)) as (scheduler, _):
            clients = [start(scheduler, [i], None) for i in range(5)]
            scheduler.close(**arguments)
            assert [c.reason for c in clients] == ["cancelled"] * 5


def test_a_step_that_fails_ends_its_requests_and_no_others():
    engine = ToyBatchEngine(slots=1)
    engine.fail_at = {2}
    with serving(engine) as (scheduler, _):
        first, second = start(scheduler, [1], 9), start(scheduler, [2], 9)
        assert first.wait().reason == "error" and len(first.tokens) == 1
        assert first.events[-1].error == "internal error (RuntimeError)"  # nothing of what the engine said
        assert second.wait().tokens == expected([2], 9, VOCAB)


def test_an_engine_that_keeps_failing_is_given_up():
    engine = ToyBatchEngine(slots=1)
    engine.fail_at = set(range(1, 100))
    with serving(engine) as (scheduler, _):
        engine.held.clear()
        clients = [start(scheduler, [i], 9) for i in range(6)]
        engine.held.set()
        assert [c.wait().reason for c in clients] == ["error"] * 6
        assert len(engine.log) == 3
        with pytest.raises(SchedulerClosed, match="engine failed"):
            scheduler.submit(request([1]), print)


@pytest.mark.parametrize(
    "change, words, code",
    [
        ({"prompt": []}, "no tokens", "invalid_value"),
        ({"prompt": [1] * 65}, "65 tokens, and the context holds 64", "context_length_exceeded"),
        ({"prompt": [1, 50]}, "outside the vocabulary of 50", "invalid_value"),
        ({"prompt": [-1]}, "outside the vocabulary", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more", "invalid_value"),
        ({"sampling": SamplingParams(logit_bias={50: 1.0})}, "logit_bias names token 50", "invalid_value"),
    ],
)
def test_requests_that_can_never_run(change, words, code):
    with serving() as (scheduler, engine):
        with pytest.raises(RequestRefused, match=words) as caught:
            scheduler.submit(GenerationRequest(**{"prompt": [1], **change}), print)
        assert caught.value.code == code and not engine.log


# --- anything at any time ---


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("embed"), st.integers(1, 40)),
        st.tuples(st.just("run"), st.integers(1, 3)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, slots=st.integers(1, 4), chunk=st.integers(1, 20), reuse=st.booleans())
def test_whatever_happens_answers_are_right_and_nothing_is_left(steps, slots, chunk, reuse):
    """Against the definition of a greedy answer: every request ends once, with the answer it would have alone (or a
    beginning of it if cancelled), and all slots come back."""
    engine = ToyBatchEngine(slots=slots, chunk=chunk, reuse=reuse)
    clients, embeddings = [], []
    with serving(engine, queue_limit=6, prefill_tokens=chunk) as (scheduler, _):
        for kind, *arguments in steps:
            if kind == "submit":
                size, count, client, alike = arguments
                prompt = [t % VOCAB for t in range(size)] if alike else [(size * 7 + t) % VOCAB for t in range(size)]
                collected = Client()
                try:
                    handle = scheduler.submit(request(prompt, count, client=str(client)), collected)
                except QueueFull:
                    continue
                clients.append((collected, handle, prompt, count, []))
            elif kind == "cancel" and clients:
                _, handle, *_, cancelled = clients[arguments[0] % len(clients)]
                handle.cancel()
                cancelled.append(True)
            elif kind == "embed":
                prompt = [t % VOCAB for t in range(arguments[0])]
                with contextlib.suppress(QueueFull):
                    embeddings.append((prompt, scheduler.embeddings(prompt, WAIT)))
            elif kind == "run":
                goal = len(engine.log) + arguments[0]
                while len(engine.log) < goal and scheduler.stats()["running"]:
                    pass
        scheduler.close(drain=True)
        stats = scheduler.stats()
    for client, _, prompt, count, cancelled in clients:
        answer = expected(prompt, count, VOCAB)
        if client.reason == "cancelled":
            assert cancelled and client.tokens == answer[: len(client.tokens)]
        else:
            assert client.reason == "length" and client.tokens == answer
    for prompt, found in embeddings:
        wanted = np.mean([hidden_of(prompt[: i + 1]) for i in range(len(prompt))], axis=0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert stats["running"] == stats["queued"] == 0
    assert sum(stats["finished"].values()) == len(clients) + len(embeddings)


def test_masks_mean_what_the_interface_says():
    mask = np.zeros(2, np.int32)
    Even(9).mask(mask)
    assert allowed(mask, VOCAB).tolist() == [t % 2 == 0 for t in range(VOCAB)]
