"""A scheduler over the toy engine of tests/faces: the interface kept to the letter, one thread, requests in turns."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

import numpy as np
import toy_engine

from mlcrt.errors import MlcrtError
from mlcrt.runtime.sampler import Sampler
from mlcrt.serve.interface import GenerationRequest, QueueFull, RequestRefused, SchedulerClosed, StepEvent

ENDS = ("stop", "length", "timeout", "cancelled", "error")


class Entry:
    def __init__(self, request: GenerationRequest, on_event, vocab: int):
        self.request, self.on_event = request, on_event
        self.tokens = list(request.prompt)
        self.made = 0
        self.cancelled = False
        self.deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        self.sampler = Sampler(request.sampling.but(logprobs=request.logprobs), vocab, request.prompt)

    def cancel(self) -> None:
        self.cancelled = True


class ToyScheduler:
    """`step_s` seconds for each step of all running requests. `fail_after` tokens an 'error' comes."""

    def __init__(self, dist, context=None, slots=4, queue=8, step_s=0.0, fail_after=None):
        self.engine = toy_engine.Engine(dist, context=context)
        self.context, self.vocab, self.slots = self.engine.context, self.engine.config.vocab, slots
        self.queue, self.step_s, self.fail_after = queue, step_s, fail_after
        self.running: list[Entry] = []
        self.waiting: deque[Entry] = deque()
        self.counts = dict.fromkeys(
            ("steps", "tokens_generated", "prompt_tokens", "prefix_hits", "prefix_hit_tokens"), 0
        )
        self.finished = dict.fromkeys(ENDS, 0)
        self.refused, self.closed = 0, False
        self.seen: list[GenerationRequest] = []
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, request, on_event):
        return self.submit_all([request], [on_event])[0]

    def submit_all(self, requests, on_events):
        for request in requests:
            if not request.prompt:
                raise RequestRefused("the prompt is empty")
            if len(request.prompt) >= self.context:
                text = f"the prompt has {len(request.prompt)} tokens but the context holds {self.context}"
                raise RequestRefused(text, "context_length_exceeded")
        with self._lock:
            if self.closed:
                raise SchedulerClosed("closed")
            room = self.queue + self.slots - len(self.running) - len(self.waiting)
            if len(requests) > room:
                self.refused += 1
                raise QueueFull(1.5, len(self.waiting))
            entries = [Entry(*pair, self.vocab) for pair in zip(requests, on_events, strict=True)]
            self.seen += requests
            self.waiting += entries
            self._lock.notify_all()
        return entries

    def embeddings(self, tokens, timeout_s=None):
        if not tokens or len(tokens) > self.context:
            raise RequestRefused("too long", "context_length_exceeded")
        if self.closed:
            raise SchedulerClosed("closed")
        return np.random.default_rng(list(tokens)).normal(size=self.engine.config.hidden).astype(np.float32)

    def stats(self):
        with self._lock:
            return {
                "running": len(self.running), "prefilling": 0, "queued": len(self.waiting), "slots": self.slots,
                "kv_tokens": sum(len(e.tokens) for e in self.running), "kv_cached_tokens": 0,
                "kv_capacity_tokens": self.slots * self.context, **self.counts, "finished": dict(self.finished),
                "refused": self.refused,
            }  # fmt: skip

    def close(self, drain=True, timeout_s=None):
        with self._lock:
            self.closed = True
            if not drain:
                for entry in (*self.running, *self.waiting):
                    entry.cancelled = True
            self._lock.notify_all()
        self._thread.join(timeout_s)
        self.engine.close()

    def _work(self):
        while True:
            with self._lock:
                while not self.running and not self.waiting and not self.closed:
                    self._lock.wait()
                while self.waiting and len(self.running) < self.slots:
                    self.running.append(self.waiting.popleft())
                active = list(self.running)
                queued = [e for e in self.waiting if e.cancelled or self._late(e)]
                for entry in queued:
                    self.waiting.remove(entry)
            if not active and self.closed:
                return
            time.sleep(self.step_s or float(os.environ.get("TOY_DELAY", 0)))
            self.counts["steps"] += 1
            for entry in (*active, *queued):
                try:
                    ended, event = self._step(entry)
                except Exception as error:
                    ended, event = "error", StepEvent(None, finish_reason="error", error=type(error).__name__)
                if ended:
                    with self._lock:
                        if entry in self.running:
                            self.running.remove(entry)
                        self.finished[ended] += 1
                try:
                    entry.on_event(event)
                except Exception:
                    entry.cancelled = True

    def _late(self, entry):
        return entry.deadline is not None and time.monotonic() > entry.deadline

    def _step(self, entry):
        usage = {"prompt_tokens": len(entry.request.prompt), "completion_tokens": entry.made}
        if entry.cancelled or self._late(entry):
            reason = "cancelled" if entry.cancelled else "timeout"
            return reason, StepEvent(None, finish_reason=reason, **usage)
        if self.fail_after == entry.made:
            return "error", StepEvent(None, finish_reason="error", error="the toy broke", **usage)
        token, logprob, ended = self._choose(entry)
        entry.made += 1
        self.counts["tokens_generated"] += 1
        usage["completion_tokens"] = entry.made
        return ended, StepEvent(token, logprob, ended, **usage)

    def _choose(self, entry):
        request, logits = entry.request, self.engine.logits_after(entry.tokens)
        if request.constraint is not None:
            mask = np.zeros((self.vocab + 31) // 32, np.int32)
            request.constraint.mask(mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab].astype(bool)
            if not allowed.any():
                raise MlcrtError("nothing is allowed")
            logits = np.where(allowed, logits, np.float32(-1e30)).astype(np.float32)
        token = entry.sampler.sample(logits)
        logprob = (
            None if request.logprobs is None else entry.sampler.logprob(self.engine.logits_after(entry.tokens), token)
        )
        entry.tokens.append(token)
        ended = None
        if request.constraint is not None:
            request.constraint.accept(token)
        if token in request.stop_token_ids or (request.constraint is not None and request.constraint.finished):
            ended = "stop"
        elif (
            request.max_tokens is not None and entry.made + 1 >= request.max_tokens or len(entry.tokens) >= self.context
        ):
            ended = "length"
        return token, logprob, ended
