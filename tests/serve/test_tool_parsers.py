"""Tool calls out of streamed text: however the text is cut, the same comes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.serve.tools.formats import FORMATS
from mlcrt.serve.tools.parser import Arguments, CallStart, Text

KNOWN = ("get_weather", "add")


def collect(events):
    """(content, [[name, arguments], …]) of parser events, which must be well-formed."""
    content, calls = "", []
    for event in events:
        if isinstance(event, Text):
            assert event.text
            content += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append([event.name, ""])
        else:
            assert isinstance(event, Arguments) and event.index == len(calls) - 1 and event.text
            calls[-1][1] += event.text
    return content, calls


def parse(form, text, cuts=()):
    parser, events, last = FORMATS[form].parser(KNOWN), [], 0
    for cut in sorted({c % (len(text) + 1) for c in cuts}):
        events += parser.feed(text[last:cut])
        last = cut
    return collect([*events, *parser.feed(text[last:]), *parser.finish()])


W = '{"city": "Paris", "deep": [{"a": "}]\\"{"}]}'
CALL = '{"name": "get_weather", "arguments": ' + W + "}"
WEATHER, ADD = ["get_weather", W], ["add", '{"a":1}']
CASES = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
    ("hermes", f"<tool_call>{CALL}</tool_call>", "", [WEATHER]),
    ("hermes", f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>\n", "Let me look.", [WEATHER]),
    ("hermes", f'<tool_call>{CALL}</tool_call>\n<tool_call>\n{{"arguments":{{"a":1}},"name":"add"}}\n</tool_call>', "",
     [WEATHER, ADD]),
    ("hermes", f"<tool_call>{CALL}<tool_call>{CALL}</tool_call>", "", [WEATHER, WEATHER]),
    ("hermes", f"<tool_call><tool_call>{CALL}</tool_call>", "<tool_call>", [WEATHER]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call> and more", "and more", [WEATHER]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [["now", "{}"]]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\":1}"}</tool_call>', "", [ADD]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [["add", "{}"]]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a', "", [["add", '{"a']]),
    ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
    ("hermes", "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
    ("hermes", "a < b <tool b\n", "a < b <tool b\n", []),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_", "", [WEATHER]),
    ("hermes", "a </tool_call> b", "a </tool_call> b", []),
    ("hermes", "", "", []),
    ("llama3", '{"name": "get_weather", "parameters": ' + W + "}", "", [WEATHER]),
    ("llama3", f" \n<|python_tag|>{CALL}", "", [WEATHER]),
    ("llama3", f'{CALL}; {{"type": "function", "name": "add", "parameters": {{"a":1}}}}', "", [WEATHER, ADD]),
    ("llama3", f"{CALL}\n", "", [WEATHER]),
    ("llama3", '{"name": "Bob", "age": 7}', '{"name": "Bob", "age": 7}', []),
    ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3", '{"name": "add"', '{"name": "add"', []),
    ("llama3", '<|python_tag|>print("x")', '<|python_tag|>print("x")', []),
    ("llama3", "<|pyth", "<|pyth", []),
    ("llama3", f"Sure: {CALL}", f"Sure: {CALL}", []),
    ("mistral", f"[TOOL_CALLS] [{CALL}]", "", [WEATHER]),
    ("mistral", f'[TOOL_CALLS][{CALL}, {{"name":"add","arguments":{{"a":1}}, "id": "abcdefghi"}}]', "", [WEATHER, ADD]),
    ("mistral", f"Well [TOOL_CALLS]get_weather[ARGS]{W}", "Well", [WEATHER]),
    ("mistral", f"[TOOL_CALLS]get_weather{W}[TOOL_CALLS]add[CALL_ID]123456789[ARGS]{{\"a\":1}}", "", [WEATHER, ADD]),
    ("mistral", "[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    ("mistral", "[TOOL_CALLS][7]", "[TOOL_CALLS][7]", []),
    ("mistral", "[1, 2] [TOOL", "[1, 2] [TOOL", []),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_whole_and_one_character_at_a_time(form, text, content, calls):
    assert parse(form, text) == (content, calls)
    assert parse(form, text, range(len(text))) == (content, calls)


PIECES = st.sampled_from([
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", ",", ";", "{",
    "}",
    '"', "\\", ":", " ", "\n", "name", '"name"', '"arguments"', '"parameters": {', "add", '"add"', "get_weather", "1",
    "null", '{"name": "add", "arguments": ', CALL, "é", "text",
])  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=14).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), TEXTS, st.lists(st.integers(0, 500), max_size=30))
def test_cuts_do_not_matter_and_nothing_is_invented(form, text, cuts):
    whole = parse(form, text)
    assert parse(form, text, cuts) == whole
    content, calls = whole
    assert "".join(content.split()) == "".join(text.split()) if not calls else len(content) <= len(text)
    if not calls:
        assert content == text


ARGUMENTS = st.dictionaries(st.text(max_size=8), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
), max_size=4)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.sampled_from(KNOWN), ARGUMENTS), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_what_a_format_writes_is_read_back(form, made, ascii_only, cuts):
    fmt = FORMATS[form]
    made = made if fmt.several else made[:1]
    body = fmt.between.join(
        f'{{"name": "{name}", "{fmt.key}": {json.dumps(args, ensure_ascii=ascii_only)}}}' for name, args in made
    )
    content, calls = parse(form, fmt.open + body + fmt.close, cuts)
    assert content == ""
    assert [(name, json.loads(args)) for name, args in calls] == made
