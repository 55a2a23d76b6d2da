"""Formats, grammars and tools, enforced on an engine whose own answers are noise."""

from __future__ import annotations

import json
import re

import openai
import pytest
from served import running
from toy_dist import make_dist

MODEL = "toy"
HI = [{"role": "user", "content": "Hi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FLAG = {**CITY, "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Looks outside.", "parameters": CITY}},
    {"type": "function", "function": {"name": "light", "parameters": FLAG}},
]


def chat(client, messages=HI, **more):
    more = {"model": MODEL, "messages": messages, "max_tokens": 400, "temperature": 1.0, "seed": 3, **more}
    return client.chat.completions.create(**more)


def check_call(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["city"] in ("Paris", "Oslo") and 1 <= arguments["days"] <= 9 and len(arguments) == 2
    else:
        assert call.function.name == "light" and arguments["on"] in (True, False) and len(arguments) == 1


def test_a_json_schema_is_followed(client):
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY, "strict": True}}
    for seed in range(4):
        answer = chat(client, response_format=form, seed=seed)
        value = json.loads(answer.choices[0].message.content)
        assert value["city"] in ("Paris", "Oslo") and 1 <= value["days"] <= 9
        assert answer.choices[0].finish_reason == "stop"


def test_any_json_object(client):
    # noise seldom closes a string, so the bias makes ends likely
    ids = client.post("/../tokenize", cast_to=object, body={"text": '"}', "add_special_tokens": False})["tokens"]
    answer = chat(client, response_format={"type": "json_object"}, logit_bias={str(i): 60 for i in ids}, temperature=0)
    assert isinstance(json.loads(answer.choices[0].message.content), dict) and answer.choices[0].finish_reason == "stop"
    assert chat(client, response_format={"type": "text"}, max_tokens=4).choices[0].finish_reason == "length"


def test_a_pydantic_class_through_parse(client):
    import pydantic

    class Light(pydantic.BaseModel):
        on: bool
        level: int = pydantic.Field(ge=0, le=3)

    parsed = client.chat.completions.parse(model=MODEL, messages=HI, max_tokens=200, response_format=Light, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Light)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= ("yes" | "no") " " [0-9]{3}', r"(yes|no) \d{3}"),
        ('start: "<" /[a-c]+/ ">"', r"<[abc]+>"),
        ({"type": "regex", "value": "[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
        ({"type": "gbnf", "value": 'root ::= "é"+ "!"'}, r"é+!"),
        ({"type": "lark", "value": "start: WORD\nWORD: /[xyz]{5}/"}, r"[xyz]{5}"),
    ],
)
def test_grammars(client, grammar, pattern):
    answer = chat(client, extra_body={"grammar": grammar})
    assert re.fullmatch(pattern, answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    text = client.completions.create(
        model=MODEL, prompt="x", max_tokens=400, seed=2, extra_body={"grammar": grammar}, stream=True
    )
    assert re.fullmatch(pattern, "".join(chunk.choices[0].text for chunk in text))


def test_n_answers_have_a_grammar_each(client):
    choices = chat(client, n=4, extra_body={"grammar": {"type": "regex", "value": "[0-9]{6}"}}).choices
    assert all(re.fullmatch(r"\d{6}", choice.message.content) for choice in choices)
    assert len({choice.message.content for choice in choices}) > 1


def test_a_special_token_is_no_text_for_a_grammar(client):
    answer = chat(client, extra_body={"grammar": 'start: "<|im_end|>" "x"'}, logprobs=True)
    assert answer.choices[0].message.content == "<|im_end|>x" and len(answer.choices[0].logprobs.content) > 2


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"grammar": "start: nowhere"}, "grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar"),
        ({"grammar": {"type": "regex", "value": "a" * 40000}}, "grammar"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nosuch"}}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "start: /a/"}, "grammar"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=more)
    assert caught.value.param == param, caught.value.message


def test_grammars_that_would_break_the_process_do_not(server, client):
    """Chains of references overran the stack of the native parser before there was a limit."""
    chain = {f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1500)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d1500": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    assert chat(client, response_format=form, max_tokens=50).choices[0].message.content.startswith("{")
    rules = "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(2000)), 'r2000: "b"'])
    assert chat(client, extra_body={"grammar": rules}).choices[0].message.content == "b"
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body={"grammar": "start: " + "(" * 30000})
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body={"grammar": {"type": "regex", "value": "(a{1000}){1000}"}})
    assert "could not be followed" in caught.value.message
    server.idle()


@pytest.mark.parametrize("form", ["hermes", "llama3", "mistral"])
def test_tools_in_every_format(tmp_path, form):
    from mlcrt.serve.settings import Settings

    with running(make_dist(tmp_path, ends=0, context=2048), Settings((MODEL,), tool_format=form)) as server:
        client = server.client()
        answer = chat(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        (call,) = answer.choices[0].message.tool_calls
        check_call(call)
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        named = {"type": "function", "function": {"name": "light"}}
        answer = chat(client, tools=TOOLS, tool_choice=named)
        assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["light"]
        check_call(answer.choices[0].message.tool_calls[0])

        calls, content, reason, deltas = {}, "", None, 0
        for chunk in chat(client, tools=TOOLS, tool_choice=named, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
            for piece in delta.tool_calls or []:
                deltas += 1
                if piece.id:
                    assert piece.index not in calls and piece.type == "function" and piece.function.name
                    calls[piece.index] = [piece.function.name, ""]
                calls[piece.index][1] += piece.function.arguments or ""
        assert (content, reason) == ("", "tool_calls") and deltas > 2, "arguments come in pieces"
        assert calls == {0: ["light", answer.choices[0].message.tool_calls[0].function.arguments]}
        server.idle()


def test_several_calls(client):
    for seed in range(20):
        answer = chat(client, tools=TOOLS, tool_choice="required", seed=seed, max_tokens=480)
        if answer.choices[0].finish_reason == "tool_calls" and len(answer.choices[0].message.tool_calls) > 1:
            break
    calls = answer.choices[0].message.tool_calls
    assert len(calls) > 1 and len({call.id for call in calls}) == len(calls)
    for call in calls:
        check_call(call)


def test_tool_choice_auto_and_none(server, client):
    written = '<tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>'
    tokenizer = server.service.tokenizer
    plain = chat(client, tools=TOOLS, max_tokens=8)
    assert plain.choices[0].message.tool_calls is None and plain.choices[0].finish_reason == "length"
    text = tokenizer.decode(server.scheduler.seen[-1].prompt, skip_special=False)
    assert '"name": "weather"' in text and "<tool_call>" in text, "the toy's template has no tools, so they are told"
    # a grammar plays the model that decides to call
    forced = {"grammar": {"type": "lark", "value": f"start: {json.dumps('Well. ' + written)}"}}
    message = chat(client, tools=TOOLS, extra_body=forced).choices[0].message
    assert message.content == "Well." and message.tool_calls[0].function.name == "light"
    assert json.loads(message.tool_calls[0].function.arguments) == {"on": True}
    message = chat(client, tools=TOOLS, tool_choice="none", extra_body=forced).choices[0].message
    assert message.content == "Well. " + written and message.tool_calls is None
    assert "weather" not in tokenizer.decode(server.scheduler.seen[-1].prompt)


def test_results_go_back_to_the_model(server, client):
    call = {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    chat(client, messages, tools=TOOLS, max_tokens=4)
    text = server.service.tokenizer.decode(server.scheduler.seen[-1].prompt, skip_special=False)
    assert '<tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\ndone\n</tool_response>" in text


@pytest.mark.parametrize(("template", "part"), [("llama3", '{"name": "light", "parameters": {"on": true}}<|eot_id|>'),
                                                ("qwen3", "<tool_response>\ndone\n</tool_response>")])  # fmt: skip
def test_templates_that_know_tools_get_them(tmp_path, template, part):
    with running(make_dist(tmp_path, template=template, ends=0, context=4000)) as server:
        call = {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
        messages = [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        ]
        chat(server.client(), messages, tools=TOOLS, max_tokens=4)
        text = server.service.tokenizer.decode(server.scheduler.seen[-1].prompt, skip_special=False)
        assert part in text and '"weather"' in text and "Looks outside." in text


def test_template_variables(tmp_path):
    with running(make_dist(tmp_path, template="qwen3", ends=0)) as server:
        client = server.client()
        chat(client, max_tokens=2, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        assert server.service.tokenizer.decode(server.scheduler.seen[-1].prompt).endswith("<think>\n\n</think>\n\n")
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, extra_body={"chat_template_kwargs": {"messages": []}})
        assert caught.value.param == "chat_template_kwargs"
