"""The ways in which models write tool calls, each with its parser and the grammar that enforces it.

Hermes and Qwen 2.5/3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, after text or one after another
(https://github.com/NousResearch/Hermes-Function-Calling). Llama 3: the answer is `{"name": …, "parameters": {…}}`, with
or without `<|python_tag|>` in front (https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1). Mistral:
`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, in newer models `[TOOL_CALLS]name[ARGS]{…}`
(https://docs.mistral.ai, tokenizer versions 3 and 11).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.serve.constraints import MAX_SCHEMA, schema_text
from mlcrt.serve.errors import bad_request
from mlcrt.serve.tools.parser import SPACE, Steps, ToolParser, call_object, json_value, matches, skip_space, until

MAX_PARALLEL = 16  # calls that a grammar lets an answer make


@dataclass(frozen=True)
class ToolFormat:
    """`markers` are the strings to show a parser even where they are special tokens."""

    name: str
    markers: tuple[str, ...]
    steps: Callable[[ToolParser], Steps]
    key: str  # of the arguments
    open: str
    between: str
    close: str
    several: bool = True

    def parser(self, known: Collection[str] = ()) -> ToolParser:
        return ToolParser(self.steps, known)

    def rules(
        self, tools: Sequence[dict[str, Any]], tokenizer: ModelTokenizer, several: bool, param: str = "tools"
    ) -> str:
        """Lark rules of which `calls` is at least one call of `tools` (OpenAI's function objects) and nothing else."""
        made, size = [], 0
        for i, tool in enumerate(tools):
            schema = {**(tool.get("parameters") or {}), "type": "object"}
            text = schema_text(schema, param, tool.get("strict") is True)
            size += len(text)
            head = json.dumps(f'{{"name": {json.dumps(tool["name"])}, "{self.key}": ')
            made.append(f'call{i}: {head} %json {text} "}}"')
        if size > MAX_SCHEMA:
            raise bad_request(f"The tools have {size} characters of JSON schema; {MAX_SCHEMA} are allowed.", param)
        more = f" ({self._lark(self.between, tokenizer)} call){{0,{MAX_PARALLEL - 1}}}"
        calls = f"calls: {self._lark(self.open, tokenizer)} call{more if several and self.several else ''}"
        one = " | ".join(f"call{i}" for i in range(len(made)))
        return "\n".join([f"{calls} {self._lark(self.close, tokenizer)}", f"call: {one}", *made])

    def _lark(self, text: str, tokenizer: ModelTokenizer) -> str:
        """`text` as terms of a Lark rule: a marker that is one special token has to come as that token."""
        parts = re.split(f"({'|'.join(map(re.escape, self.markers))})", text)
        out = []
        for part in filter(None, parts):
            token = tokenizer.raw.token_to_id(part)
            special = token is not None and token in tokenizer.table.special
            out.append(f"<[{token}]>" if special else json.dumps(part))
        return " ".join(out)

    def write(self, name: str, arguments: str) -> str:
        """One call as the model would write it, of JSON arguments."""
        return f'{self.open}{{"name": {json.dumps(name)}, "{self.key}": {arguments}}}{self.close}'


def _hermes(parser: ToolParser) -> Steps:
    closing = ""
    while found := (yield from until(parser, "<tool_call>", closing)):
        closing = ""
        if found == "</tool_call>":
            continue
        parser.hold(found)
        char = yield from skip_space()
        if char == "{":
            char = yield from call_object(parser)
        if parser.holding:
            parser.release()
            continue
        parser.back(char)
        closing = "</tool_call>"


def _llama3(parser: ToolParser) -> Steps:
    while True:
        parser.hold()
        char = yield from skip_space(";" if parser.calls else "")
        if char == "<" and (yield from matches("<|python_tag|>", char)):
            char = yield from skip_space()
        if char == "{":
            char = yield from call_object(parser, listed=True)
        if parser.holding:
            parser.release()
            break
        parser.back(char)
    while char := (yield):
        parser.text(char)


def _mistral(parser: ToolParser) -> Steps:
    while (yield from until(parser, "[TOOL_CALLS]")):
        parser.hold("[TOOL_CALLS]")
        char = yield from skip_space()
        if char == "[":
            yield from _mistral_list(parser)
        else:
            yield from _mistral_named(parser, char)
        if parser.holding:
            parser.release()


def _mistral_list(parser: ToolParser) -> Steps:
    """`{…}, {…}]`; an element that is no call is left held."""
    while True:
        char = yield from skip_space()
        if char == "{":
            char = yield from call_object(parser)
        if parser.holding:
            return
        if char and char in SPACE:
            char = yield from skip_space()
        if char != ",":
            break
        parser.hold()
    parser.back(char if char != "]" else "")


def _mistral_named(parser: ToolParser, char: str) -> Steps:
    """`name[ARGS]{…}` or `name{…}`, with an optional `[CALL_ID]…` before the arguments."""
    head = ""
    while char and char not in "{\n" and len(head) < 200:
        head += char
        char = yield
    name = re.split(r"\[CALL_ID\]|\[ARGS\]", head)[0].strip()
    if char == "{" and re.fullmatch(r"[\w.-]{1,64}", name):
        parser.start(name)
        parser.back((yield from json_value(char, parser.arguments)))


_TAGS = ("<tool_call>", "</tool_call>")
_CONTROL = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
HERMES = ToolFormat(
    "hermes", _TAGS, _hermes, "arguments", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"
)
LLAMA3 = ToolFormat("llama3", ("<|python_tag|>",), _llama3, "parameters", "", "", "", several=False)
MISTRAL = ToolFormat("mistral", _CONTROL, _mistral, "arguments", "[TOOL_CALLS][", ", ", "]")
FORMATS = {form.name: form for form in (HERMES, LLAMA3, MISTRAL)}


def pick_format(name: str, tokenizer: ModelTokenizer) -> ToolFormat:
    """The format named, or for 'auto' the one that the chat template writes or the tokenizer has tokens for."""
    if name != "auto":
        return FORMATS[name]
    text = tokenizer.template.text
    if "<tool_call>" in text:
        return HERMES
    if "[TOOL_CALLS]" in text or tokenizer.raw.token_to_id("[TOOL_CALLS]") is not None:
        return MISTRAL
    if "ipython" in text or tokenizer.raw.token_to_id("<|python_tag|>") is not None:
        return LLAMA3
    return HERMES
