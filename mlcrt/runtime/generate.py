"""The loop that makes an answer: prefill what is new, then sample, decode, turn into text, until something ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.runtime.sampler import Sampler, TokenLogprob
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.stats import Usage
from mlcrt.runtime.text import Detokenizer, StopMatcher
from mlcrt.runtime.tokenizer import ModelTokenizer


class DecoderEngine(Protocol):
    """What generation needs of an engine. `tokens` are those in the KV cache, in order."""

    config: Any  # DecoderConfig
    context: int
    tokens: list[int]

    def prefill(self, tokens: Sequence[int]) -> np.ndarray: ...
    def decode(self, token: int) -> np.ndarray: ...
    def rollback(self, length: int) -> None: ...


@dataclass(frozen=True)
class Event:
    """One sampled token. `text` is what became certain with it, often empty, and the last event's includes the rest.

    `finish_reason` is None but on the last event: "stop" (the model ended its answer, or a stop string came) or
    "length" (max_tokens reached, or the context is full).
    """

    token: int
    text: str
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    size = min(len(a), len(b))
    if list(a[:size]) == list(b[:size]):
        return size
    return next(i for i in range(size) if a[i] != b[i])


class Generation:
    """One answer: iterate it once for its events.

    `prompt` is the whole prompt in tokens; what the engine's cache already holds of its beginning is not run again.
    `continuation` keeps a space at the front of the text. `on_full(generated)` is asked, when the context is full, for
    a shorter token sequence to go on from, which ends in the generated tokens (None: stop there).

    After iterating, `text` is the whole answer, `generated` its tokens, `finish_reason` and `usage` are set, and
    `notice` is a sentence about anything the user should know. A generation may be left at any point, also by an
    exception or Ctrl-C out of the engine: the cache then holds what was completed.

    Raises `MlcrtError` before anything is changed when the prompt is empty or does not fit into the context.
    """

    def __init__(
        self,
        engine: DecoderEngine,
        tokenizer: ModelTokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        continuation: bool = False,
        on_full: Callable[[list[int]], Sequence[int] | None] | None = None,
    ):
        self.params = params
        self.prompt = list(prompt)
        self.generated: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.notice: str | None = None
        self.usage = Usage(prompt_tokens=len(self.prompt))
        self._engine = engine
        self._on_full = on_full
        if not self.prompt:
            raise MlcrtError("The prompt is empty; give at least one word.")
        if len(self.prompt) > engine.context:
            raise MlcrtError(prompt_too_long(len(self.prompt), engine))
        # A stop string that is itself a special token never shows in the text, so it is recognised as a token.
        special = {text: i for text in params.stop if (i := tokenizer.raw.token_to_id(text)) in tokenizer.table.special}
        self._stop_ids = set(special.values()) | (set() if params.ignore_eos else tokenizer.stop_ids)
        self._matcher = StopMatcher([text for text in params.stop if text not in special])
        self._detokenizer = Detokenizer(tokenizer.table, continuation=continuation)
        self._sampler = Sampler(params, engine.config.vocab, self.prompt)
        draws = getattr(engine, "drawing", None)  # the device's own choice of tokens, where there is such a thing
        self._drawing = draws(self._sampler) if draws else None

    def __iter__(self) -> Iterator[Event]:
        token, logprob = self._choose(self._prime(self.prompt))
        while True:
            start = time.perf_counter()
            text = self._take(token)
            taking = time.perf_counter() - start
            shorter = None
            if self.finish_reason is None and self._full():
                shorter = self._shorter()
                if shorter is None:
                    text += self._end("length")
                    self.notice = (
                        f"The context of {self._engine.context} tokens is full, so the answer was cut; "
                        "start over with /reset, load with a larger --context, or use --context-shift."
                    )
            self.text += text
            yield Event(token, text, logprob, self.finish_reason)
            if self.finish_reason is not None:
                return
            if shorter is not None:
                self.usage.shifts += 1
                token, logprob = self._choose(self._prime(shorter))
                continue
            start = time.perf_counter()
            token, logprob = self._guarded(self._next, token)
            self.usage.decode_seconds.append(taking + time.perf_counter() - start)

    def _choose(self, logits: np.ndarray) -> tuple[int, TokenLogprob | None]:
        token = self._sampler.sample(logits)
        return token, None if self.params.logprobs is None else self._sampler.logprob(logits, token)

    def _next(self, token: int) -> tuple[int, TokenLogprob | None]:
        """Run the model on `token`; the one after it."""
        if self._drawing is None:
            return self._choose(self._engine.decode(token))
        last = self.params.max_tokens is not None and len(self.generated) + 1 >= self.params.max_tokens
        return self._drawing.after(token, last), None

    def _take(self, token: int) -> str:
        """Account for a sampled token; returns its text and sets `finish_reason` when it ends the answer."""
        self.usage.completion_tokens += 1
        if token in self._stop_ids:
            return self._end("stop")
        self.generated.append(token)
        text = self._matcher.push(self._detokenizer.add(token))
        if self._matcher.hit is not None:
            self.finish_reason = "stop"
        elif self.params.max_tokens is not None and len(self.generated) >= self.params.max_tokens:
            text += self._end("length")
        return text

    def _end(self, reason: str) -> str:
        """Finish for `reason`. Returns the text held back; half a character at the very end is dropped."""
        self.finish_reason = reason
        return self._matcher.finish()

    def _shorter(self) -> list[int] | None:
        tokens = self._on_full(list(self.generated)) if self._on_full else None
        return list(tokens) if tokens is not None and len(tokens) < self._engine.context else None

    def _full(self) -> bool:
        return len(self._engine.tokens) >= self._engine.context

    def _prime(self, tokens: list[int]) -> np.ndarray:
        """Make the cache hold exactly `tokens`; logits of the last one, which therefore always runs."""
        engine = self._engine
        reused = min(common_prefix(engine.tokens, tokens), len(tokens) - 1)
        engine.rollback(reused)
        start = time.perf_counter()
        logits = self._guarded(engine.prefill, tokens[reused:])
        self.usage.prefill_seconds += time.perf_counter() - start
        self.usage.prefill_tokens += len(tokens) - reused
        if not self.usage.shifts:
            self.usage.reused_tokens = reused
        return logits

    def _guarded(self, call: Callable, argument: Any) -> Any:
        """Run an engine call; if it is broken off, forget the tokens it may have left half done."""
        before = len(self._engine.tokens)
        try:
            return call(argument)
        except BaseException:
            self._engine.rollback(min(before, len(self._engine.tokens)))
            raise


def prompt_too_long(tokens: int, engine: DecoderEngine) -> str:
    """The sentence for a prompt that does not fit."""
    trained = getattr(engine.config, "context", 0) or 0
    larger = f", or load with --context {tokens + 256}" if trained >= tokens + 256 else ""
    return (
        f"The prompt has {tokens} tokens but the context holds {engine.context}; "
        f"shorten it or start over with /reset{larger}."
    )
