"""Every feature of the chat and completion routes through the official `openai` package."""

from __future__ import annotations

import json
import math

import openai
import pytest
from served import running
from toy_dist import make_dist

MODEL = "toy"
HI = [{"role": "user", "content": "Once upon a time"}]


def chat(client, messages=HI, **more):
    more = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0, **more}
    return client.chat.completions.create(**more)


def collect(stream):
    """(content per choice, finish reasons, usage) of a chat stream, whose shape is checked on the way."""
    texts, reasons, usage = {}, {}, None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk" and chunk.model == MODEL
        assert usage is None, "nothing may follow the usage"
        for choice in chunk.choices:
            if choice.index not in texts:
                assert choice.delta.role == "assistant"
            assert choice.index not in reasons
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    return texts, reasons, usage


def test_a_chat_answer_is_what_the_engine_generates(server, client):
    answer = chat(client)
    text = answer.choices[0].message.content
    prompt = server.scheduler.seen[-1].prompt
    rendered = server.service.tokenizer.decode(prompt, skip_special=False)
    assert rendered.endswith("<|im_start|>user\nOnce upon a time<|im_end|>\n<|im_start|>assistant\n")
    tokens = list(prompt)
    for _ in range(24):
        tokens.append(int(server.scheduler.engine.logits_after(tokens).argmax()))
    assert text == server.service.tokenizer.decode(tokens[len(prompt) :]) and text
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 24 and answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.total_tokens == 24 + len(prompt)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"


def test_a_stream_is_the_same_answer(client):
    whole = chat(client).choices[0].message.content
    texts, reasons, usage = collect(chat(client, stream=True))
    assert (texts, reasons, usage) == ({0: whole}, {0: "length"}, None)
    texts, _, usage = collect(chat(client, stream=True, stream_options={"include_usage": True}))
    assert texts == {0: whole} and usage.completion_tokens == 24 and usage.prompt_tokens > 0


def test_messages_of_every_role_and_parts(server, client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "C", "name": "x"},
        {"role": "user", "content": "D"},
    ]
    chat(client, messages)
    text = server.service.tokenizer.decode(server.scheduler.seen[-1].prompt, skip_special=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA\nB<|im_end|>\n"
        "<|im_start|>assistant\nC<|im_end|>\n<|im_start|>user\nD<|im_end|>\n<|im_start|>assistant\n"
    )


def test_n_and_seed(client):
    warm = {"temperature": 5.0, "n": 3, "seed": 7, "max_tokens": 12}
    first = [choice.message.content for choice in chat(client, **warm).choices]
    assert len(set(first)) == 3
    assert [choice.message.content for choice in chat(client, **warm).choices] == first
    texts, reasons, _ = collect(chat(client, stream=True, **warm))
    assert [texts[i] for i in range(3)] == first and set(reasons.values()) == {"length"}
    assert chat(client, **{**warm, "n": 1, "seed": 8}).choices[0].message.content == first[1]
    assert chat(client, **{**warm, "n": 1, "seed": -5}).choices[0].message.content not in first
    unseeded = {chat(client, temperature=5.0).choices[0].message.content for _ in range(3)}
    assert len(unseeded) == 3


def test_usage_counts_a_prompt_once(client):
    one, three = chat(client).usage, chat(client, n=3).usage
    assert three.prompt_tokens == one.prompt_tokens and three.completion_tokens == 3 * one.completion_tokens


def test_stop_strings(server, client):
    whole = chat(client).choices[0].message.content
    stop = whole[10:14]
    cut = whole[: whole.index(stop)]
    for stops in (stop, [stop, "never there"]):
        answer = chat(client, stop=stops)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (cut, "stop")
    texts, reasons, usage = collect(chat(client, stop=stop, stream=True, stream_options={"include_usage": True}))
    assert (texts, reasons) == ({0: cut}, {0: "stop"}) and 0 < usage.completion_tokens < 24
    chat(client, stop="<|im_start|>")
    assert 1 in server.scheduler.seen[-1].stop_token_ids


def test_a_stop_string_gives_the_slot_back(dist):
    with running(dist, step_s=0.005) as server:
        client = server.client()
        stop = chat(client).choices[0].message.content[10:14]
        before = server.idle()["tokens_generated"]
        assert chat(client, stop=stop, max_tokens=1900).choices[0].finish_reason == "stop"
        assert server.idle()["tokens_generated"] - before < 1500, "it did not run to its limit, which takes 10 s"


def test_the_models_own_end(tmp_path):
    dist = make_dist(tmp_path, ends=6)
    with running(dist) as server:
        client = server.client()
        answer = chat(client, max_tokens=200)
        assert answer.choices[0].finish_reason == "stop" and "<|im_end|>" not in answer.choices[0].message.content
        longer = chat(client, max_tokens=200, extra_body={"ignore_eos": True})
        assert longer.usage.completion_tokens == 200 and longer.choices[0].finish_reason == "length"
        assert longer.choices[0].message.content.startswith(answer.choices[0].message.content)


def test_logprobs(server, client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 24
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        assert bytes(entry.bytes).decode() == entry.token and entry.logprob <= 0
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) <= 1 + 1e-5
    streamed = [
        entry
        for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == content
    assert chat(client).choices[0].logprobs is None
    bare = chat(client, logprobs=True).choices[0].logprobs.content
    assert [entry.top_logprobs for entry in bare] == [[]] * 24


def test_logprobs_of_what_a_stop_string_swallows_are_left_out(client):
    content = chat(client, logprobs=True).choices[0].logprobs.content
    stop = content[8].token + content[9].token
    answer = chat(client, logprobs=True, stop=stop)
    seen = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in seen) == answer.choices[0].message.content


def test_sampling_settings_arrive(server, client):
    chat(
        client, temperature=0.5, top_p=0.8, presence_penalty=0.2, frequency_penalty=-0.3,
        logit_bias={"5": 1.5, "6": -100}, seed=4, max_completion_tokens=3, user="somebody",
        store=False, metadata={"a": "b"}, service_tier="auto",
        extra_body={"top_k": 9, "min_p": 0.01, "repetition_penalty": 1.1, "a_field_of_tomorrow": 1},
    )  # fmt: skip
    request = server.scheduler.seen[-1]
    params = request.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.8, 9, 0.01)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.2, -0.3, 1.1)
    assert (params.logit_bias, params.seed, request.max_tokens) == ({5: 1.5, 6: -100.0}, 4, 3)
    assert request.client == "127.0.0.1" and request.timeout_s == 600


def test_penalties_and_bias_change_the_answer(client):
    plain = chat(client).choices[0].message.content
    first = client.post("/../tokenize", cast_to=object, body={"text": plain, "add_special_tokens": False})["tokens"][0]
    assert chat(client, logit_bias={str(first): -100}).choices[0].message.content != plain
    assert chat(client, top_p=0, temperature=3).choices[0].message.content == plain


def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="Once", temperature=0)
    assert answer.object == "text_completion" and answer.usage.completion_tokens == 16 and answer.choices[0].text
    text = answer.choices[0].text
    pieces = client.completions.create(model=MODEL, prompt="Once", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == text
    echoed = client.completions.create(model=MODEL, prompt="Once", temperature=0, echo=True)
    assert echoed.choices[0].text == "Once" + text
    tokens = client.post("/../tokenize", cast_to=object, body={"text": "Once"})["tokens"]
    several = client.completions.create(model=MODEL, prompt=["Once", "upon"], temperature=0, n=2, echo=True)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in several.choices[:2]] == ["Once" + text] * 2
    assert several.choices[2].text.startswith("upon")
    for prompt in (tokens, [tokens, tokens]):
        assert client.completions.create(model=MODEL, prompt=prompt, temperature=0).choices[0].text == text


def test_completion_logprobs(client):
    answer = client.completions.create(model=MODEL, prompt="Once", temperature=0, logprobs=2, max_tokens=6)
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text and len(found.token_logprobs) == 6
    for token, offset, best, value in zip(
        found.tokens, found.text_offset, found.top_logprobs, found.token_logprobs, strict=True
    ):
        assert answer.choices[0].text[offset:].startswith(token) and len(best) == 2 and best[token] == value
    chunks = client.completions.create(model=MODEL, prompt="Once", temperature=0, logprobs=2, max_tokens=6, stream=True)
    streamed = [c.choices[0].logprobs for c in chunks]
    assert [t for entry in streamed if entry for t in entry.tokens] == found.tokens
    assert [o for entry in streamed if entry for o in entry.text_offset] == found.text_offset


def test_models_and_names(dist):
    from mlcrt.serve.settings import Settings

    with running(dist, Settings(("first", "org/second"))) as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["first", "org/second"]
        assert client.models.retrieve("org/second").id == "org/second"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("third")
        assert caught.value.code == "model_not_found"
        assert chat(client, model="org/second").model == "first"


def test_embeddings(server, client):
    one = client.embeddings.create(model=MODEL, input="Once upon")
    vector = one.data[0].embedding
    assert len(vector) == 64 and math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) and one.usage.prompt_tokens > 0
    plain = client.embeddings.create(model=MODEL, input=["Once", "Once upon"], encoding_format="float", dimensions=64)
    assert [entry.index for entry in plain.data] == [0, 1]
    assert plain.data[1].embedding == pytest.approx(vector, abs=1e-6)
    tokens = server.service.tokenizer.encode_text("Once upon")
    assert client.embeddings.create(model=MODEL, input=tokens).data[0].embedding == vector
    raw = server.scheduler.embeddings(tokens)
    assert vector == pytest.approx((raw / (raw**2).sum() ** 0.5).tolist(), abs=1e-6)


def test_tokens_there_and_back(server, client):
    text = "Größe <|im_end|> 日本 🙂"
    tokens = client.post("/../tokenize", cast_to=object, body={"text": text})
    assert tokens["tokens"] == server.service.tokenizer.encode_text(text) and tokens["count"] == len(tokens["tokens"])
    back = client.post("/../detokenize", cast_to=object, body={"tokens": tokens["tokens"]})
    assert back == {"text": text}
    short = {"tokens": tokens["tokens"], "skip_special_tokens": True}
    assert client.post("/../detokenize", cast_to=object, body=short) == {"text": text.replace("<|im_end|>", "")}
    rendered = client.post("/../tokenize", cast_to=object, body={"messages": HI})
    chat(client)
    assert rendered["tokens"] == list(server.scheduler.seen[-1].prompt) and rendered["context"] == 2048


def test_the_context_ends_an_answer(server, client):
    answer = chat(client, max_tokens=5000)
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 2048
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, [{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded" and "2048" in caught.value.message


def test_asynchronous_clients_at_once(server):
    import asyncio

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            jobs = [
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"number {i}"}], max_tokens=10, temperature=0
                )
                for i in range(10)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*jobs)]

    together = asyncio.run(all_of_them())
    alone = [
        chat(server.client(), [{"role": "user", "content": f"number {i}"}], max_tokens=10).choices[0].message.content
        for i in range(10)
    ]
    assert together == alone


def test_answers_are_plain_json(server):
    import requests

    body = {"model": MODEL, "messages": HI, "max_tokens": 4, "stream": True}
    answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["x-request-id"]
    events = answer.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])
