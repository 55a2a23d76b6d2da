"""Many sequences at once: each comes out as if it were alone, to the bit, whatever shares the step or the cache."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.batch_engine import Choice, PagedEngine, SlotEngine, Work, open_batch_engine
from mlcrt.runtime.engine import Engine
from mlcrt.targets.cpu import attributes, runtime
from mlcrt.targets.cpu.architecture import AMX_PRODUCT

CASE = "llama3_gqa7"
GREEDY, LOGITS = Choice(), Choice(logits=True)
VECTORS = "cpu:x86-64-v4" if attributes("").amx else "cpu"  # without tile registers


@pytest.fixture(scope="session")
def compiled(compiled):
    """Models with kernels for many sequences."""
    return functools.partial(compiled, slots=None)


def prompts_of(engine, count: int, seed: int = 1) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    sizes = [1, 2, 15, 16, 17, 33, 40, 24][:count]
    return [draw.integers(3, engine.vocab, size).tolist() for size in sizes]


def prefill(engine, slot, prompt: list[int], piece: int, choice=LOGITS):
    """Run what is missing of a prompt in pieces; what was chosen after it."""
    result = None
    while len(slot.tokens) < len(prompt):
        start = len(slot.tokens)
        part = prompt[start : start + piece]
        last = start + len(part) == len(prompt)
        result = engine.step([Work(slot, part, True, choice if last else None)])
    return result.chosen[slot.index]


def alone(engine, prompt: list[int], count: int, piece: int = 1000) -> list[np.ndarray]:
    """Logits of a greedy answer's steps, nothing else in the engine."""
    slot = engine.admit(prompt, len(prompt) + count, fresh=True)
    chosen = prefill(engine, slot, prompt, piece)
    rows = [chosen.logits.copy()]
    while len(rows) < count:
        chosen = engine.step([Work(slot, [chosen.token], False, LOGITS)]).chosen[slot.index]
        rows.append(chosen.logits.copy())
    engine.release(slot)
    return rows


def together(engine, prompts: list[list[int]], count: int) -> list[list[np.ndarray]]:
    """The same for all at once: prompts in pieces, each beginning a step after the one before, while others decode."""
    slots, rows, token = [], [[] for _ in prompts], {}
    while any(len(r) < count for r in rows):
        if len(slots) < len(prompts):
            prompt = prompts[len(slots)]
            slots.append(engine.admit(prompt, len(prompt) + count, fresh=True))
        work = []
        for slot, prompt, row in zip(slots, prompts, rows, strict=False):
            start = len(slot.tokens)
            if start < len(prompt):
                part = prompt[start : start + 7]
                work.append(Work(slot, part, True, LOGITS if start + len(part) == len(prompt) else None))
            elif len(row) < count:
                work.append(Work(slot, [token[slot.index]], False, LOGITS))
        result = engine.step(work)
        for i, slot in enumerate(slots):
            if slot.index in result.chosen:
                rows[i].append(result.chosen[slot.index].logits.copy())
                token[slot.index] = result.chosen[slot.index].token
                assert token[slot.index] == rows[i][-1].argmax()
    for slot in slots:
        engine.release(slot)
    return rows


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def engine(compiled):
    engine = open_batch_engine(compiled(CASE), "cpu", context=100, slots=8)
    yield engine
    engine.close()


@pytest.mark.parametrize("case", tiny.cases())
def test_every_family_is_the_same_alone_and_in_a_batch(compiled, case):
    """Sliding windows, soft caps, norms of q and k, routed experts: to the bit; and near the one-sequence engine."""
    engine = open_batch_engine(compiled(case), "cpu", context=60, slots=8)
    single = Engine(compiled(case), "cpu", context=60)
    prompts = prompts_of(engine, 8)
    rows = together(engine, prompts, 12)
    for prompt, found in list(zip(prompts, rows, strict=True))[::3]:
        assert same(found, alone(engine, prompt, 12))
        single.rollback(0)
        logits = single.prefill(prompt)
        for row in found:
            assert np.abs(row - logits).max() < 1e-4 * row.std()
            logits = single.decode(int(row.argmax()))
    engine.close()


@pytest.mark.parametrize("quantization", ["q4f16_1", "q3f16_1", "q4f16_asym", "q8f16_1", "q0f16"])
def test_every_kind_of_weight_is_the_same_alone_in_a_batch_and_in_the_one_sequence_engine(compiled, quantization):
    """With vectors alone; on tile registers one sequence has another order of additions than a batch has."""
    dist = compiled("qwen3_norms", quantization, target=VECTORS)
    engine, single = open_batch_engine(dist, "cpu", context=60, slots=8), Engine(dist, "cpu", context=60)
    prompts = prompts_of(engine, 8)
    for prompt, found in zip(prompts[1:], together(engine, prompts, 8)[1:], strict=True):
        assert same(found, one_sequence(single, prompt, 8))
    engine.close()


@pytest.mark.parametrize("quantization", ["q4f16_asym", "q8f16_1"])
def test_tile_registers_are_the_same_alone_and_in_a_batch(compiled, quantization):
    """To the bit; and near the one-sequence engine: here and there a key or value is rounded to the other float16."""
    dist = compiled("qwen3_norms", quantization)
    engine, single = open_batch_engine(dist, "cpu", context=60, slots=8), Engine(dist, "cpu", context=60)
    prompts = prompts_of(engine, 8)
    for prompt, found in zip(prompts, together(engine, prompts, 8), strict=True):
        assert same(found, alone(engine, prompt, 8))
        for row, other in zip(found, one_sequence(single, prompt, 8), strict=True):
            assert np.abs(row - other).max() < 2e-3 * row.std()
    engine.close()


def one_sequence(engine: Engine, prompt: list[int], count: int) -> list[np.ndarray]:
    """Logits of a greedy answer's steps."""
    engine.rollback(0)
    logits = [engine.prefill(prompt).copy()]
    while len(logits) < count:
        logits.append(engine.decode(int(logits[-1].argmax())).copy())
    return logits


@pytest.mark.parametrize("count", range(1, 9))
def test_any_number_of_slots(engine, count):
    """Tiles of 8, 4, 2 and 1 tokens, with and without a remainder."""
    prompts = prompts_of(engine, count, seed=count)
    for prompt, found in zip(prompts, together(engine, prompts, 5), strict=True):
        assert same(found, alone(engine, prompt, 5))


@pytest.mark.parametrize("piece", [1, 3, 16, 64])
def test_pieces_of_a_prompt_do_not_matter(engine, piece):
    prompt = np.random.default_rng(3).integers(3, engine.vocab, 70).tolist()
    assert same(alone(engine, prompt, 6, piece), alone(engine, prompt, 6))


def test_a_known_prefix_is_not_computed_again_and_gives_the_same(engine):
    draw = np.random.default_rng(4)
    system = draw.integers(3, engine.vocab, 48).tolist()
    prompts = [system + draw.integers(3, engine.vocab, size).tolist() for size in (5, 20, 16)]
    expected = [alone(engine, p, 6) for p in prompts]
    first = engine.admit(prompts[0], 60)
    prefill(engine, first, prompts[0], 64)
    others = [engine.admit(p, 70) for p in prompts[1:]]  # from one that still runs
    for slot, prompt in zip(others, prompts[1:], strict=True):
        assert slot.cached == 48 and slot.tokens == prompt[:48]
    for slot, prompt, rows in zip(others, prompts[1:], expected[1:], strict=True):
        chosen = prefill(engine, slot, prompt, 64)
        for row in rows:
            assert np.array_equal(chosen.logits, row)
            chosen = engine.step([Work(slot, [chosen.token], False, LOGITS)]).chosen[slot.index]
        engine.release(slot)
    engine.release(first)
    again = engine.admit(prompts[1], 70)
    assert again.cached == (len(prompts[1]) - 1) // 16 * 16  # from one that ended
    assert np.array_equal(prefill(engine, again, prompts[1], 64).logits, expected[1][0])
    engine.release(again)
    assert engine.usage()["kv_tokens"] == 0 < engine.usage()["kv_cached_tokens"]


def test_a_slot_left_half_way_leaves_nothing_behind(engine):
    prompts = prompts_of(engine, 8, seed=9)
    expected = alone(engine, prompts[6], 6)
    slots = [engine.admit(p, 90, fresh=True) for p in prompts]
    assert engine.admit([5], 10) is None
    for slot, prompt in zip(slots, prompts, strict=True):
        engine.step([Work(slot, prompt[: len(prompt) // 2 + 1], True)])
    for slot in slots:
        engine.release(slot)
    assert same(together(engine, [prompts[6]] * 3, 6)[1], expected)


def test_masks_and_biases_before_the_argmax(engine):
    prompts = prompts_of(engine, 4)
    slots = [engine.admit(p, 60, fresh=True) for p in prompts]
    both = list(zip(slots, prompts, strict=True))
    plain = [prefill(engine, s, p[:-1], 64, Choice(raw=True)) if len(p) > 1 else None for s, p in both]
    assert plain[1].logits is None
    draw = np.random.default_rng(7)
    bits = draw.random((4, engine.vocab)) < 0.1
    packed = np.packbits(np.pad(bits, [(0, 0), (0, -engine.vocab % 32)]), axis=1, bitorder="little").view(np.int32)
    ids = draw.integers(0, engine.vocab, (4, 9)).astype(np.int32)
    values = draw.normal(size=(4, 9)).astype(np.float32) * 5
    choices = [
        Choice(mask=packed[0], logits=True, raw=True),
        Choice(bias=(ids[1], values[1]), logits=True, raw=True),
        Choice(mask=packed[2], bias=(ids[2], values[2]), logits=True, raw=True),
        Choice(logits=True, raw=True),
    ]
    work = [Work(s, [p[-1]], len(p) == 1, c) for s, p, c in zip(slots, prompts, choices, strict=True)]
    result = engine.step(work)
    for i, (slot, choice) in enumerate(zip(slots, choices, strict=True)):
        chosen = result.chosen[slot.index]
        expected = chosen.raw.copy()
        if choice.bias is not None:
            np.add.at(expected, ids[i], values[i])
        if choice.mask is not None:
            expected[~bits[i]] = -np.inf
        np.testing.assert_array_equal(chosen.logits, expected)
        assert chosen.token == expected.argmax() and chosen.best == expected.max()
        assert np.array_equal(chosen.raw, alone(engine, prompts[i], 1)[0]) or len(prompts[i]) > 1
        engine.release(slot)


def test_hidden_states_give_the_logits(compiled):
    """The sum of final hidden states, chunk by chunk: with q0f32 and a tied table, logits are its product with it."""
    from stored import dequantised

    config, params = dequantised(compiled("gemma2_softcap"))
    engine = open_batch_engine(compiled("gemma2_softcap"), "cpu", context=60, slots=2)
    single = Engine(compiled("gemma2_softcap"), "cpu", context=60)
    tokens = np.random.default_rng(2).integers(3, engine.vocab, 40).tolist()
    slot = engine.admit(tokens, 40, fresh=True)
    sums = [
        engine.step([Work(slot, tokens[s : s + 1], True, None, True)]).hidden[slot.index] for s in range(len(tokens))
    ]
    engine.release(slot)
    head = params["embed.weight"] if config.tie_embeddings else params["lm_head.weight"]
    logits = np.stack(sums) @ head.T
    logits = config.final_softcap * np.tanh(logits / config.final_softcap)
    expected = single.score(tokens)
    assert np.abs(logits - expected).max() < 2e-4 * expected.std()
    slot = engine.admit(tokens, 40, fresh=True)
    whole = engine.step([Work(slot, tokens, True, None, True)]).hidden[slot.index]
    np.testing.assert_allclose(whole, np.sum(sums, axis=0), rtol=1e-6, atol=1e-6)
    engine.close()


def test_slots_without_paged_kernels_do_the_same(compiled):
    """The way of targets whose kernels know one sequence: equal within rounding, prefixes kept and copied."""
    dist = compiled(CASE)
    engine, single = SlotEngine(dist, "cpu", 100, 4), Engine(dist, "cpu", context=100)
    prompts = prompts_of(engine, 4)
    for prompt, rows in zip(prompts, together(engine, prompts, 8), strict=True):
        single.rollback(0)
        logits = single.prefill(prompt)
        for row in rows:
            assert np.abs(row - logits).max() < 1e-4 * row.std()
            logits = single.decode(int(row.argmax()))
    prompt = np.random.default_rng(4).integers(3, engine.vocab, 60).tolist()
    first = engine.admit(prompt, 80)
    expected = prefill(engine, first, prompt, 100).logits.copy()
    second = engine.admit([*prompt[:50], *prompt[:9]], 80)
    assert (first.cached, second.cached) == (0, 50)
    third = engine.admit(prompt, 80)
    assert third.cached == 59
    assert np.abs(prefill(engine, third, prompt, 100).logits - expected).max() < 1e-4 * expected.std()
    mask = np.zeros(-(-engine.vocab // 32), np.int32)
    mask[1] = 1 << 3
    choice = Choice(mask, (np.array([7], np.int32), np.array([1e3], np.float32)))
    assert engine.step([Work(third, [5], False, choice)]).chosen[third.index].token == 35
    whole = engine.admit(prompt, 80, fresh=True)
    hidden = engine.step([Work(whole, prompt[:40], True, None, True)]).hidden[whole.index]
    paged = open_batch_engine(dist, "cpu", 100, 1)
    slot = paged.admit(prompt, 80, fresh=True)
    expected = paged.step([Work(slot, prompt[:40], True, None, True)]).hidden[slot.index]
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-3)
    for each in (engine, paged):
        each.close()


def test_memory_is_planned_for_all_slots(compiled, monkeypatch):
    from mlcrt.runtime import memory

    single = Engine(compiled(CASE), "cpu", context=100).plan
    engine = open_batch_engine(compiled(CASE), "cpu", context=100, slots=8)
    eight = engine.plan
    assert eight.kv == 8 * single.kv and "8 slots of context 100" in eight.text()
    assert engine.usage()["kv_capacity_tokens"] == 8 * 112
    monkeypatch.setattr(memory, "available_bytes", lambda: eight.total - 1)
    with pytest.raises(MlcrtError, match="--context 96 or fewer slots would fit"):
        open_batch_engine(compiled(CASE), "cpu", context=100, slots=8)


@pytest.mark.parametrize("slots", [0, 65])
def test_slots_that_are_not_possible(compiled, slots):
    with pytest.raises(UsageError, match=f"{slots} slots are not possible; choose from 1 to 64"):
        open_batch_engine(compiled(CASE), "cpu", slots=slots)


def test_a_library_without_kernels_for_many_runs_one_slot_after_the_other(compiled):
    engine = open_batch_engine(compiled(CASE, slots=0), "cpu", context=32, slots=2)
    single = Engine(compiled(CASE), "cpu", context=32)
    prompts = [[5, 6, 7], [9, 8]]
    slots = [engine.admit(prompt, 10) for prompt in prompts]
    chosen = engine.step([Work(slot, prompt, True, GREEDY) for slot, prompt in zip(slots, prompts, strict=True)]).chosen
    for slot, prompt in zip(slots, prompts, strict=True):
        assert chosen[slot.index].token == int(single.prefill(prompt).argmax())
        single.rollback(0)
    assert isinstance(engine, SlotEngine)


def test_a_closed_engine_says_so(compiled):
    engine = open_batch_engine(compiled(CASE), "cpu", context=32, slots=1)
    assert isinstance(engine, PagedEngine)
    slot = engine.admit([5], 9)
    engine.close()
    with pytest.raises(MlcrtError, match="closed"):
        engine.step([Work(slot, [5], True, GREEDY)])


def test_the_benchmark_of_many_clients(compiled, monkeypatch, capsys):
    import json

    from mlcrt.cli import main
    from mlcrt.measure import machine

    monkeypatch.setattr(machine, "read_bandwidth", lambda: 1e9)
    monkeypatch.setattr(machine, "multiply_adds", lambda: 1e8)
    assert runtime().multiply_adds([AMX_PRODUCT]) is None  # what limits tile registers is reading
    dist = str(compiled(CASE, target=VECTORS))
    command = ["bench", dist, "--device", "cpu", "-p", "9", "-n", "6", "--repeat", "2", "--batch", "3"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    one, three = result["clients"]["1"], result["clients"]["3"]
    assert result["speedup"] == pytest.approx(three["decode_tokens_per_s"] / one["decode_tokens_per_s"])
    for figures in (one, three):
        assert 0 < figures["ms_per_token"]["median"] <= figures["ms_per_token"]["p95"]
        assert figures["tokens_per_s"] > 0 and figures["first_token_s"] > 0
    config, floor = Engine(dist, "cpu").config, one["floor_ms_per_token"]
    heads = config.hidden * config.head_dim * 2 * (config.heads + config.kv_heads)
    adds = config.layers * (heads + 3 * config.hidden * config.intermediate) + config.vocab * config.hidden
    assert floor["arithmetic"] == pytest.approx(1e3 * adds / 1e8)
    assert three["floor_ms_per_token"]["arithmetic"] == pytest.approx(3 * floor["arithmetic"])
    weights = result["memory"]["weights"] / 1e9 * 1e3
    assert 0.5 * weights < floor["bytes"] < three["floor_ms_per_token"]["bytes"] < 1.5 * weights
    assert main(command) == 0
    assert "3 clients" in capsys.readouterr().out
    for wrong in (["-n", "1"], ["--context", "10"]):
        assert main([*command, *wrong]) == 2


def test_served_together_answers_are_those_of_the_chat_engine(compiled):
    """The scheduler over the compiled model: more requests than slots, shared prefixes, some sampled, one cancelled."""
    import threading

    from mlcrt.runtime.sampler import Sampler
    from mlcrt.runtime.sampling import SamplingParams
    from mlcrt.serve.interface import GenerationRequest
    from mlcrt.serve.scheduler import BatchScheduler

    dist = compiled(CASE, "q4f16_1")
    scheduler = BatchScheduler(open_batch_engine(dist, "cpu", 100, 4), prefill_tokens=16)
    single = Engine(dist, "cpu", context=100)
    draw = np.random.default_rng(11)
    system = draw.integers(3, 503, 40).tolist()
    requests = [
        GenerationRequest(
            system + draw.integers(3, 503, int(draw.integers(1, 20))).tolist(),
            SamplingParams(temperature=0.0) if i % 3 else SamplingParams(temperature=0.8, seed=i),
            max_tokens=12,
        )
        for i in range(10)
    ]
    tokens, over = [[] for _ in requests], [threading.Event() for _ in requests]

    def receiver(i):
        def on_event(event):
            if event.token is not None:
                tokens[i].append(event.token)
            if event.finish_reason is not None:
                over[i].set()

        return on_event

    handles = scheduler.submit_all(requests, [receiver(i) for i in range(10)])
    handles[7].cancel()
    assert all(event.wait(60) for event in over)
    stats = scheduler.stats()
    assert stats["finished"]["length"] >= 9 and stats["prefix_hit_tokens"] >= 6 * 32
    embedding = scheduler.embeddings(requests[0].prompt)
    assert embedding.shape == (single.config.hidden,) and np.isfinite(embedding).all()
    scheduler.close()
    for i, (request, found) in enumerate(zip(requests, tokens, strict=True)):
        single.rollback(0)
        logits, answer = single.prefill(request.prompt), []
        sampler = Sampler(request.sampling, 503, request.prompt)
        while len(answer) < 12:
            answer.append(sampler.sample(logits))
            logits = single.decode(answer[-1])
        assert found == (answer if i != 7 else answer[: len(found)])
    single.close()
