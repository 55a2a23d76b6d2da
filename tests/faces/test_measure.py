"""bench and eval on the toy engine: the figures against what they are defined to be."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import Engine

from mlcrt import cli
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.measure import machine
from mlcrt.measure.bench import bench, bytes_per_token, memory_text, memory_used, run_once
from mlcrt.measure.mmlu import mmlu, read_questions
from mlcrt.measure.perplexity import llama_windows, losses, perplexity, windows
from mlcrt.models.config import MixtureOfExperts
from mlcrt.runtime.tokenizer import ModelTokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Größe, naïve café, 日本語 🙂\n" * 6


@pytest.fixture
def parts(dist):
    engine = Engine(dist)
    return engine, ModelTokenizer(dist, engine.config.eos)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# -- perplexity


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(2, 20), st.integers(1, 20), st.booleans())
def test_every_token_is_scored_once_with_the_most_before_it(size, window, stride, has_bos):
    stride, tokens, bos = min(stride, window), list(range(100, 100 + size)), 7 if has_bos else None
    scored = []
    for part in windows(tokens, window, stride, bos):
        assert 2 <= len(part.tokens) <= window and 1 <= part.first < len(part.tokens)
        body = part.tokens[1:] if has_bos else part.tokens
        assert part.tokens[0] == bos or not has_bos
        assert body == list(range(body[0], body[0] + len(body)))
        scored += part.tokens[part.first :]
    step = min(stride, window - has_bos)
    if has_bos:
        assert scored == tokens
    elif step < window:
        assert scored == tokens[1:]
    else:
        assert scored == [token for i, token in enumerate(tokens) if i % window]


def test_llama_cpps_windows():
    # by its definition: n_ctx tokens, begun with BOS, logits from n_ctx/2 to n_ctx-2 predict the next token
    tokens = list(range(10, 45))
    cut = list(llama_windows(tokens, 8, bos=1))
    whole = [1, *tokens]
    assert [part.tokens for part in cut] == [[1, *whole[i + 1 : i + 8]] for i in (0, 8, 16, 24)]
    assert all(part.tokens[part.first :] == part.tokens[5:8] for part in cut)
    assert [part.tokens for part in llama_windows(tokens, 8, None)] == [tokens[i : i + 8] for i in (0, 8, 16, 24)]


def test_loss_of_large_logits():
    logits = np.array([[1000, 0, -1000], [3, 2, 1]], np.float32)
    expected = [0.0, math.log(1 + math.e + math.e**2)]
    assert losses(logits, [0, 2]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(MlcrtError, match="not finite"):
        losses(np.array([[np.nan, 0]], np.float32), [0])


@pytest.mark.parametrize(
    ("window", "stride", "add_bos"), [(50, None, False), (50, 20, False), (40, 13, True), (512, None, True)]
)
def test_perplexity_is_what_the_formula_says(parts, text, window, stride, add_bos):
    engine, tokenizer = parts
    tokenizer.bos = 0 if add_bos else None
    result = perplexity(engine, tokenizer, text, window, stride)
    tokens = tokenizer.encode(TEXT)
    step, front = min(stride or window, window - add_bos), [0] * add_bos
    total, count, size, begin = 0.0, 0, 0, 0
    for i in range(len(tokens)):
        # the first window that reaches token i scores it
        while begin + window - add_bos <= i:
            begin += step
        context = front + tokens[begin:i]
        if not context:
            continue
        logits = engine.logits_after(context).astype(np.float64)
        total -= logits[tokens[i]] - math.log(np.exp(logits).sum())
        count += 1
        size += len(tokenizer.table.bytes_of(tokens[i]))
    assert (result["scored_tokens"], result["scored_bytes"], result["text_tokens"]) == (count, size, len(tokens))
    assert result["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    if add_bos:
        assert size == len(TEXT.encode())


def test_eval_on_the_command_line(dist, text, capsys):
    common = ["eval", str(dist), "--perplexity", str(text), "--window", "32"]
    assert cli.main([*common, "--json", "--llama-cpp", "--limit", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["windows"] == 3 and result["scored_tokens"] == 3 * 15 and result["method"] == "llama.cpp"
    assert result["model"] == "toy-q0f32" and result["standard_error"] > 0
    assert cli.main(common) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "bits per byte" in out and "32 tokens, stride 32" in out


def test_eval_refuses(parts, text, tmp_path, dist, capsys):
    engine, tokenizer = parts
    for kw, part in [
        ({"window": 513}, "does not fit into the context of 512"),
        ({"window": 1}, "--window must be 2"),
        ({"window": 8, "stride": 9}, "--stride not larger"),
        ({"window": 8, "stride": 4, "llama_cpp": True}, "do not overlap"),
    ]:
        with pytest.raises(UsageError, match=part):
            perplexity(engine, tokenizer, text, **kw)
    short, binary = tmp_path / "short.txt", tmp_path / "binary"
    short.write_text("")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MlcrtError, match="short.txt has 0 tokens"):
        perplexity(engine, tokenizer, short)
    with pytest.raises(MlcrtError, match="binary is not UTF-8"):
        perplexity(engine, tokenizer, binary)
    assert cli.main(["eval", str(dist), "--mmlu", str(short), "--window", "8"]) == 2
    assert "belong to --perplexity" in capsys.readouterr().err


# -- multiple choice

CSV = '"2 + 2?",3,4,5,6,B\n"Which, if any?",a,b,"c ""d""",e,d\n'


def test_questions_in_both_forms(tmp_path):
    table, lines = tmp_path / "q.csv", tmp_path / "q.jsonl"
    table.write_text(CSV)
    entries = [
        {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1},
        {"question": "Which, if any?", "choices": ["a", "b", 'c "d"', "e"], "answer": "D"},
    ]
    lines.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    assert read_questions(table) == read_questions(lines)
    assert read_questions(table)[0].prompt() == (
        "The following are multiple choice questions (with answers).\n\n2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
    )
    for bad in ("x\n", "q,a,b,c,d,E\n", "q,a,b,c,A\n", "", "q,a,b,c,d,\n"):
        table.write_text(bad)
        with pytest.raises(MlcrtError, match="q.csv"):
            read_questions(table)
    for bad in ("[]", "{", '{"question": "q", "choices": ["a"], "answer": 0}', '{"question": 1}'):
        lines.write_text(bad)
        with pytest.raises(MlcrtError, match="Line 1 of .*q.jsonl"):
            read_questions(lines)


def test_accuracy_is_the_share_of_right_letters(parts, tmp_path, dist, capsys):
    engine, tokenizer = parts
    path = tmp_path / "q.jsonl"
    letters = [tokenizer.encode(f"Answer: {letter}")[-1] for letter in "ABCD"]
    rng, entries, right = np.random.default_rng(0), [], 0
    engine.toy["text_tokens"] = letters + engine.toy["text_tokens"]
    for i in range(40):
        entry = {"question": f"{i}?", "choices": list("wxyz"), "answer": int(rng.integers(4)), "subject": "some_law"}
        entries.append(entry)
        prompt = "The following are multiple choice questions (with answers) about some law.\n\n"
        prompt += f"{i}?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
        right += int(engine.logits_after(tokenizer.encode(prompt))[letters].argmax()) == entry["answer"]
    path.write_text("\n".join(map(json.dumps, entries)))
    result = mmlu(engine, tokenizer, path)
    assert 0 < right < 40 and result["accuracy"] == right / 40 and result["questions"] == 40
    assert max(engine.ran[1:]) < 60  # the common beginning is not run again
    assert mmlu(engine, tokenizer, path, limit=7)["questions"] == 7
    engine.context = 5
    engine.rollback(0)
    with pytest.raises(MlcrtError, match="fits into the context of 5"):
        mmlu(engine, tokenizer, path)
    assert cli.main(["eval", str(dist), "--mmlu", str(path)]) == 0 and "accuracy" in capsys.readouterr().out


# -- speed


def test_bench_counts_what_it_ran(dist, monkeypatch, capsys):
    monkeypatch.setattr(machine, "read_bandwidth", lambda: 1e10)
    monkeypatch.setenv("TOY_DELAY", "0.002")
    start = time.perf_counter()
    assert cli.main(["bench", str(dist), "-p", "50", "-n", "10", "--repeat", "3", "--json"]) == 0
    took = time.perf_counter() - start
    result = json.loads(capsys.readouterr().out)
    step = result["decode_ms_per_token"]
    assert 2 <= step["min"] <= step["median"] <= step["p95"] < 1e3 * took
    assert 10 / took < result["decode_tokens_per_s"] <= 500 and result["decode_tokens_per_s"] <= 1e3 / step["min"]
    speed = result["prefill_tokens_per_s"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert 0 < result["load_s"] < result["first_token_s"] < took
    assert result["floor_ms_per_token"] == pytest.approx(result["bytes_per_token"] / 1e10 * 1e3)
    assert result["floor_share"] == pytest.approx(result["floor_ms_per_token"] / step["median"])
    assert result["peak_memory"] > 1e7 and result["memory"]["kv"] == 60 * 256 and result["machine"]["cores"] >= 1
    assert cli.main(["bench", str(dist), "-p", "20", "-n", "2", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "prefill 20" in out and "decode 2" in out and "per token at 10.0 GB/s" in out


def test_without_a_known_bandwidth_there_is_no_floor(dist, monkeypatch, capsys):
    monkeypatch.setattr(machine, "read_bandwidth", lambda: None)
    common = ["bench", str(dist), "-p", "20", "-n", "2", "--repeat", "1"]
    assert cli.main([*common, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["read_bandwidth"] is result["floor_ms_per_token"] is result["floor_share"] is None
    assert result["bytes_per_token"] > 1e6
    assert cli.main(common) == 0
    out = capsys.readouterr().out
    assert "bandwidth cannot be measured" in " ".join(out.replace("│", " ").split()) and "of it reached" not in out


def test_memory_taken_on_the_device_is_set_against_the_plan(dist, monkeypatch):
    taken = Engine(dist)
    taken.device_bytes = 3 << 20
    used = memory_used(taken)
    assert used["device_memory"] == 3 << 20
    assert "on the device 3.0 MiB taken, 9.7 MiB planned" in memory_text(used)
    taken.device_bytes = None
    assert "device" not in memory_text(memory_used(taken))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either MODEL or --synthetic"),
        (["m", "--synthetic", "llama3-8b"], "give either MODEL or --synthetic"),
        (["m", "--target", "cpu"], "belong to --synthetic"),
        (["m", "--compile-only"], "belong to --synthetic"),
        (["--synthetic", "smollm2-135m", "--context", "64"], "--context does not go with"),
        (["--synthetic", "llama9-1t"], "no shape 'llama9-1t'"),
        (["--synthetic", "smollm2-135m", "--quantization", "q5"], "q5"),
        (["--synthetic", "smollm2-135m", "--target", "cuda", "--device", "cpu"], "does not run code for"),
        (["--synthetic", "smollm2-135m", "--target", "abacus"], "unknown target 'abacus'"),
        (["--synthetic", "smollm2-135m", "--contexts", "16,0"], "must be 1 or more"),
        (["--synthetic", "smollm2-135m", "--contexts", "16,,2"], "--contexts"),
        (["m", "--profile", "sampling"], "--profile"),
    ],
)
def test_bench_refuses_in_words(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["bench", *arguments])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_one_run_is_one_prefill_and_single_steps(dist):
    engine = Engine(dist)
    engine.prefill([5])
    engine.ran.clear()
    start = time.perf_counter()
    prefill, steps = run_once(engine, [3, 4, 5], 4)
    assert engine.ran == [3, 1, 1, 1, 1] and len(engine.tokens) == 7 and len(steps) == 4
    assert prefill + sum(steps) <= time.perf_counter() - start


def test_bench_refuses_what_does_not_fit(dist):
    with pytest.raises(UsageError, match="cannot hold 50 \\+ 20"):
        bench(dist, "auto", 50, 20, 1, context=60)


def test_bytes_that_a_token_reads(dist):
    config = Engine(dist).config
    memory = {"weights": 1000, "kv": 500}
    from dataclasses import replace

    assert bytes_per_token(replace(config, tie_embeddings=True), memory, 100, 50) == 1000 + 250
    # without tying, the embedding table is stored but one row of it is read
    table = config.vocab * 64
    layers = 2 * (64 * 16 * (4 + 2) * 2 + 3 * 64 * 128)
    expected = 1000 * (layers + table) / (layers + 2 * table)
    assert bytes_per_token(config, memory, 100, 0) == pytest.approx(expected)
    routed = replace(config, tie_embeddings=True, moe=MixtureOfExperts(8, 2, 128))
    layers = 2 * (64 * 16 * 12 + 8 * 3 * 64 * 128)
    expected = 1000 * (layers - 2 * 6 * 3 * 64 * 128 + table) / (layers + table)
    assert bytes_per_token(routed, memory, 100, 0) == pytest.approx(expected)


def test_this_machine():
    found = machine.describe()
    assert found["cpu"] and found["cores"] >= 1 and found["os"] and found["memory"] > 1e8
    assert 1e8 < machine.read_bandwidth(1 << 25, 0.05) < 1e13
