"""The generation loop: events, ends, prefix reuse, broken-off calls."""

from __future__ import annotations

import pytest
from toy_engine import Engine

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.generate import Generation, common_prefix
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.tokenizer import ModelTokenizer

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def parts(dist):
    engine = Engine(dist)
    return engine, ModelTokenizer(dist, engine.config.eos)


def by_hand(engine, prompt, limit):
    """Greedy tokens from the logits alone, without cache, sampler or loop."""
    tokens = list(prompt)
    for _ in range(limit):
        token = int(engine.logits_after(tokens).argmax())
        if token in engine.config.eos:
            return tokens[len(prompt) :], True
        tokens.append(token)
    return tokens[len(prompt) :], False


def test_events_are_the_models_tokens(parts):
    engine, tokenizer = parts
    ended = 0
    for word in "abcdefgh":
        prompt = tokenizer.encode(f"{word} prime number")
        expected, end = by_hand(engine, prompt, 40)
        generation = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=40))
        events = list(generation)
        assert generation.generated == expected == [e.token for e in events if e.token not in engine.config.eos]
        assert "".join(e.text for e in events) == generation.text == tokenizer.decode(expected)
        assert [e.finish_reason for e in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason == generation.finish_reason == ("stop" if end else "length")
        assert generation.usage.completion_tokens == len(events)
        ended += end
    assert 0 < ended < 8  # both kinds of end were seen


def test_only_the_new_part_of_a_prompt_runs(parts):
    engine, tokenizer = parts
    prompt = tokenizer.encode("The quick brown fox jumps over the lazy dog")
    assert (
        common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2 and common_prefix([1], [1, 2]) == 1 and common_prefix([], [1]) == 0
    )
    first = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=4))
    list(first)
    again = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=4))
    list(again)
    assert again.generated == first.generated
    assert (again.usage.reused_tokens, again.usage.prefill_tokens) == (len(prompt) - 1, 1)
    longer = Generation(engine, tokenizer, [*prompt, *first.generated[:3], 5, 6], GREEDY.but(max_tokens=4))
    list(longer)
    assert (longer.usage.reused_tokens, longer.usage.prefill_tokens) == (len(prompt) + 3, 2)
    assert longer.generated == by_hand(engine, longer.prompt, 4)[0]
    other = Generation(engine, tokenizer, [9, *prompt], GREEDY.but(max_tokens=4))
    list(other)
    assert other.usage.reused_tokens == 0 and other.generated == by_hand(engine, other.prompt, 4)[0]


def test_stop_strings_end_before_themselves(parts):
    engine, tokenizer = parts
    prompt = tokenizer.encode("stop here")
    free = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=30, ignore_eos=True))
    list(free)
    stop = free.text[11:16]
    at = free.text.find(stop)
    generation = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=30, ignore_eos=True, stop=(stop, "zzzz")))
    shown = ""
    for event in generation:
        shown += event.text
        assert free.text.startswith(shown) and len(shown) <= at
    assert shown == generation.text == free.text[:at] and generation.finish_reason == "stop"
    # a stop string that never comes is held back in part, and given in the end
    held = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=5, stop=free.text + "\0"))
    texts = [event.text for event in held]
    assert "".join(texts) == tokenizer.decode(held.generated) and set(texts[:-1]) == {""} != {texts[-1]}


def test_a_special_token_may_be_a_stop_string(parts):
    engine, tokenizer = parts
    engine.toy["eos"], engine.toy["ends"] = [], 0
    bias = {tokenizer.raw.token_to_id("<|im_start|>"): 100.0}
    generation = Generation(engine, tokenizer, [5], GREEDY.but(logit_bias=bias, stop="<|im_start|>", ignore_eos=True))
    assert [e.finish_reason for e in generation] == ["stop"] and generation.text == ""


def test_ignoring_the_end_and_counting_to_the_limit(parts):
    engine, tokenizer = parts
    engine.toy["ends"] = 2
    for seed in range(5):
        params = SamplingParams(seed=seed, max_tokens=20, ignore_eos=True)
        generation = Generation(engine, tokenizer, [3 + seed, 4], params)
        assert len(list(generation)) == 20 and generation.finish_reason == "length" and generation.notice is None


def test_a_full_context_ends_the_answer_with_a_sentence(parts):
    engine, tokenizer = parts
    engine.context, engine.toy["ends"] = 20, 0
    generation = Generation(engine, tokenizer, list(range(3, 17)), GREEDY)
    assert len(list(generation)) == 7  # six fill the cache, the seventh needs no room
    assert generation.finish_reason == "length" and "context of 20 tokens is full" in generation.notice
    assert len(engine.tokens) == 20
    exact = Generation(engine, tokenizer, list(range(3, 23)), GREEDY)
    assert len(list(exact)) == 1 and exact.finish_reason == "length"
    before = list(engine.tokens)
    with pytest.raises(MlcrtError, match="21 tokens but the context holds 20.*--context 277"):
        Generation(engine, tokenizer, list(range(3, 24)), GREEDY)
    with pytest.raises(MlcrtError, match="empty"):
        Generation(engine, tokenizer, [], GREEDY)
    with pytest.raises(UsageError, match="logit_bias"):
        Generation(engine, tokenizer, [3], GREEDY.but(logit_bias={engine.config.vocab: 1.0}))
    assert engine.tokens == before


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_call_broken_off_half_way_leaves_a_consistent_cache(parts, call):
    engine, tokenizer = parts
    engine.toy["ends"] = 0
    prompt = tokenizer.encode("The quick brown fox")
    expected, _ = by_hand(engine, prompt, 8)
    engine.interrupt_at = call
    generation = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=8))
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert engine.tokens == [*prompt, *expected][: len(prompt) + call - 2] if call > 1 else engine.tokens == []
    assert generation.generated == expected[: call - 1]
    again = Generation(engine, tokenizer, prompt, GREEDY.but(max_tokens=8))
    list(again)
    assert again.generated == expected


def test_logprobs(parts):
    engine, tokenizer = parts
    events = list(Generation(engine, tokenizer, [5, 6], GREEDY.but(max_tokens=5, logprobs=3)))
    for event in events:
        assert event.logprob.token == event.token == event.logprob.top[0][0] and len(event.logprob.top) == 3
        assert event.logprob.logprob == event.logprob.top[0][1] <= 0
    assert next(iter(Generation(engine, tokenizer, [5, 6], GREEDY))).logprob is None


def test_equal_seeds(parts):
    engine, tokenizer = parts

    def run(seed):
        generation = Generation(engine, tokenizer, [5, 6], SamplingParams(seed=seed, max_tokens=15, ignore_eos=True))
        list(generation)
        return generation.text

    assert run(1) == run(1) != run(2)
