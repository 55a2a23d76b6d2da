"""Tokens drawn on a Vulkan device, against the host's sampler."""

from __future__ import annotations

import drawing
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.threefry import uniform

VOCABULARIES = (40, 5003)  # all of it listed; the best of each slice


@pytest.fixture(scope="module")
def kernels(vulkan):
    """Vocabulary → the compiled kernel."""
    from mlcrt.targets.vulkan import attributes, library

    arch = attributes("s8")
    target = tvm.target.Target(arch.tvm_target())
    functions = {f"draw{v}": library(arch, "float16").build_draw(v) for v in VOCABULARIES}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    compiled = tvm.compile(module, target=target)
    return {v: compiled[f"draw{v}"] for v in VOCABULARIES}


@pytest.fixture(scope="module")
def run(vulkan, kernels):
    """run(*arrays) → the arrays after the kernel."""
    runtime = vulkan.runtime()

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        tensors = [runtime.place(a) for a in arrays]
        kernels[arrays[0].shape[1]](*tensors)
        return [t.numpy() for t in tensors]

    return call


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_the_device_draws_what_the_host_draws(vocab, run):
    decided = []

    @settings(max_examples=18, deadline=None, derandomize=True)
    @given(drawing.logits(vocab), drawing.PARAMS, st.integers(0, 10**6))
    def property_(row, params, drawn):
        decided.append(drawing.check(run, row, params, drawn))

    property_()
    assert sum(decided) > 0.6 * len(decided)


@pytest.mark.parametrize(
    ("spread", "kw"), [(6.0, {}), (3.0, {"top_k": 40}), (3.0, {"top_k": 300, "top_p": 0.5}), (2.0, {"min_p": 0.1})]
)
def test_what_people_ask_for_is_decided_on_the_device(spread, kw, run):
    row = (np.random.default_rng(3).standard_normal(5003) * spread).astype(np.float32)
    assert all(drawing.check(run, row, SamplingParams(seed=seed, **kw)) for seed in range(6))


def test_what_the_list_does_not_hold_is_left_to_the_host(run):
    flat = np.zeros(5003, np.float32)
    assert not drawing.check(run, flat, SamplingParams(seed=0, top_p=0.95))  # the nucleus is larger than the list
    assert not drawing.check(run, flat, SamplingParams(seed=0, top_p=1.0, top_k=5))  # all are tied with the fifth
    peaked = flat.copy()
    peaked[4321] = 9.0  # 0.62 of all, so that the numbers below it point to this token
    drawn = [drawing.check(run, peaked, SamplingParams(seed=seed, top_p=1.0, temperature=1.0)) for seed in range(12)]
    assert {True, False} == set(drawn)


def test_a_number_at_the_edge_between_two_tokens_is_left_to_the_host(run):
    """The likelier token ends where the seed's number points, but for what float32 can tell; then somewhat beside."""
    seed = next(s for s in range(100) if 0.6 < uniform(s, 0) < 0.9)
    number, row = uniform(seed, 0), np.full(40, -np.inf, np.float32)
    params = SamplingParams(seed=seed, top_p=1.0, temperature=1.0)
    for beside, decided in ((0.0, False), (1e-3, True), (-1e-3, True)):
        row[[5, 9]] = np.log(number + beside), np.log(1 - number - beside)
        assert drawing.check(run, row, params) == decided


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_broken_logits_are_left_to_the_host(bad, run):
    row = np.random.default_rng(0).standard_normal(5003).astype(np.float32)
    row[2345] = bad
    for params in (SamplingParams(seed=1), SamplingParams(temperature=0)):
        outcome = run(*drawing.arguments(row, Sampler(params, 5003)))[3]
        assert outcome[0] == -1
    nothing = np.full(5003, -np.inf, np.float32)
    assert run(*drawing.arguments(nothing, Sampler(SamplingParams(seed=1), 5003)))[3][0] == -1


def test_nothing_changes_until_the_host_has_chosen(run):
    row = np.random.default_rng(0).standard_normal(5003).astype(np.float32)
    arrays = drawing.arguments(row, Sampler(SamplingParams(seed=1, top_k=5), 5003), state=(-1, 3))
    _, _, kept, outcome, token, *_ = run(*arrays)
    assert np.isnan(kept).all() and outcome.tolist() == [-1, 3] and token[0] == -7


def test_counted_draws_of_a_device_that_feeds_itself(vulkan, kernels):
    """The counter goes on in device memory; tokens as the host's with the same seed, and as often as they should."""
    runtime, vocab, draws = vulkan.runtime(), 40, 120
    row = np.full(vocab, -np.inf, np.float32)
    shares = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    row[:5] = np.log(shares)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=42), vocab)
    tensors = [runtime.place(a) for a in drawing.arguments(row, sampler)]
    tokens = []
    for _ in range(draws):
        kernels[vocab](*tensors)
        tokens.append(int(tensors[4].numpy()[0]))
    assert tensors[3].numpy().tolist() == [tokens[-1], draws]
    assert tokens == [sampler.sample(row) for _ in range(draws)]
    counts = np.bincount(tokens, minlength=5)[:5]
    assert ((counts - draws * shares) ** 2 / (draws * shares)).sum() < 23.5  # exceeded once in ten thousand
