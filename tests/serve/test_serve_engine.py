"""A compiled model behind the server: the same answers as ChatModule gives, and a short storm of clients."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import load
import numpy as np
import openai
import pytest
import tiny
from served import Running

from mlcrt.chat import ChatModule
from mlcrt.compile import compile_model
from mlcrt.runtime.engine import Engine
from mlcrt.serve.run import open_service
from mlcrt.serve.settings import Settings

QUESTIONS = ["What is a river?", "Name three colours.", "Hi", "A longer question about many things. " * 4]
GREEDY = {"model": "tiny", "max_tokens": 20, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    return compile_model(tiny.make_tiny("llama3_gqa7", root / "model"), "q4f16_1", "cpu", dist_root=root)


@pytest.fixture(scope="module")
def real(compiled):
    server = Running(open_service(compiled, Settings(("tiny",)), "cpu", slots=4, context=256, queue=16))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def expected(compiled) -> dict[str, str]:
    with ChatModule(compiled, "cpu", context=256, temperature=0, max_tokens=20, ignore_eos=True) as chat:
        return {question: chat.generate([{"role": "user", "content": question}]) for question in QUESTIONS}


def ask(client, question, **more):
    return client.chat.completions.create(messages=[{"role": "user", "content": question}], **{**GREEDY, **more})


def test_alone_and_all_together_as_in_chat(real, expected):
    client = real.client()
    assert {q: ask(client, q).choices[0].message.content for q in QUESTIONS} == expected
    together: dict[str, str] = {}

    def one(question):
        pieces = ask(real.client(), question, stream=True)
        together[question] = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)

    threads = [threading.Thread(target=one, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == expected
    assert ask(client, QUESTIONS[3]).usage.prompt_tokens_details.cached_tokens > 0, "its prompt was computed before"


def test_logprobs_are_the_models(real, compiled):
    answer = ask(real.client(), "Hi", logprobs=True, top_logprobs=4)
    prompt = real.service.tokenizer.encode(real.service.prompts.render([_User("Hi")]))
    engine = Engine(compiled, "cpu", context=256)
    logits = engine.prefill(prompt).astype(np.float64)
    for entry in answer.choices[0].logprobs.content[:5]:
        values = logits - np.logaddexp.reduce(logits)
        order = np.argsort(-values)[:4]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values[order].tolist(), abs=2e-3)
        logits = engine.decode(int(order[0])).astype(np.float64)
    engine.close()


class _User:
    role = "user"

    def __init__(self, content):
        self.content = content


def test_a_schema_holds_on_real_logits(real):
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["on", "size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema}}
    blanks = {str(real.service.tokenizer.encode(blank)[0]): -100 for blank in " \t\r\n"}  # random weights love them
    for temperature in (0, 1.5):
        more = {"max_tokens": 150, "temperature": temperature, "seed": 1, "logit_bias": blanks}
        answer = ask(real.client(), "Hi", response_format=form, **more)
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"on", "size"} and answer.choices[0].finish_reason == "stop"


def test_embeddings(real):
    client = real.client()
    one = client.embeddings.create(model="tiny", input="A river runs.").data[0].embedding
    again, other = client.embeddings.create(model="tiny", input=["A river runs.", "xyz 123"]).data
    assert again.embedding == pytest.approx(one, abs=1e-5) and np.dot(one, one) == pytest.approx(1, abs=1e-5)
    assert np.abs(np.subtract(other.embedding, one)).max() > 1e-3


def test_a_prompt_that_is_too_long(real):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(real.client(), "word " * 300)
    assert caught.value.code == "context_length_exceeded"


def test_a_short_storm_of_clients(compiled):
    """tests/serve/load.py at a tenth of its size; see there for what counts as a problem."""
    line = "--clients 8 --seconds 6 --alone 1.5 --tokens 24 --slots 4 --context 400"
    options = load.arguments(["--model", str(compiled), *line.split()])
    report = load.run(options, [sys.executable, "-m", "mlcrt.cli"])
    print(json.dumps(report))
    assert report["problems"] == []
    # every client of a phase has its turn, however slow the machine is
    assert sum(report["all"]["requests"].values()) >= 8 and report["server"]["tokens_generated"] > 50
