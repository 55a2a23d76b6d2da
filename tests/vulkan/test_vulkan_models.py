"""Whole models on a Vulkan device: golden logits of every family, and SmolLM2 with the CPU's greedy tokens."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import refusing
import tiny
from device import LAYER, LAYER_FILE, modules, unavailable, validate_code

from mlcrt import ChatModule
from mlcrt.compile import compile_model
from mlcrt.demo import demo_model
from mlcrt.errors import MlcrtError
from mlcrt.runtime.batch_engine import Choice, PagedEngine, Work, open_batch_engine
from mlcrt.runtime.engine import Engine
from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams

TOLERANCE = 2e-4  # of the logits' standard deviation, in float32
# CI compiles those between which the kernels differ: soft caps, windows, groups of seven, biases, norms, experts
_KINDS = ("gemma2_softcap", "llama3_gqa7", "phi3_longrope", "qwen2_yarn", "qwen3_norms", "qwen3_moe")
_CASES = tiny.cases() if os.environ.get("MLCRT_ALL_FAMILIES") else list(_KINDS)
_MANY = ("llama3_gqa7", "qwen3_moe")  # compiled with batched steps


def _compile(case: str, root: Path) -> Path:
    model, slots = tiny.make_tiny(case, root / "models" / case), 3 if case in _MANY else 0
    return compile_model(model, "q0f32", "vulkan:s8", dist_root=root, slots=slots)


@pytest.fixture(scope="module")
def compiled(vulkan, tmp_path_factory):
    """compiled(case) → dist folder; two processes work ahead, since compiling is most of the time."""
    root = tmp_path_factory.mktemp("dist")
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        made = {case: pool.submit(_compile, case, root) for case in _CASES}
        yield lambda case: made[case].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", _CASES)
def test_golden_logits(compiled, case):
    golden = tiny.golden(case)
    tokens, start = golden.tokens.tolist(), 21
    for name, kind, code in modules(compiled(case) / "vulkan" / "lib.so"):
        validate_code(f"{name} for {kind}", code)
    engine = Engine(compiled(case), "vulkan")
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


def test_loading_and_running_compiles_nothing(compiled):
    """Of ours: from SPIR-V on it is the driver's business."""
    done = refusing.use(compiled(_CASES[0]), "vulkan")
    assert done.returncode == 0 and done.stdout.startswith("compiled nothing"), done.stderr[-3000:]


def _answer(engine: Engine, params: SamplingParams, device: bool, count: int = 12) -> list[int]:
    engine.rollback(0)
    sampler = Sampler(params, engine.config.vocab)
    drawing = engine.drawing(sampler) if device else None
    tokens = [sampler.sample(engine.prefill([1, 5, 9]))]
    while len(tokens) < count:
        last = len(tokens) + 1 == count
        step = drawing.after if drawing else lambda token, _: sampler.sample(engine.decode(token))
        tokens.append(step(tokens[-1], last))
    return tokens


def test_sampled_tokens_are_those_of_the_host_and_come_one_step_behind(compiled, monkeypatch):
    settings = [SamplingParams(seed=1), SamplingParams(seed=2, temperature=1.3, top_k=20, min_p=0.02)]
    settings.append(SamplingParams(temperature=0))
    answers = {}
    for graph in ("1", "0"):
        monkeypatch.setenv("MLCRT_GRAPH", graph)
        engine = Engine(compiled(_CASES[0]), "vulkan", context=14)  # so that the last steps find it full
        for params in settings:
            answers.setdefault(params.seed, []).extend(_answer(engine, params, device) for device in (True, False))
        assert engine.drawing(Sampler(SamplingParams(presence_penalty=1.0), engine.config.vocab)) is None
        started, waited, draw, collect = [], [], engine._draw, engine.runtime.collect
        engine._draw = lambda: (started.append(1), draw())  # noqa: B023
        engine.runtime.collect = lambda ticket: (waited.append(len(started)), collect(ticket))[1]  # noqa: B023
        _answer(engine, SamplingParams(temperature=0), True)
        assert waited == [*range(2, 12), 11]
        engine.close()
    assert all(len(set(map(tuple, same))) == 1 for same in answers.values())


@pytest.mark.parametrize("case", _MANY)
def test_many_sequences_at_once(compiled, case):
    """Prompts of several lengths in one call, then steps together: the golden logits, and the same bits alone."""
    golden = tiny.golden(case)
    tokens, lengths, steps = golden.tokens.tolist(), (3, 17, 20), 4

    def run(engine, which: list[int]) -> list[np.ndarray]:
        slots = [engine.admit(tokens[: lengths[i]], 40, fresh=True) for i in which]
        prompts = [Work(s, tokens[: lengths[i]], True, Choice(logits=True)) for s, i in zip(slots, which, strict=True)]
        results = [engine.step(prompts)]
        for step in range(steps):
            work = [
                Work(s, [tokens[lengths[i] + step]], False, Choice(logits=True))
                for s, i in zip(slots, which, strict=True)
            ]
            results.append(engine.step(work))
        rows = [np.stack([r.chosen[s.index].logits for r in results]) for s in slots]
        assert [r.chosen[slots[0].index].token for r in results] == rows[0].argmax(axis=1).tolist()
        for slot in slots:
            engine.release(slot)
        return rows

    engine = open_batch_engine(compiled(case), "vulkan", context=48, slots=3)
    assert isinstance(engine, PagedEngine)
    together = run(engine, [0, 1, 2])
    for length, rows in zip(lengths, together, strict=True):
        difference = np.abs(rows[:, golden.columns] - golden.logits[length - 1 : length + steps])
        assert difference.max() <= TOLERANCE * golden.std
    for i in range(3):
        np.testing.assert_array_equal(run(engine, [i])[0], together[i])
    engine.close()


@pytest.fixture(scope="module")
def smollm2(vulkan, tmp_path_factory):
    """SmolLM2 from the demo package, its GGUF codes kept, compiled for Vulkan and the CPU."""
    try:
        model = demo_model()
    except MlcrtError as error:
        unavailable(str(error))
    return compile_model(model, None, "vulkan:s8,cpu:x86-64-v3", dist_root=tmp_path_factory.mktemp("smollm2"), slots=0)


def test_smollm2_answers_with_the_tokens_of_the_cpu(smollm2):
    """In a chat, and where the device feeds itself with the step replayed."""
    answers, runs = {}, {}
    for target in ("cpu", "vulkan"):
        with ChatModule(smollm2, device=target, context=256) as chat:
            answers[target] = chat.generate("Name three rivers.", max_tokens=10, temperature=0.0)
            engine = chat.engine
            engine.rollback(0)
            engine.prefill([1, 9690, 198, 2683, 338])
            runs[target] = engine.greedy(4)
            if target == "vulkan":
                recorded, memory = engine._decode.replay.describe(), engine.runtime.memory()
    assert answers["vulkan"] == answers["cpu"] and len(answers["cpu"].split()) >= 3
    assert runs["vulkan"] == runs["cpu"]
    # 30 layers of six kernels and what stands around them; the rotary tables need not wait for the embedding
    assert 180 < recorded["dispatches"] < 200 and recorded["barriers"] < recorded["dispatches"]
    assert memory["fallback"] == 0 and memory["blocks"] < 20


_WORK = """
import sys
import numpy as np
from mlcrt.runtime.engine import Engine
engine = Engine(sys.argv[1], "vulkan", context=64)
engine.prefill([1, 345, 230])
engine.greedy(3)
engine._runtime.profile(engine._decode.step)
big = engine._runtime.place(np.ones(50_000_000, np.uint8))
assert big.numpy().all()
del big
engine.save(sys.argv[2])
engine.restore(sys.argv[2])
engine.close()
print("done")
"""


def test_validation_layers_find_nothing(compiled, tmp_path):
    if not LAYER_FILE.exists():
        unavailable("the Vulkan validation layers are not installed (Debian: vulkan-validationlayers)")
    wanted = {"VK_INSTANCE_LAYERS": LAYER, "VK_LOADER_DEBUG": "layer"}
    done = subprocess.run(
        [sys.executable, "-c", _WORK, str(compiled(_CASES[0])), str(tmp_path / "session")],
        capture_output=True, text=True, env={**os.environ, **wanted}, timeout=170,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "done" in done.stdout, said[-2000:]
    assert f'Insert instance layer "{LAYER}"' in said
    assert "Validation" not in done.stdout and "VUID" not in said, said[-2000:]
