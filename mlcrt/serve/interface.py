"""What the faces of a server and the scheduler say to each other: requests in, one event per token out.

Text is no part of it: detokenising, stop strings and the shape of answers belong to whoever submits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.sampler import TokenLogprob
from mlcrt.runtime.sampling import SamplingParams

FINISH_REASONS = ("stop", "length", "timeout", "cancelled", "error")


class QueueFull(MlcrtError):
    """As many requests wait as may; nothing was taken up. HTTP: 429 with Retry-After."""

    def __init__(self, retry_after_s: float, waiting: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class SchedulerClosed(MlcrtError):
    """The scheduler is shutting down, or its engine failed. HTTP: 503."""


class RequestRefused(UsageError):
    """The request can never run: no prompt, a prompt longer than a slot, a token outside the vocabulary. HTTP: 400.

    `code` is OpenAI's where it has one: 'context_length_exceeded' or 'invalid_value'.
    """

    def __init__(self, message: str, code: str = "invalid_value"):
        super().__init__(message)
        self.code = code


class Constraint(Protocol):
    """Which tokens may come next, as a grammar decides it. Used from the engine thread only, after `submit`."""

    def mask(self, out: np.ndarray) -> None:
        """Fill int32 [ceil(vocab / 32)]: token t may come next if bit t % 32 of word t // 32 is 1."""

    def accept(self, token: int) -> None:
        """`token` was chosen."""

    @property
    def finished(self) -> bool:
        """Nothing may follow: the request ends with 'stop' after the token that was accepted last."""


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to one prompt.

    prompt: token ids, at least one. sampling: what chooses tokens; its `max_tokens`, `stop`, `ignore_eos` and
        `logprobs` are not looked at, the fields here count.
    max_tokens: tokens at most; None goes on until the slot's context is full.
    stop_token_ids: a token that ends the answer with 'stop' when it is chosen.
    logprobs: None for none, 0 for the chosen token's, k for the k best besides.
    timeout_s: seconds from `submit` to the end, waiting included; None for no limit.
    client: requests of different clients take turns in the queue. priority: lower goes first.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    constraint: Constraint | None = None
    timeout_s: float | None = None
    client: str = ""
    priority: int = 0


@dataclass(frozen=True)
class StepEvent:
    """One chosen token, or the end of a request.

    token: None with 'timeout', 'cancelled' and 'error'. With 'stop' it is the token that ended the answer: one of the
        request's `stop_token_ids`, which is no part of the text, or the last one that its constraint accepts. With
        'length' it is the last token of the answer.
    finish_reason: None, or on the last event, after which none comes, one of FINISH_REASONS.
    error: with 'error' a sentence for the log, without prompt content.
    prompt_tokens, cached_tokens, completion_tokens: so far; cached ones are those of the prompt that were not computed
        again. The token that ended the answer counts.
    """

    token: int | None
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


OnEvent = Callable[[StepEvent], None]
"""Called from the engine's thread and must not block: hand the event on (loop.call_soon_threadsafe) and return. An
exception out of it cancels the request."""


class RequestHandle(Protocol):
    def cancel(self) -> None:
        """End the request from any thread; its slot is free within one step. Its last event is 'cancelled' unless it
        had ended already. Harmless when repeated."""


class Scheduler(Protocol):
    """One engine shared by many requests. All methods may be called from any thread."""

    context: int  # tokens of prompt and answer that one request can have
    vocab: int
    slots: int  # requests that run at once

    def submit(self, request: GenerationRequest, on_event: OnEvent) -> RequestHandle:
        """Queue a request. Raises RequestRefused, QueueFull or SchedulerClosed; then on_event is never called."""

    def submit_all(self, requests: Sequence[GenerationRequest], on_events: Sequence[OnEvent]) -> list[RequestHandle]:
        """Queue all or, raising, none. Equal prompts (n > 1) are prefilled once; give each its own constraint, and its
        own seed."""

    def embeddings(self, tokens: Sequence[int], timeout_s: float | None = None) -> np.ndarray:
        """float32 [hidden]: the mean over `tokens` of the last hidden state after the final norm, not normalised.

        Blocks until its turn has come. Raises as `submit` does, and TimeoutError.
        """

    def stats(self) -> dict[str, Any]:
        """Counters and gauges, all numbers:

        running, prefilling (of these), queued, slots; kv_tokens (in use by running requests), kv_cached_tokens (kept
        for reuse), kv_capacity_tokens; steps, tokens_generated, prompt_tokens, prefix_hits (requests),
        prefix_hit_tokens; finished as a dictionary by finish reason, refused.
        """

    def close(self, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take nothing new. `drain`: finish what runs and waits (at most `timeout_s`), else cancel it. Frees the
        engine; returns when its thread has ended."""
