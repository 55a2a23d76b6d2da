"""Session files: what was saved goes on to the bit, and anything else is refused with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mlcrt.errors import MlcrtError
from mlcrt.runtime import session
from mlcrt.runtime.engine import ContextFull, Engine

CASE = "qwen3_norms"  # three layers, two KV heads
TOKENS = np.random.default_rng(6).integers(0, 503, 200).tolist()


@pytest.fixture(scope="module")
def engine(compiled):
    made = Engine(compiled(CASE), "cpu", context=256)
    yield made
    made.close()


@pytest.fixture(scope="module")
def saved(engine, tmp_path_factory):
    """A session of 37 tokens (two KV blocks and a piece of a third)."""
    path = tmp_path_factory.mktemp("session") / "saved.session"
    engine.rollback(0)
    engine.prefill(TOKENS[:37])
    engine.save(path)
    return path


@pytest.mark.parametrize("length", [0, 1, 16, 37, 130])
@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_a_fresh_engine_goes_on_to_the_bit(compiled, tmp_path, length, quantization):
    dist = compiled(CASE, quantization)
    first, path = Engine(dist, "cpu", context=256), tmp_path / "talk"
    if length:
        first.prefill(TOKENS[:length])
    first.save(path)
    expected = [first.decode(5).copy(), first.prefill(TOKENS[150:170]).copy()]
    second = Engine(dist, "cpu", context=200)  # another size of cache
    second.prefill(TOKENS[40:80])  # whatever was there is gone
    second.restore(path)
    assert second.tokens == TOKENS[:length]
    assert np.array_equal(second.decode(5), expected[0])
    assert np.array_equal(second.prefill(TOKENS[150:170]), expected[1])


def test_saving_what_was_restored_gives_the_same_file(compiled, engine, saved, tmp_path):
    engine.restore(saved)
    engine.save(tmp_path / "again")
    a, b = load_file(saved), load_file(tmp_path / "again")
    assert a.keys() == b.keys() and len(a) == 1 + 2 * engine.config.layers
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_the_file_holds_used_blocks_only(engine, saved):
    block = 16
    values = 2 * engine.config.layers * engine.config.kv_heads * engine.config.head_dim * 3 * block
    assert values * 4 < saved.stat().st_size < values * 4 + 4096


def rewrite(path, target, tensors=None, **metadata):
    """A copy of a session with other metadata (None: without that key) or tensors, its checksum made right again."""
    stored = load_file(path)
    with safe_open(path, "np") as file:
        known = file.metadata()
    stored.update(tensors or {})
    order = ["tokens", *sorted((k for k in stored if k != "tokens"), key=lambda k: int(k.split(".")[1]))]
    known["crc32"] = session._checksum({name: stored[name] for name in order})
    known.update(metadata)
    save_file(stored, target, metadata={k: v for k, v in known.items() if v is not None})


def test_the_rewritten_copy_is_a_session(engine, saved, tmp_path):
    rewrite(saved, tmp_path / "copy")
    engine.restore(tmp_path / "copy")
    assert engine.tokens == TOKENS[:37]


@pytest.mark.parametrize(
    "metadata, sentence",
    [
        ({"mlcrt_session": "99"}, r"has session version 99, this mlcrt reads 2; save the session again"),
        ({"mlcrt_session": None}, "is not an mlcrt session file"),
        ({"model": "Other-q4f16_1"}, r"belongs to Other-q4f16_1, not to qwen3_norms-q0f32; load that model"),
        ({"signature": "0" * 64}, "belongs to"),
        ({"layout": "float16/32"}, r"another cache layout \(float16/32\)"),
        ({"crc32": "00000000"}, "damaged .*checksum"),
        ({"crc32": None}, "damaged .*checksum"),
    ],
)
def test_other_sessions_are_refused(engine, saved, tmp_path, metadata, sentence):
    rewrite(saved, tmp_path / "other", **metadata)
    refused(engine, tmp_path / "other", sentence)


@pytest.mark.parametrize(
    "tensors, sentence",
    [
        ({"tokens": np.array([1, 503], np.int32)}, "tokens outside the vocabulary"),
        ({"tokens": np.array([-1], np.int32)}, "tokens outside the vocabulary"),
        ({"tokens": np.array([[1]], np.int32)}, "damaged"),
        ({"tokens": np.arange(60, dtype=np.int32)}, "a cache has shape"),  # the caches hold fewer blocks
        ({"cache.3": np.zeros((2, 3, 128 * 16), np.float16)}, "a cache has shape"),
        ({"cache.3": np.zeros((2, 9, 128 * 16), np.float32)}, "a cache has shape"),
        ({"cache.3": np.zeros((1, 3, 128 * 16), np.float32)}, "a cache has shape"),
    ],
)
def test_sessions_that_contradict_themselves(engine, saved, tmp_path, tensors, sentence):
    rewrite(saved, tmp_path / "other", tensors)
    refused(engine, tmp_path / "other", sentence)


def test_a_missing_cache(engine, saved, tmp_path):
    stored = load_file(saved)
    with safe_open(saved, "np") as file:
        metadata = file.metadata()
    del stored["cache.5"]
    save_file(stored, tmp_path / "less", metadata=metadata)
    refused(engine, tmp_path / "less", "is not a readable session file")


def refused(engine, path, sentence: str) -> None:
    """restore() raises with the path and the sentence, and the engine is as it was."""
    engine.rollback(0)
    engine.prefill(TOKENS[100:119])
    expected = engine.decode(TOKENS[119]).copy()
    engine.rollback(19)
    with pytest.raises(MlcrtError, match=sentence) as caught:
        engine.restore(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert engine.tokens == TOKENS[100:119]
    assert np.array_equal(engine.decode(TOKENS[119]), expected)


def test_sessions_of_other_models_and_quantizations(compiled, engine, tmp_path):
    for number, dist in enumerate((compiled(CASE, "q4f16_1"), compiled("llama3_gqa7"))):
        other = Engine(dist, "cpu", context=64)
        other.prefill(TOKENS[:20])
        other.save(tmp_path / f"other{number}")
        refused(engine, tmp_path / f"other{number}", f"belongs to {dist.name}, not to {CASE}-q0f32; load that model")


def test_a_session_needs_its_context(compiled, saved):
    small = Engine(compiled(CASE), "cpu", context=36)
    small.prefill(TOKENS[:5])
    with pytest.raises(ContextFull, match="holds 37 tokens; start with --context 37 or more"):
        small.restore(saved)
    assert small.tokens == TOKENS[:5]
    exact = Engine(compiled(CASE), "cpu", context=37)
    exact.restore(saved)
    with pytest.raises(ContextFull):
        exact.decode(1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 8, b"\xff" * 64, b"not a session\n" * 99, b"PK\x03\x04"])
def test_files_that_are_no_sessions(engine, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    refused(engine, tmp_path / "file", "is not a")


def test_nothing_there(engine, tmp_path):
    refused(engine, tmp_path / "none", "there is no session file")
    refused(engine, tmp_path, "there is no session file")


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mutations_are_refused(engine, saved, tmp_path_factory, data):
    """Any changed, removed or added byte is noticed, wherever it is, or changes nothing (padding of the header)."""
    whole = saved.read_bytes()
    kind = data.draw(st.sampled_from(["flip header", "flip data", "cut", "grow", "splice"]))
    header = 8 + int.from_bytes(whole[:8], "little")
    broken = bytearray(whole)
    if kind == "cut":
        del broken[data.draw(st.integers(0, len(whole) - 1)) :]
    elif kind == "grow":
        broken += data.draw(st.binary(min_size=1, max_size=40))
    elif kind == "splice":
        at = data.draw(st.integers(0, len(whole) - 1))
        broken[at : at + data.draw(st.integers(0, 50))] = data.draw(st.binary(max_size=50))
    else:
        low, high = (0, header - 1) if kind == "flip header" else (header, len(whole) - 1)
        at = data.draw(st.integers(low, high))
        broken[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "mutated.session"
    path.write_bytes(broken)
    engine.rollback(0)
    try:
        engine.restore(path)
    except MlcrtError as error:
        assert str(path) in str(error)
        assert engine.tokens == []
    else:
        assert engine.tokens == TOKENS[:37]
        assert all(
            np.array_equal(a, b) for a, b in zip(load_file(path).values(), load_file(saved).values(), strict=True)
        )


# --- writing ---


def test_an_unwritable_place_is_named(engine, tmp_path):
    engine.rollback(0)
    engine.prefill(TOKENS[:5])
    for path in (tmp_path / "no such folder" / "talk", tmp_path):
        with pytest.raises(MlcrtError, match="cannot be saved to") as caught:
            engine.save(path)
        assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


_SAVE_WITH_LITTLE_ROOM = """
import resource, signal, sys
from mlcrt.errors import MlcrtError
from mlcrt.runtime.engine import Engine
engine = Engine(sys.argv[1], "cpu", context=256)
engine.prefill(list(range(200)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit then fails as it does on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    engine.save(sys.argv[2])
except MlcrtError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(compiled, saved, tmp_path):
    path = tmp_path / "talk"
    path.write_bytes(saved.read_bytes())
    command = [sys.executable, "-c", _SAVE_WITH_LITTLE_ROOM, str(compiled(CASE)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"the session cannot be saved to {path}: ") and done.stdout.count("\n") == 1
    assert path.read_bytes() == saved.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["talk"]


def test_an_interrupted_save_leaves_the_old_file(engine, saved, tmp_path, monkeypatch):
    import safetensors.numpy

    path = tmp_path / "talk"
    path.write_bytes(saved.read_bytes())

    def interrupted(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["talk"]


def test_metadata_is_plain_text(saved):
    with safe_open(saved, "np") as file:
        metadata = file.metadata()
    assert metadata["model"] == f"{CASE}-q0f32" and metadata["layout"] == "float32/16/rows"
    assert json.loads(json.dumps(metadata)) == metadata and set(metadata) == {
        "mlcrt_session", "crc32", "signature", "model", "layout",
    }  # fmt: skip
