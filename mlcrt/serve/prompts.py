"""From OpenAI's messages to the text that a model was trained on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from mlcrt.errors import MlcrtError
from mlcrt.runtime.template import ChatTemplate, TemplateRefusal
from mlcrt.serve.errors import ApiError, bad_request
from mlcrt.serve.tools import ToolFormat

_RESERVED = {"messages", "tools", "add_generation_prompt", "self"}
_ROLES = {"developer": "system"}


class PromptWriter:
    """Renders messages (the schemas' models) and tools with a model's chat template.

    A template that knows no tools gets them in the system message, and calls and results as ordinary messages, in the
    manner of `tool_format`.
    """

    def __init__(self, template: ChatTemplate, tool_format: ToolFormat):
        self._template, self._format = template, tool_format
        self.knows_tools = re.search(r"\btools\b", template.text) is not None

    def render(
        self,
        messages: Sequence[Any],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises `ApiError` 400 where the template does not take these messages."""
        variables = variables or {}
        if _RESERVED & variables.keys() or not all(map(str.isidentifier, variables)):
            raise bad_request("These are not names of template variables.", "chat_template_kwargs")
        plain = self._with_tools(messages, tools) if self.knows_tools else self._without_tools(messages, tools)
        try:
            return self._template.render(
                plain, add_generation_prompt, list(tools) if tools and self.knows_tools else None, **variables
            )
        except TemplateRefusal as error:
            raise bad_request(str(error), "messages") from None
        except MlcrtError:  # its text may quote the messages
            raise ApiError(
                400, "The model's chat template fails on these messages.", "invalid_value", "messages"
            ) from None

    def _with_tools(self, messages: Sequence[Any], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        out, called = [], {}
        for message in messages:
            plain = _plain(message)
            calls = getattr(message, "tool_calls", None)
            if calls:
                plain["tool_calls"] = []
                for call in calls:
                    called[call.id] = call.function.name
                    function = {"name": call.function.name, "arguments": _parsed(call.function.arguments)}
                    entry = {"id": self._id(call.id), "type": "function", "function": function}
                    plain["tool_calls"].append(entry)
            if message.role == "tool":
                plain["tool_call_id"] = self._id(message.tool_call_id)
                plain["name"] = called.get(message.tool_call_id, "")
            out.append(plain)
        return out

    def _without_tools(self, messages: Sequence[Any], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        out = []
        for message in messages:
            plain = _plain(message)
            for call in getattr(message, "tool_calls", None) or ():
                written = self._format.write(call.function.name, call.function.arguments)
                plain["content"] = f"{plain['content']}\n{written}".strip()
            if message.role == "tool":
                plain = {"role": "user", "content": f"<tool_response>\n{plain['content']}\n</tool_response>"}
            if out and out[-1]["role"] == plain["role"] == "user" and message.role == "tool":
                out[-1]["content"] += f"\n{plain['content']}"
            else:
                out.append(plain)
        if tools:
            known = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
            text = (
                "You can call functions. Each line is one, as JSON:\n"
                f"<tools>\n{known}\n</tools>\n"
                "To call a function, answer in exactly this form:\n"
                f"{self._format.write('FUNCTION', '{…}')}\n"
                "The result comes in <tool_response> tags."
            )
            if out[0]["role"] == "system":
                out[0]["content"] = f"{out[0]['content']}\n\n{text}"
            else:
                out.insert(0, {"role": "system", "content": text})
        return out

    def _id(self, given: str) -> str:
        """Mistral's templates take ids of nine letters and digits alone; others come from another model's talk."""
        if self._format.name != "mistral" or re.fullmatch(r"[A-Za-z0-9]{9}", given):
            return given
        return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def _plain(message: Any) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    # Templates add strings to the content without looking, so there is always one.
    return {"role": _ROLES.get(message.role, message.role), "content": content or ""}


def _parsed(arguments: str) -> Any:
    """Templates write arguments as JSON themselves, so they get the object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
