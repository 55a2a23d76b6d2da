"""Chat templates against transformers' renderings (template_golden.json, made by make_template_golden.py)."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from mlcrt.errors import MlcrtError
from mlcrt.runtime.template import ChatTemplate

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "template_golden.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "Hi"}]


def load(name: str) -> ChatTemplate:
    source = (HERE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, GOLDEN["tokens"], name)


@pytest.mark.parametrize("name", sorted({case["template"] for case in GOLDEN["cases"]}))
def test_same_as_transformers(name):
    template, texts, errors = load(name), 0, 0
    for case in (case for case in GOLDEN["cases"] if case["template"] == name):
        if "text" in case:
            assert template.render(case["messages"], **case["options"]) == case["text"], case["talk"]
            texts += 1
        else:
            with pytest.raises(MlcrtError) as caught:
                template.render(case["messages"], **case["options"])
            assert name in str(caught.value) and "\n" not in str(caught.value)
            assert case["error"].rstrip(".") in str(caught.value)
            errors += 1
    assert texts + errors == 40 and texts >= 8


def test_the_golden_file_has_refusals_and_every_template():
    assert {path.stem for path in (HERE / "templates").glob("*.jinja")} == {c["template"] for c in GOLDEN["cases"]}
    assert sum("error" in case for case in GOLDEN["cases"]) >= 20


def test_todays_date():
    before = datetime.datetime.now()
    text = load("llama3").render(USER)
    days = {f"Today Date: {now:%d %b %Y}" for now in (before, datetime.datetime.now())}  # two about midnight
    assert any(day in text for day in days)


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": "a", "extra": {"list": [1]}}]
    with pytest.raises(MlcrtError):
        ChatTemplate("{% set _ = messages.append(1) %}").render(messages)
    assert messages == [{"role": "user", "content": "a", "extra": {"list": [1]}}]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{% if %}", "line 1"),
        ("a\n{{ messages | nosuchfilter }}", "line 2"),
        ("{{ messages[0].content + 1 }}", "fails on these messages"),
        ("{{ messages[9].content.x.y }}", "fails on these messages"),
        ("{{ raise_exception('No.') }}", "refuses these messages: No."),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ self._TemplateReference__context }}", "fails on these messages"),
        ("{% for i in range(10**9) %}x{% endfor %}", "fails on these messages"),
    ],
)
def test_a_bad_template_is_one_sentence(source, part):
    template = ChatTemplate(source, name="m")
    try:
        text = template.render(USER)
    except MlcrtError as error:
        assert part in str(error) and "\n" not in str(error)
    else:  # the sandbox may also render an undefined name as nothing, never the object
        assert text == ""


def test_named_templates():
    both = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    for source in (both, {"default": "D", "tool_use": "T"}):
        template = ChatTemplate(source)
        assert template.render(USER) == "D"
        assert template.render(USER, tools=[{}]) == "T"
    assert ChatTemplate([{"name": "rag", "template": "R"}]).render(USER) == "R"
    with pytest.raises(MlcrtError, match="chat_template"):
        ChatTemplate(["x"])


@pytest.mark.parametrize(
    "messages", [["x"], [{"content": "x"}], [{"role": 3, "content": "x"}], [{"role": "user", "content": object()}]]
)
def test_bad_messages(messages):
    with pytest.raises(MlcrtError, match="message"):
        load("chatml").render(messages)


def test_without_a_template():
    template = ChatTemplate(None, {"bos_token": "<s>"}, "base")
    talk = [{"role": "system", "content": "S"}, *USER, {"role": "assistant", "content": "Yes"}, *USER]
    assert template.render(talk) == "<s>S\nUser: Hi\nAssistant: Yes\nUser: Hi\nAssistant:"
    assert template.render(talk[:2], add_generation_prompt=False) == "<s>S\nUser: Hi"
    assert template.stop == ("\nUser:",) and template.notice.startswith("base has no chat template")
    assert load("chatml").notice is None and load("chatml").stop == ()
