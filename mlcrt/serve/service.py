"""One model as the routes see it: requests of the API become jobs for the scheduler."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mlcrt.errors import UsageError
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.serve.answer import Job, Transcript
from mlcrt.serve.constraints import Grammars
from mlcrt.serve.errors import ApiError, bad_request, engine_failed, model_not_found, shutting_down
from mlcrt.serve.interface import Constraint, GenerationRequest, Scheduler
from mlcrt.serve.metrics import Metrics
from mlcrt.serve.prompts import PromptWriter
from mlcrt.serve.schemas.chat import ChatRequest, NamedTool
from mlcrt.serve.schemas.common import Grammar, Sampling
from mlcrt.serve.schemas.completion import CompletionRequest
from mlcrt.serve.settings import Settings
from mlcrt.serve.tools import ToolFormat, pick_format
from mlcrt.version import __version__

log = logging.getLogger("mlcrt.serve")
_LEGACY_TOKENS = 16  # OpenAI's default for /v1/completions


class Service:
    """What the routes share. `closing` is set when the server is to end: nothing new is taken then. `failed` when the
    scheduler was found closed without that.

    Methods that tokenise, render or compile grammars may take seconds for large requests: call them in a thread.
    They raise `ApiError`.
    """

    def __init__(self, scheduler: Scheduler, tokenizer: ModelTokenizer, settings: Settings):
        self.scheduler, self.tokenizer, self.settings = scheduler, tokenizer, settings
        self.metrics = Metrics(scheduler.stats)
        self.grammars = Grammars(tokenizer, scheduler.vocab)
        self.tools: ToolFormat = pick_format(settings.tool_format, tokenizer)
        self.prompts = PromptWriter(tokenizer.template, self.tools)
        self.defaults = SamplingParams().but(**tokenizer.defaults)
        self.created = int(time.time())
        self.fingerprint = f"mlcrt-{__version__}"
        self.closing = self.failed = False
        markers = (tokenizer.raw.token_to_id(text) for text in self.tools.markers)
        self._markers = frozenset(i for i in markers if i in tokenizer.table.special)

    @property
    def name(self) -> str:
        return self.settings.names[0]

    def check_model(self, name: str) -> None:
        if name not in self.settings.names:
            raise model_not_found(self.name)

    def close(self, drain: bool = False, timeout_s: float | None = None) -> None:
        """End the scheduler, which frees the engine."""
        self.closing = True
        self.scheduler.close(drain=drain, timeout_s=timeout_s)
        self.grammars.close()

    def unavailable(self) -> ApiError:
        """What to say when the scheduler takes nothing any more."""
        self.failed = not self.closing
        return engine_failed() if self.failed else shutting_down()

    # -- tokens

    def encode(self, text: str, param: str, add_bos: bool = False) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise bad_request("The text holds half of a surrogate pair, which is no character.", param) from None
        return self.tokenizer.encode_text(text) if add_bos else self.tokenizer.encode(text)

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """A token's text, with U+FFFD for parts of characters, and its bytes."""
        data = self.tokenizer.table.bytes_of(token)
        return data.decode("utf-8", "replace"), list(data)

    # -- jobs

    def chat_jobs(self, body: ChatRequest, client: str) -> list[Job]:
        """The answers that a chat request asks for."""
        self.check_model(body.model)
        tools = self._tools(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
        text = self.prompts.render(body.messages, tools, variables=body.chat_template_kwargs)
        self.log_text("prompt", text)
        prompt = self.encode(text, "messages")
        stops = () if body.ignore_eos else self.tokenizer.template.stop
        limit = body.max_completion_tokens or body.max_tokens
        param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        return self._jobs(
            body,
            [prompt],
            client,
            limit=self._limit(limit, param),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            stops=stops,
            constraint=lambda: self._chat_constraint(body, tools),
            tools=tools,
        )

    def completion_jobs(self, body: CompletionRequest, client: str) -> tuple[list[Job], list[str]]:
        """The answers that a completion request asks for, and with `echo` the prompts' texts, one for each."""
        self.check_model(body.model)
        if body.suffix:
            raise bad_request("suffix is not offered.", "suffix", "unsupported_parameter")
        if body.best_of not in (None, body.n or 1):
            raise bad_request(
                "best_of is not offered other than as the value of n.", "best_of", "unsupported_parameter"
            )
        if body.echo and body.logprobs is not None:
            raise bad_request("echo is not offered together with logprobs.", "echo", "unsupported_parameter")
        prompts = [self.prompt_tokens(prompt, "prompt") for prompt in prompts_of(body.prompt)]
        for prompt in prompts:
            self.log_text("prompt", prompt)
        jobs = self._jobs(
            body,
            prompts,
            client,
            limit=self._limit(_LEGACY_TOKENS if body.max_tokens is None else body.max_tokens, "max_tokens"),
            logprobs=body.logprobs,
            constraint=lambda: self._grammar(body.grammar),
            continuation=True,
        )
        shown = prompts_of(body.prompt) if body.echo else []
        texts = [p if isinstance(p, str) else self.tokenizer.decode(p, skip_special=False) for p in shown]
        return jobs, [text for text in texts for _ in range(body.n or 1)]

    def prompt_tokens(self, prompt: str | list[int], param: str) -> list[int]:
        """Tokens of one prompt, which is text or tokens already."""
        if isinstance(prompt, str):
            return self.encode(prompt, param, add_bos=True)
        if any(token >= self.scheduler.vocab for token in prompt):
            raise bad_request(f"There are no tokens above {self.scheduler.vocab - 1}.", param)
        return prompt

    def _jobs(
        self,
        body: Sampling,
        prompts: Sequence[list[int]],
        client: str,
        *,
        limit: int | None,
        logprobs: int | None,
        constraint: Any,
        stops: Sequence[str] = (),
        tools: Sequence[dict[str, Any]] = (),
        continuation: bool = False,
    ) -> list[Job]:
        sampling = self._sampling(body)
        asked = [body.stop] if isinstance(body.stop, str) else body.stop or []
        words, ends = self._stops([*asked, *stops], ignore_eos=bool(body.ignore_eos))
        jobs = []
        for prompt in prompts:
            for i in range(body.n or 1):
                seeded = sampling if body.seed is None else sampling.but(seed=(body.seed + i) % 2**64)
                request = GenerationRequest(
                    prompt=prompt,
                    sampling=seeded,
                    max_tokens=limit,
                    stop_token_ids=ends,
                    logprobs=logprobs,
                    constraint=constraint(),
                    timeout_s=self.settings.request_timeout,
                    client=client,
                )
                keep = self._markers if tools else frozenset()
                transcript = Transcript(self.tokenizer, words, keep, continuation)
                parser = self.tools.parser([tool["function"]["name"] for tool in tools]) if tools else None
                jobs.append(Job(request, transcript, parser, first_of_prompt=i == 0))
        return jobs

    def _sampling(self, body: Sampling) -> SamplingParams:
        names = "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
        given = {name: value for name in names if (value := getattr(body, name)) is not None}
        if given.get("top_p") == 0:
            given["top_p"] = 1e-9  # the most likely token alone
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        if any(token >= self.scheduler.vocab for token in bias):
            raise bad_request(f"There are no tokens above {self.scheduler.vocab - 1}.", "logit_bias")
        try:
            return self.defaults.but(**given, logit_bias=bias)
        except UsageError as error:
            raise bad_request(str(error)) from None

    def _stops(self, texts: Sequence[str], ignore_eos: bool) -> tuple[list[str], frozenset[int]]:
        """Stop strings, and tokens: a stop string that is a special token never shows as text."""
        raw, special = self.tokenizer.raw, self.tokenizer.table.special
        tokens = {text: token for text in texts if (token := raw.token_to_id(text)) in special}
        ends = set(tokens.values()) | (set() if ignore_eos else self.tokenizer.stop_ids)
        return [text for text in texts if text not in tokens], frozenset(ends)

    def _limit(self, asked: int | None, param: str) -> int | None:
        largest = self.settings.max_tokens
        if asked is not None and largest is not None and asked > largest:
            raise bad_request(f"This server gives at most {largest} tokens.", param)
        return largest if asked is None else asked

    def _tools(self, body: ChatRequest) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        choice = body.tool_choice
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        names = [tool["function"]["name"] for tool in tools]
        if len(set(names)) < len(names):
            raise bad_request("Two tools have the same name.", "tools")
        if not tools and choice not in (None, "none", "auto"):
            raise bad_request("tool_choice needs tools.", "tool_choice")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise bad_request("tool_choice names a function that is not among the tools.", "tool_choice")
        return [] if choice == "none" else tools

    def _chat_constraint(self, body: ChatRequest, tools: Sequence[dict[str, Any]]) -> Constraint | None:
        form = body.response_format
        wants_json = form is not None and form.type != "text"
        choice = body.tool_choice
        forced = bool(tools) and choice not in (None, "auto")
        if body.grammar is not None and (wants_json or forced):
            raise bad_request("grammar cannot go together with response_format or a forced tool.", "grammar")
        if forced:
            functions = [tool["function"] for tool in tools]
            if isinstance(choice, NamedTool):
                functions = [f for f in functions if f["name"] == choice.function.name]
            several = body.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
            rules = self.tools.rules(functions, self.tokenizer, several)
            return self.grammars.lark(f"start: calls\n{rules}", "tools")
        if not wants_json:
            return self._grammar(body.grammar)
        if form.type == "json_object":
            return self.grammars.json(None, "response_format")
        schema, strict = form.json_schema.schema_ or {}, form.json_schema.strict is not False
        return self.grammars.json(schema, "response_format.json_schema.schema", strict)

    def _grammar(self, grammar: str | Grammar | None) -> Constraint | None:
        if grammar is None:
            return None
        if isinstance(grammar, str):
            return self.grammars.grammar("auto", grammar)
        return self.grammars.grammar(grammar.type, grammar.value)

    def log_text(self, what: str, value: Any) -> None:
        """Write a prompt or an answer to the log, if that was asked for."""
        if self.settings.log_prompts:
            log.info("%s %r", what, value)


def prompts_of(prompt: Any) -> list[Any]:
    """The prompts in a `prompt` or `input` field: one text, tokens, or a list of either."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def client_of(scope: Mapping[str, Any]) -> str:
    """Whose turn it is in the queue: the address that the request came from."""
    client = scope.get("client")
    return client[0] if client else ""
