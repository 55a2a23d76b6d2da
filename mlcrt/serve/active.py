"""One request on its way through the scheduler: how its next token is chosen, and what ends it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.runtime.batch_engine import Choice, Chosen, Slot
from mlcrt.runtime.sampler import Sampler, logprob

from .interface import GenerationRequest, OnEvent, StepEvent


class Task:
    """Anything that takes a slot: `tokens` are prefilled, then it may go on. Times are of the scheduler's clock."""

    hidden = False  # whether hidden states of the prompt are wanted instead of tokens

    def __init__(self, tokens: Sequence[int], limit: int, started: float, timeout_s: float | None):
        self.tokens = list(tokens)
        self.limit = limit  # most tokens it will have in the cache
        self.started = started
        self.deadline = math.inf if timeout_s is None else started + timeout_s
        self.slot: Slot | None = None
        self.cancelled = False
        self.client, self.priority = "", 0

    @property
    def missing(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return max(0, len(self.tokens) - len(self.slot.tokens))

    def end(self, reason: str, error: str | None = None) -> None:
        """It ends without a result: 'timeout', 'cancelled' or 'error'."""
        raise NotImplementedError


class Embedding(Task):
    hidden = True

    def __init__(self, tokens: Sequence[int], started: float, timeout_s: float | None):
        super().__init__(tokens, len(tokens), started, timeout_s)
        self.future: Future = Future()
        self.total: np.ndarray | float = 0.0

    def end(self, reason: str, error: str | None = None) -> None:
        kinds = {"timeout": TimeoutError("the time for this embedding is over"), "error": MlcrtError(error or "")}
        self.future.set_exception(kinds.get(reason) or MlcrtError("the server is shutting down"))


class Generation(Task):
    """The tokens of one answer. Everything but `cancel` happens on the engine's thread."""

    def __init__(self, request: GenerationRequest, on_event: OnEvent, vocab: int, context: int, started: float, wake):
        size = len(request.prompt)
        # the last token of an answer is never put into the cache
        most = context if request.max_tokens is None else min(context, size + request.max_tokens - 1)
        super().__init__(request.prompt, most, started, request.timeout_s)
        self.request, self.on_event, self.vocab = request, on_event, vocab
        self.client, self.priority = request.client, request.priority
        self.generated = self.cached = 0
        self.next_token: int | None = None
        self._wake = wake
        self._over = threading.Event()
        params = request.sampling
        self._penalties = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        # Penalties come before the bias, and they are known on the host alone.
        self._bias = None
        if params.logit_bias and not self._penalties:
            self._bias = (
                np.fromiter(params.logit_bias, np.int32, len(params.logit_bias)),
                np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias)),
            )
            params = replace(params, logit_bias={})
        on_host = self._penalties or params.temperature > 0
        self._sampler = Sampler(params, vocab, request.prompt) if on_host else None
        self._mask = None if request.constraint is None else np.zeros(-(-vocab // 32), np.int32)

    def cancel(self) -> None:
        """See interface.RequestHandle."""
        self.cancelled = True
        self._wake()

    def choice(self) -> Choice:
        """How the next token is to be chosen; MlcrtError if the constraint allows none."""
        if self._mask is not None:
            self._mask[:] = 0
            self.request.constraint.mask(self._mask)
            if not self._mask.any():
                raise MlcrtError("the constraint allows no token here")
        return Choice(self._mask, self._bias, self._sampler is not None, self.request.logprobs is not None)

    def take(self, chosen: Chosen) -> StepEvent:
        """Account for the token after the last logits; the event to send, whose finish_reason may end the request."""
        request, info = self.request, None
        if self._sampler is not None:
            token = self._sampler.sample(chosen.logits)
        else:
            token = chosen.token
            if not (math.isfinite(chosen.best) and 0 <= token < self.vocab):
                raise MlcrtError(
                    "the model returned logits that are not finite: its weights are damaged or its numbers overflow"
                )
        if request.logprobs is not None:
            info = logprob(chosen.raw, token, request.logprobs)
        self.generated += 1
        self.next_token = token
        return self._event(token, info, self._reason(token))

    def _reason(self, token: int) -> str | None:
        request = self.request
        if token in request.stop_token_ids:
            return "stop"
        if request.constraint is not None:
            request.constraint.accept(token)
            if request.constraint.finished:
                return "stop"
        full = len(self.slot.tokens) >= self.limit
        done = request.max_tokens is not None and self.generated >= request.max_tokens
        return "length" if done or full else None

    def _event(self, token, info, reason, error=None) -> StepEvent:
        return StepEvent(token, info, reason, error, len(self.tokens), self.cached, self.generated)

    def end(self, reason: str, error: str | None = None) -> None:
        self.send(self._event(None, None, reason, error))

    def send(self, event: StepEvent) -> None:
        """Hand an event on; a receiver that fails has cancelled."""
        if event.finish_reason is not None:
            if self._over.is_set():
                return
            self._over.set()
        try:
            self.on_event(event)
        except Exception:
            self.cancelled = True
        if self._over.is_set():  # whoever made the request may hold it for long, and these are large
            self.on_event, self._sampler, self._mask = _nobody, None, None


def _nobody(event: StepEvent) -> None:
    """Receives what comes after the end."""
