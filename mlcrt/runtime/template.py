"""Chat templates: a list of messages becomes the text a model was trained on.

The environment is the one Hugging Face documents for `apply_chat_template`
(https://huggingface.co/docs/transformers/chat_templating_writing): sandboxed Jinja, `trim_blocks`, `lstrip_blocks`,
`raise_exception`, `strftime_now`, a `tojson` without HTML escapes, loop controls, and `generation` blocks.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlcrt.errors import MlcrtError

_PLAIN_NAMES = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class TemplateRefusal(MlcrtError):
    """The template itself does not take these messages, and says why."""


class ChatTemplate:
    """Renders messages (`{"role": …, "content": …}`) for one model.

    `source` is Jinja text, a list of `{"name", "template"}` or a dict of named ones as in tokenizer_config.json, or
    None: then `plain` is true and a transcript of "User: …" and "Assistant: …" lines is rendered. `tokens` are the
    special strings a template may use (`bos_token`, `eos_token`, …). `name` is the model's, for messages.
    """

    def __init__(self, source: Any, tokens: Mapping[str, str] | None = None, name: str = "the model"):
        self.name = name
        self._tokens = {"bos_token": "", "eos_token": "", **(tokens or {})}
        self._sources = _named(source, name)
        self._compiled: dict[str, Any] = {}
        self.plain = not self._sources

    @property
    def text(self) -> str:
        """All template sources, to look for strings in."""
        return "\n".join(self._sources.values())

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which an answer ends because of how the messages were rendered."""
        return ("\nUser:",) if self.plain else ()

    @property
    def notice(self) -> str | None:
        """A sentence for the user when there is no template."""
        if not self.plain:
            return None
        return f"{self.name} has no chat template: messages are sent as plain lines 'User: …' and 'Assistant: …'."

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt text. Raises `MlcrtError` when the template is broken or refuses these messages."""
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise MlcrtError(f"A chat message needs a role and a content, which {message!r} lacks.")
        messages, tools = _plain_data(list(messages)), _plain_data(tools)
        if self.plain:
            return _transcript(messages, add_generation_prompt, self._tokens["bos_token"])
        which = "tool_use" if tools and "tool_use" in self._sources else "default"
        if which not in self._sources:
            which = next(iter(self._sources))
        variables = {"documents": None, **self._tokens, **extra, "messages": messages, "tools": tools}
        return self._run(which, {**variables, "add_generation_prompt": add_generation_prompt})

    def _run(self, which: str, variables: dict) -> str:
        import jinja2

        try:
            if which not in self._compiled:
                self._compiled[which] = _environment().from_string(self._sources[which])
            return self._compiled[which].render(variables)
        except _Refused as error:
            raise TemplateRefusal(f"The chat template of {self.name} refuses these messages: {error}") from None
        except jinja2.TemplateSyntaxError as error:
            raise MlcrtError(
                f"The chat template of {self.name} has an error in line {error.lineno}: {error.message}; "
                "mend chat_template in its tokenizer_config.json."
            ) from None
        except Exception as error:  # a template is a program from outside, it can fail in any way
            raise MlcrtError(
                f"The chat template of {self.name} fails on these messages: {error or type(error).__name__}."
            ) from None


class _Refused(Exception):
    """`raise_exception` in a template."""


def _environment() -> Any:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}…{% endgeneration %}` marks what a trainer masks; here its body is rendered as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.ScopedEvalContextModifier([], body, lineno=line)

    def refuse(message: str) -> None:
        raise _Refused(str(message).rstrip(".") + ".")

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _named(source: Any, name: str) -> dict[str, str]:
    if not source:
        return {}
    if isinstance(source, str):
        return {"default": source}
    if isinstance(source, Mapping) and all(isinstance(text, str) for text in source.values()):
        return dict(source)
    try:
        return {entry["name"]: entry["template"] for entry in source}
    except (TypeError, KeyError):
        raise MlcrtError(
            f"chat_template in tokenizer_config.json of {name} is neither text nor a list of named templates."
        ) from None


def _plain_data(value: Any) -> Any:
    """A copy made of JSON types only: templates come from outside and get no object with methods of its own."""
    if isinstance(value, Mapping):
        return {str(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise MlcrtError(f"A chat message may hold text, numbers, lists and objects, but not a {type(value).__name__}.")


def _transcript(messages: list[dict], add_generation_prompt: bool, bos: str) -> str:
    lines = [f"{_PLAIN_NAMES.get(m['role'], m['role'].title() + ': ')}{m.get('content') or ''}" for m in messages]
    return bos + "\n".join([*lines, "Assistant:"] if add_generation_prompt else lines)
