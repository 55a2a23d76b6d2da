"""What the engine promises besides right numbers: limits, errors, one result however it is reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import reference
from stored import dequantised

from mlcrt.errors import MlcrtError
from mlcrt.quant.params import read_params
from mlcrt.quant.scheme import SCHEMES
from mlcrt.runtime import memory
from mlcrt.runtime.engine import ContextFull, Engine

CASE, TRAINED = "llama3_gqa7", 512
TOKENS = np.random.default_rng(5).integers(0, 503, TRAINED).tolist()


@pytest.fixture(scope="module")
def shared(compiled):
    engine = Engine(compiled(CASE), "cpu")
    yield engine
    engine.close()


@pytest.fixture
def engine(shared):
    """An engine with an empty cache."""
    shared.rollback(0)
    return shared


@pytest.fixture
def small(compiled):
    """An engine with room for 40 tokens: two and a half KV blocks."""
    engine = Engine(compiled(CASE), "cpu", context=40)
    yield engine
    engine.close()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference in standard deviations of `b`."""
    return float(np.abs(a - b).max() / b.std())


# --- the context ---


@pytest.mark.parametrize("call", ["prefill", "score", "decode"])
def test_full_context_changes_nothing(small, call):
    small.prefill(TOKENS[:39])
    kept = small.decode(TOKENS[39]).copy()
    more = TOKENS[40] if call == "decode" else TOKENS[40:42]
    with pytest.raises(ContextFull, match="40 tokens are in it, .* more do not fit 40; .*--context"):
        getattr(small, call)(more)
    assert small.tokens == TOKENS[:40]
    assert small.greedy_token == kept.argmax()
    small.rollback(39)
    assert np.array_equal(small.decode(TOKENS[39]), kept)


def test_a_prompt_that_does_not_fit_is_not_begun(small):
    with pytest.raises(ContextFull, match="41 more do not fit 40"):
        small.prefill(TOKENS[:41])
    assert small.tokens == []


@pytest.mark.parametrize("context", [1, 15, 16, 17, 100, TRAINED])
def test_the_context_is_chosen_when_loading(compiled, engine, context):
    length = min(context, 129)
    expected = engine.prefill(TOKENS[:length])
    other = Engine(compiled(CASE), "cpu", context=context)
    assert other.context == context
    assert other.memory["kv"] == -(-context // 16) * 16 * 3 * 1 * 80 * 2 * 4  # layers, KV heads, head_dim, K and V, f32
    assert np.array_equal(other.prefill(TOKENS[:length]), expected)
    other.close()


def test_default_context_is_the_models_own_up_to_4096(compiled):
    assert Engine(compiled(CASE), "cpu").context == TRAINED
    assert Engine(compiled("qwen3_norms"), "cpu").context == 4096


@pytest.mark.parametrize(
    "context, sentence", [(TRAINED + 1, "was trained for 512 tokens"), (0, "at least 1"), (-4, "at least 1")]
)
def test_impossible_contexts_are_refused(compiled, context, sentence):
    with pytest.raises(MlcrtError, match=sentence):
        Engine(compiled(CASE), "cpu", context=context)


# --- memory ---


def test_too_little_memory_says_what_would_fit(compiled, monkeypatch):
    plan = Engine(compiled(CASE), "cpu").plan
    for context in (15, 16, 100, 511):
        room = plan.weights + plan.workspace + context * plan.kv_per_block // plan.kv_block
        monkeypatch.setattr(memory, "available_bytes", lambda room=room: room)
        fits = context // 16 * 16
        if not fits:
            with pytest.raises(MlcrtError, match="even the weights do not fit: use a smaller model"):
                Engine(compiled(CASE), "cpu")
            continue
        with pytest.raises(
            MlcrtError, match=rf"^memory: weights 14 MB .*cpu has 1\d MB free; --context {fits} would fit"
        ):
            Engine(compiled(CASE), "cpu")
        assert Engine(compiled(CASE), "cpu", context=fits).prefill(TOKENS[:fits]).shape == (503,)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)  # unknown: try
    Engine(compiled(CASE), "cpu")


@pytest.mark.parametrize("version", [1, 2])
def test_file_pages_of_a_control_group_count_as_free(tmp_path, version):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 999999 kB\nMemAvailable:   800000 kB\n")
    assert memory.available_bytes(tmp_path) == 800000 * 1024
    group = tmp_path / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory")
    group.mkdir(parents=True)
    limit, used, prefix = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }[version]
    (group / used).write_text("50000000\n")
    (group / "memory.stat").write_text(f"anon 7\n{prefix}inactive_file 30000000\n{prefix}active_file 4000000\n")
    (group / limit).write_text("60000000\n")
    assert memory.available_bytes(tmp_path) == 44000000
    (group / limit).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert memory.available_bytes(tmp_path) == 800000 * 1024
    assert memory.available_bytes(tmp_path / "nothing") is None


def test_this_machine_knows_its_free_memory():
    assert 1 << 20 < memory.available_bytes() < 1 << 50


# --- wrong arguments ---


@pytest.mark.parametrize("call", ["prefill", "score"])
@pytest.mark.parametrize("tokens, sentence", [([], "no tokens"), ([1, 503], "token 503"), ([-1], "token -1")])
def test_unusable_tokens(engine, call, tokens, sentence):
    engine.prefill(TOKENS[:3])
    with pytest.raises(MlcrtError, match=sentence):
        getattr(engine, call)(tokens)
    assert engine.tokens == TOKENS[:3]


@pytest.mark.parametrize("token", [503, -1, 2**40])
def test_unusable_token_to_decode(engine, token):
    with pytest.raises(MlcrtError, match=f"token {token} is outside the vocabulary of 503"):
        engine.decode(token)


def test_score_takes_one_chunk_at_most(engine):
    assert engine.chunk == 128
    with pytest.raises(MlcrtError, match="at most 128 tokens at once, not 129"):
        engine.score(TOKENS[:129])
    assert engine.tokens == []


@pytest.mark.parametrize("length", [-1, 4])
def test_rollback_to_where_it_never_was(engine, length):
    engine.prefill(TOKENS[:3])
    with pytest.raises(MlcrtError, match=f"cannot roll back to {length} tokens: there are 3"):
        engine.rollback(length)
    assert engine.tokens == TOKENS[:3]


def test_a_closed_engine_says_so(compiled, tmp_path):
    engine = Engine(compiled(CASE), "cpu")
    engine.prefill(TOKENS[:3])
    engine.save(tmp_path / "session")
    engine.close()
    engine.close()
    calls = {
        "prefill": ([1],), "decode": (1,), "score": ([1],), "rollback": (0,), "save": (tmp_path / "other",),
        "restore": (tmp_path / "session",),
    }  # fmt: skip
    for name, arguments in calls.items():
        with pytest.raises(MlcrtError, match="closed"):
            getattr(engine, name)(*arguments)
    with pytest.raises(MlcrtError, match="closed"):
        _ = engine.greedy_token
    assert not (tmp_path / "other").exists()


# --- one result, however it is reached ---


@pytest.mark.parametrize("length", [127, 128, 129, 256, 300])
def test_long_prompts_equal_their_pieces(engine, length):
    whole = engine.prefill(TOKENS[:length]).copy()
    assert engine.tokens == TOKENS[:length]
    engine.rollback(0)
    rng = np.random.default_rng(length)
    while len(engine.tokens) < length:
        at = len(engine.tokens)
        row = engine.prefill(TOKENS[at : min(length, at + int(rng.integers(1, 90)))])
    assert difference(row, whole) < 1e-5
    engine.rollback(0)
    for start in range(0, length, engine.score_chunk):
        rows = engine.score(TOKENS[start : min(length, start + engine.score_chunk)])
    assert difference(rows[-1], whole) < 1e-5


def test_long_prompts_equal_numpy(compiled, engine):
    """Several chunks and many KV blocks, against the NumPy decoder."""
    config, params = dequantised(compiled(CASE))
    expected = reference.logits(config, params, TOKENS[:300])
    rows = np.concatenate([engine.score(TOKENS[s : min(300, s + 128)]) for s in range(0, 300, 128)])
    assert difference(rows, expected) < 2e-4


@pytest.mark.parametrize("case", ["llama_mha", "qwen3_norms"])
def test_greedy_token_is_the_argmax(compiled, case):
    engine = Engine(compiled(case), "cpu", context=128)
    row, chosen = engine.prefill(TOKENS[:9]), []
    for _ in range(60):
        chosen.append(engine.greedy_token)
        assert chosen[-1] == int(row.argmax())
        row = engine.decode(chosen[-1])
    assert len(set(chosen)) > 3


def test_numpy_arrays_and_tuples_are_tokens_too(engine):
    expected = engine.prefill(TOKENS[:20]).copy()
    for kind in (tuple, np.array, lambda t: np.array(t, np.int64)):
        engine.rollback(0)
        assert np.array_equal(engine.prefill(kind(TOKENS[:20])), expected)
        assert engine.tokens == TOKENS[:20] and all(type(t) is int for t in engine.tokens)


def test_engines_and_runs_agree_to_the_bit(compiled, engine):
    first = [engine.prefill(TOKENS[:200]).copy(), engine.decode(3).copy(), engine.score(TOKENS[:50])]
    engine.rollback(0)
    again = [engine.prefill(TOKENS[:200]).copy(), engine.decode(3).copy(), engine.score(TOKENS[:50])]
    other = Engine(compiled(CASE), "cpu", context=300)
    new = [other.prefill(TOKENS[:200]).copy(), other.decode(3).copy(), other.score(TOKENS[:50])]
    for a, b, c in zip(first, again, new, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


_DIGEST = """
import hashlib, json, os, sys
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
from mlcrt.runtime.engine import Engine
engine, tokens = Engine(sys.argv[1], "cpu"), json.loads(sys.argv[2])
rows = [engine.prefill(tokens[:150]).copy(), engine.decode(7).copy(), engine.score(tokens[:20])]
print([hashlib.sha256(row.tobytes()).hexdigest() for row in rows])
"""


@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_threads_do_not_change_the_result(compiled, quantization):
    command = [sys.executable, "-c", _DIGEST, str(compiled(CASE, quantization)), json.dumps(TOKENS)]
    results = {
        subprocess.run(
            command, env={**os.environ, "TVM_NUM_THREADS": threads}, capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(results) == 1 and len(results.pop()) > 190


# --- schemes ---

F16_BOUND, F32_BOUND = 5e-3, 2e-4  # float16 KV cache, and none


@pytest.mark.parametrize("quantization", list(SCHEMES))
def test_every_scheme_equals_numpy(compiled, quantization):
    check_scheme(compiled("qwen3_norms", quantization), SCHEMES[quantization].dtype)


@pytest.mark.parametrize("quantization", ["q4f16_0", "q3f16_1"])
def test_schemes_of_routed_experts_equal_numpy(compiled, quantization):
    check_scheme(compiled("mixtral", quantization), "float16")


def check_scheme(dist, kv_dtype: str) -> None:
    """Prefill, decode and score of 140 tokens against the NumPy decoder on the dequantised stored weights."""
    engine = Engine(dist, "cpu", context=150)
    assert engine.manifest["targets"]["cpu"]["kv_dtype"] == kv_dtype
    per_token = 2 * engine.config.layers * engine.config.kv_heads * engine.config.head_dim * np.dtype(kv_dtype).itemsize
    assert engine.memory["kv"] == 160 * per_token
    config, params = dequantised(dist)
    expected = reference.logits(config, params, TOKENS[:140])
    rows = [engine.prefill(TOKENS[:130]).copy(), *(engine.decode(t).copy() for t in TOKENS[130:140])]
    engine.rollback(0)
    scored = np.concatenate([engine.score(TOKENS[:100]), engine.score(TOKENS[100:140])])
    bound = F16_BOUND if kv_dtype == "float16" else F32_BOUND
    assert difference(np.stack(rows), expected[129:140]) < bound
    assert difference(scored, expected) < bound


def test_other_parameters_are_refused(compiled, private):
    """A file with the right names and other shapes, or one that lacks a tensor, never reaches the library."""
    dist = private(CASE)
    file = next(dist.glob("params-*"))
    for other in ("qwen3_norms", "llama_mha"):
        stranger = next(compiled(other).glob("params-*"))
        assert file.name == stranger.name
        file.unlink()
        os.link(stranger, file)
        assert read_params(dist, [file.name])
        with pytest.raises(MlcrtError, match=r"are not those that cpu/lib\.so was compiled for; .*mlcrt compile"):
            Engine(dist, "cpu")


# --- the manifest ---


def test_a_damaged_manifest_is_refused(private):
    """A key that is gone, or holds something senseless, gives a sentence and no other exception."""
    dist = private(CASE)
    file = dist / "mlcrt.json"
    good = file.read_text()
    manifest = json.loads(good)
    top = [(key,) for key in ("format", "name", "config", "schemes", "params", "targets")]
    inner = [("params", "files"), ("params", "signature"), ("config", "ropes"), ("config", "heads")]
    # two only inform; without the third the host draws tokens
    needed = manifest["targets"]["cpu"].keys() - {"bytes", "platform", "draws"}
    changes = [(path, None) for path in top + inner + [("targets", "cpu", k) for k in sorted(needed)]]
    changes += [(path, value) for path in top[2:] + [("targets", "cpu")] for value in (7, [], "x")]
    for path, value in changes:
        data = json.loads(good)
        place = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        if value is not None:
            place[path[-1]] = value
        file.write_text(json.dumps(data))
        with pytest.raises(MlcrtError):
            Engine(dist, "cpu")
    for text in ("", "{", "[]", "null", '"x"', good[: len(good) // 2]):
        file.write_text(text)
        with pytest.raises(MlcrtError, match=r"mlcrt\.json is damaged"):
            Engine(dist, "cpu")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"abi": 0, "mlcrt": "0.0.1"}, r"lib\.so was made by another mlcrt \(0\.0\.1, .*mlcrt compile .*--target cpu"),
        ({"tvm": "0.26.0"}, r"lib\.so needs apache-tvm 0\.26\.0, installed is 0\.27.*mlcrt compile .*--target cpu"),
        ({"signature": "0" * 64}, "made for other parameters"),
        ({"sha256": "0" * 64}, "its hash differs"),
        ({"features": ["avx1024"]}, "lacks avx1024; compile it here with mlcrt compile .*--target cpu"),
    ],
)
def test_a_library_that_does_not_fit_is_refused(private, change, sentence):
    dist = private(CASE)
    file = dist / "mlcrt.json"
    manifest = json.loads(file.read_text())
    manifest["targets"]["cpu"].update(change)
    file.write_text(json.dumps(manifest))
    with pytest.raises(MlcrtError, match=sentence):
        Engine(dist, "cpu")


def test_another_format_is_refused(private):
    dist = private(CASE)
    file = dist / "mlcrt.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99, "mlcrt": "9.9"}))
    with pytest.raises(MlcrtError, match=r"made by mlcrt 9\.9 in format 99, .* reads format 1; make it again"):
        Engine(dist, "cpu")


def test_missing_and_broken_files_are_named(private):
    dist = private(CASE)
    library, params = dist / "cpu/lib.so", next(dist.glob("params-*"))
    whole = params.read_bytes()
    params.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MlcrtError, match=f"{params.name} is truncated or damaged; convert"):
        Engine(dist, "cpu")
    params.write_bytes(b"")
    with pytest.raises(MlcrtError, match=f"{params.name} cannot be read"):
        Engine(dist, "cpu")
    params.unlink()
    with pytest.raises(MlcrtError, match=f"{params.name} is missing"):
        Engine(dist, "cpu")
    params.write_bytes(whole)
    library.unlink()
    with pytest.raises(MlcrtError, match="lib.so is missing; compile again"):
        Engine(dist, "cpu")
    with pytest.raises(MlcrtError, match="not a compiled model"):
        Engine(dist / "cpu", "cpu")


def test_a_library_that_is_none(private):
    """Right hash, wrong content: the loader's message is passed on in one sentence."""
    from mlcrt.dist import sha256

    dist = private(CASE)
    (dist / "cpu/lib.so").write_bytes(b"\x7fELF" + bytes(100))
    manifest = json.loads((dist / "mlcrt.json").read_text())
    manifest["targets"]["cpu"]["sha256"] = sha256(dist / "cpu/lib.so")
    (dist / "mlcrt.json").write_text(json.dumps(manifest))
    with pytest.raises(MlcrtError, match=r"lib\.so cannot be loaded .*; compile it again"):
        Engine(dist, "cpu")
