"""ChatModule: conversations, what is reused, what is kept when something goes wrong, sessions."""

from __future__ import annotations

import json
import sys
import types
import zipfile

import pytest
from toy_dist import make_dist

from mlcrt.chat import ChatModule, resolve_model
from mlcrt.errors import MlcrtError, UsageError


@pytest.fixture
def chat(dist):
    with ChatModule(dist, temperature=0, max_tokens=12) as module:
        yield module


def fresh_answer(dist, messages, **kw):
    with ChatModule(dist, temperature=0, max_tokens=12, **kw) as other:
        return other.generate(messages)


def check_answer(chat):
    """The latest answer is the greedy one for a prompt that says what the conversation says."""
    tokens = list(chat.last.prompt)
    assert chat.tokenizer.decode(tokens, skip_special=False) == chat.tokenizer.template.render(chat.messages[:-1])
    assert chat.last.generated
    for token in chat.last.generated:
        assert token == int(chat.engine.logits_after(tokens).argmax())
        tokens.append(token)
    assert chat.messages[-1]["content"] == chat.last.text == chat.tokenizer.decode(chat.last.generated)


def roles(chat):
    return "".join(message["role"][0] for message in chat.messages)


def test_an_answer_in_every_form(dist, chat):
    pieces = []
    text = chat.generate("What is a prime?", stream=pieces.append)
    assert text and "".join(pieces) == text and all(pieces)
    assert chat.messages == [{"role": "user", "content": "What is a prime?"}, {"role": "assistant", "content": text}]
    assert fresh_answer(dist, [{"role": "user", "content": "What is a prime?"}]) == text
    with ChatModule(str(dist), temperature=0, max_tokens=12) as other:
        assert "".join(other.stream("What is a prime?")) == text
    assert other.engine.closed


def test_only_new_tokens_run_in_later_turns(dist, chat):
    chat.generate("one")
    for turn in range(4):
        cached = len(chat.engine.tokens)
        chat.generate(f"turn {turn}")
        last = chat.stats()["last"]
        assert last["reused_tokens"] >= cached - 1 and cached > 20
        question = chat.tokenizer.encode(
            f"<|im_end|>\n<|im_start|>user\nturn {turn}<|im_end|>\n<|im_start|>assistant\n"
        )
        # the answer's last token may not have been run yet
        assert len(question) <= last["prefill_tokens"] <= len(question) + 1
        assert last["prompt_tokens"] == last["reused_tokens"] + last["prefill_tokens"]
        check_answer(chat)
    assert roles(chat) == "ua" * 5
    assert chat.stats()["total"]["prefill_tokens"] < 130


def test_a_template_that_drops_thinking_reuses_up_to_there(tmp_path):
    dist = make_dist(tmp_path, template="qwen3", ends=0)
    with ChatModule(dist, temperature=0, max_tokens=4) as chat:
        talk = [
            {"role": "user", "content": "a long enough question"},
            {"role": "assistant", "content": "<think>\nsome thinking\n</think>\n\nyes"},
            {"role": "user", "content": "next"},
        ]
        first = chat.tokenizer.encode(chat.tokenizer.template.render(talk[:1]))
        chat.engine.prefill(first + chat.tokenizer.encode("<think>\nsome thinking\n</think>\n\nyes"))
        text = chat.generate(talk)
        assert chat.stats()["last"]["reused_tokens"] == len(first)
        with ChatModule(dist, temperature=0, max_tokens=4) as other:
            assert other.generate(talk) == text


def test_after_a_stop_string_the_model_reads_what_was_shown(chat):
    chat.engine.toy["ends"] = 0
    whole = chat.generate("q")
    stop = whole[len(whole) // 2 :][:3]
    chat.reset_chat()
    shown = chat.generate("q", stop=stop)
    assert whole.startswith(shown) and stop not in shown
    chat.generate("next")
    check_answer(chat)


def test_messages_replace_the_conversation(chat):
    chat.generate("a")
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "b"}]
    chat.generate(talk)
    assert roles(chat) == "sua" and talk == [{"role": "system", "content": "S"}, {"role": "user", "content": "b"}]
    for bad in ([], [{"role": "assistant", "content": "x"}]):
        with pytest.raises(UsageError, match="must end with one to be answered"):
            chat.generate(bad)
    with pytest.raises(MlcrtError, match="role"):
        chat.generate([{"content": "x"}])
    assert roles(chat) == "sua"


def test_system_reset_and_regenerate(dist):
    with ChatModule(dist, system="Be brief.", temperature=1.0, max_tokens=12) as chat:
        assert roles(chat) == "s" and chat.system == "Be brief."
        first = chat.generate("q", seed=1)
        assert chat.regenerate(seed=1) == first and roles(chat) == "sua"
        assert chat.stats()["last"]["prefill_tokens"] == 1
        assert chat.regenerate(seed=2) != first
        chat.reset_chat()
        assert roles(chat) == "s"
        with pytest.raises(MlcrtError, match="ask something first"):
            chat.regenerate()
        chat.system = None
        assert chat.messages == []


def test_an_interrupted_answer_stays_and_the_talk_goes_on(dist, chat):
    chat.engine.toy["ends"] = 0
    shown = []

    def stop_after_three(piece):
        shown.append(piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.generate("q", stream=stop_after_three)
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(shown)}
    chat.generate("go on")
    assert chat.stats()["last"]["reused_tokens"] > 20
    check_answer(chat)
    # in the engine, in the middle of the answer and of the prompt
    for call, left in ((3, "ua"), (1, "")):
        chat.reset_chat()
        chat.engine.ran.clear()
        chat.engine.interrupt_at = call
        with pytest.raises(KeyboardInterrupt):
            chat.generate("another question")
        assert roles(chat) == left
        chat.engine.interrupt_at = None
        chat.generate("fine")
        assert roles(chat) == left + "ua"
        check_answer(chat)


def test_an_abandoned_iterator_is_an_ended_answer(chat):
    chat.engine.toy["ends"] = 0
    pieces = chat.stream("q")
    first = next(pieces)
    assert chat.messages[-1]["content"] == first
    second = chat.stream("r")
    next(second)
    assert roles(chat) == "uaua"
    unused = chat.stream("never begun")
    assert roles(chat) == "uaua" and list(unused)
    assert roles(chat) == "uauaua"


def test_failures_leave_the_conversation_as_it_was(chat):
    chat.generate("q")
    before = chat.messages
    with pytest.raises(MlcrtError, match="tokens but the context holds 512"):
        chat.generate("word " * 600)
    with pytest.raises(UsageError, match="top_p"):
        chat.generate("x", top_p=3)
    with pytest.raises(UsageError, match="did you mean max_tokens"):
        chat.generate("x", max_token=3)
    chat.engine.logits_after = lambda tokens: __import__("numpy").full(
        chat.engine.config.vocab, float("nan"), "float32"
    )
    with pytest.raises(MlcrtError, match="damaged"):
        chat.generate("x")
    assert chat.messages == before


def test_a_full_context_is_said(dist):
    with ChatModule(dist, context=64, temperature=0) as chat:
        chat.engine.toy["ends"] = 0
        chat.generate("q")
        assert chat.last.finish_reason == "length" and "64 tokens is full" in chat.last.notice
        with pytest.raises(MlcrtError, match="start over with /reset, or load with --context"):
            chat.generate("r")
        assert chat.stats()["context"] == {"size": 64, "used": 64, "dropped_turns": 0}


def test_context_shift_between_and_in_answers(dist):
    with ChatModule(dist, context=128, temperature=0, context_shift=True, system="S") as chat:
        for turn in range(12):
            chat.generate(f"question {turn}", max_tokens=10)
            assert len(chat.engine.tokens) <= 128
        stats = chat.stats()
        assert stats["context"]["dropped_turns"] > 3 and "oldest turns dropped" in str(stats)
        assert chat.messages[0] == {"role": "system", "content": "S"} and roles(chat)[1:] == "ua" * (
            len(roles(chat)) // 2
        )
        assert chat.messages[-2]["content"] == "question 11"
        # within one answer: what is left and the answer so far are run again, and the answer goes on
        chat.engine.toy["ends"] = 0
        text = chat.generate("the last", max_tokens=60)
        last = chat.stats()["last"]
        assert last["context_shifts"] >= 1 and last["completion_tokens"] == 60 and chat.last.finish_reason == "length"
        assert text == chat.tokenizer.decode(chat.last.generated) and chat.messages[0]["role"] == "system"
        kept = chat.tokenizer.encode(chat.tokenizer.template.render(chat.messages[:-1]))
        assert chat.engine.tokens == (kept + chat.last.generated)[: len(chat.engine.tokens)]
        # a single turn that outgrows the context cannot be shortened
        chat.generate("x", max_tokens=500)
        assert "context of 128 tokens is full" in chat.last.notice and chat.last.finish_reason == "length"


def test_benchmark_leaves_the_conversation_alone(chat):
    chat.engine.toy["ends"] = 3
    chat.generate("q")
    before = chat.messages
    chat.benchmark_generate("speed", generate_length=30)
    assert chat.stats()["last"]["completion_tokens"] == 30 and chat.messages == before
    assert chat.stats()["last"]["decode_tokens_per_s"] > 0 < chat.stats()["last"]["prefill_tokens_per_s"]
    chat.generate("go on")
    assert len(chat.messages) == 4


def test_stats_are_json_and_readable(chat):
    assert json.loads(json.dumps(chat.stats()))["last"]["completion_tokens"] == 0
    chat.generate("q")
    chat.generate("r")
    stats = chat.stats()
    again = json.loads(json.dumps(stats))
    assert (
        again == stats
        and stats["model"] == "toy-q0f32"
        and stats["device"] == "toy"
        and stats["memory"]["weights"] == 10_000_000
    )
    assert stats["total"]["completion_tokens"] >= stats["last"]["completion_tokens"]
    for part in ("tok/s", "prompt tokens were cached", "of 512 tokens", "weights 9.5 MiB"):
        assert part in str(stats)


def test_save_and_load(dist, tmp_path, chat):
    path = tmp_path / "sub" / "talk.mlcrt"
    chat.generate([{"role": "system", "content": "S"}, {"role": "user", "content": "q"}])
    messages, tokens = chat.messages, list(chat.engine.tokens)
    chat.save(path)
    expected = chat.generate("next")
    with ChatModule(dist, temperature=0, max_tokens=12) as other:
        other.generate("something else")
        other.load(path)
        assert other.messages == messages and other.engine.tokens == tokens
        other.engine.ran.clear()
        assert other.generate("next") == expected
        assert other.stats()["last"]["reused_tokens"] >= len(tokens) - 1
    assert [item.name for item in path.parent.iterdir()] == ["talk.mlcrt"]


def test_damaged_and_foreign_sessions_change_nothing(dist, tmp_path, chat):
    chat.generate("q")
    good = tmp_path / "good"
    chat.save(good)
    before, tokens = chat.messages, list(chat.engine.tokens)
    bad = tmp_path / "bad"
    whole = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        state, session = json.loads(archive.read("chat.json")), archive.read("session")

    def rewritten(changed, name="session"):
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("chat.json", json.dumps(changed))
            archive.writestr(name, session)
        return bad.read_bytes()

    contents = [b"", b"hello", whole[:-30], whole[: len(whole) // 2], whole.replace(b'"tokens"', b'"tokenz"')]
    contents += [rewritten([]), rewritten({**state, "format": "x"}), rewritten({**state, "messages": 3})]
    contents += [rewritten({**state, "known": [1]}), rewritten(state, "other")]
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(MlcrtError, match="bad is not a conversation saved by mlcrt, or it is damaged"):
            chat.load(bad)
    bad.write_bytes(rewritten({**state, "version": 9}))
    with pytest.raises(MlcrtError, match="version 9"):
        chat.load(bad)
    with pytest.raises(MlcrtError, match="no saved conversation"):
        chat.load(tmp_path / "nowhere")
    foreign = make_dist(tmp_path, "foreign-q0f32")
    with ChatModule(foreign) as other, pytest.raises(MlcrtError, match="good was saved by another model"):
        other.load(good)
    assert chat.messages == before and chat.engine.tokens == tokens
    (tmp_path / "file").write_text("")
    with pytest.raises(MlcrtError, match="cannot be saved"):
        chat.save(tmp_path / "file" / "x")


def test_a_failing_save_leaves_the_old_file(chat, tmp_path):
    path = tmp_path / "talk"
    chat.generate("q")
    chat.save(path)
    old = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    chat.engine.save = full
    with pytest.raises(MlcrtError, match="No space left"):
        chat.save(path)
    assert path.read_bytes() == old and [item.name for item in tmp_path.iterdir() if item.is_file()] == ["talk"]


def test_settings_come_from_the_model_then_the_caller(dist):
    (dist / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "top_k": 7}')
    with ChatModule(dist, top_k=3) as chat:
        assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.top_k) == (0.6, 0.9, 3)
    with pytest.raises(UsageError, match="nonsense"):
        ChatModule("no such model", nonsense=1)


def test_a_model_without_a_template_answers_a_transcript(tmp_path):
    dist = make_dist(tmp_path, template=None, ends=0)
    with ChatModule(dist, temperature=0, max_tokens=5) as chat:
        assert "no chat template" in chat.tokenizer.template.notice
        chat.generate("Hi")
        assert chat.tokenizer.decode(chat.last.prompt) == "User: Hi\nAssistant:"
        assert chat.last.params.stop == ("\nUser:",)


def test_which_folder_is_run(dist, tmp_path, monkeypatch):
    asked = {}

    def ensure_compiled(model, **kw):
        asked.update(kw, model=model)
        return dist

    monkeypatch.setitem(sys.modules, "mlcrt.compile", types.SimpleNamespace(ensure_compiled=ensure_compiled))
    assert resolve_model(dist, None, "auto", tmp_path / "no") == dist
    assert resolve_model("toy-q0f32", None, "auto", tmp_path) == tmp_path / "toy-q0f32"
    assert resolve_model(dist, "q0f32", "auto", tmp_path) == dist
    with pytest.raises(UsageError, match="compiled already"):
        resolve_model(dist, "q4f16_1", "auto", tmp_path)
    with pytest.raises(MlcrtError, match="damaged"):
        (tmp_path / "mlcrt.json").write_text("{")
        resolve_model(tmp_path, None, "auto", tmp_path)
    assert not asked
    # nothing is compiled for a device that is not here
    for device in ("metal", "metal:0", "cpu:aarch64-macos"):
        with pytest.raises(MlcrtError, match=f"this machine has no {device}: "):
            resolve_model("toy-q0f32", None, device, tmp_path)
    assert not asked
    # a folder without a library for this target is compiled where it is
    monkeypatch.setattr("mlcrt.chat.require_device", lambda device: None)
    assert resolve_model("toy-q0f32", None, "rocm:gfx1100", tmp_path) == dist
    assert asked["model"] == str(dist) and asked["target"] == "rocm:gfx1100"
    assert resolve_model("org/name", "q4f16_1", "cuda:1", tmp_path) == dist
    assert asked.pop("report") and asked == {
        "model": "org/name", "quantization": "q4f16_1", "target": "cuda", "dist_root": tmp_path,
    }  # fmt: skip
