"""One thread owns the engine and advances all running requests step by step.

A step takes one token of every answer that is being written and a bounded number of prompt tokens, so that a long
prompt does not hold up the answers. Between steps requests come in, leave, and run out of time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.runtime.batch_engine import BatchEngine, StepResult, Work
from mlcrt.runtime.generate import common_prefix

from .active import Embedding, Generation, Task
from .interface import GenerationRequest, OnEvent, QueueFull, RequestRefused, SchedulerClosed
from .queue import FairQueue

WORTH_WAITING = 16  # prompt tokens that another request is about to compute; not less than a block of the KV cache
FAILURES = 3  # failed steps in a row after which the engine counts as broken


class BatchScheduler:
    """The Scheduler of interface.py over a BatchEngine, which it owns and closes.

    queue_limit: requests that may wait besides those that run. prefill_tokens: prompt tokens of a step while answers
    are being written (at most engine.chunk; alone, prompts take whole chunks). `clock` gives seconds.
    """

    def __init__(
        self,
        engine: BatchEngine,
        queue_limit: int = 64,
        prefill_tokens: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._engine, self._clock = engine, clock
        self._queue_limit, self._prefill_tokens = queue_limit, max(1, min(prefill_tokens, engine.chunk))
        self.context, self.vocab, self.slots = engine.context, engine.vocab, engine.slots
        self._changed = threading.Condition()
        self._queue: FairQueue[Task] = FairQueue(lambda task: task.priority, lambda task: task.client)
        self._running: list[Task] = []  # in the order they began
        self._closing = self._cancel_all = False
        self._broken: str | None = None
        self._failures = 0
        self._seconds = 1.0  # a request takes, smoothed
        self._count: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._usage = engine.usage()
        self._thread = threading.Thread(target=self._run, name="mlcrt-engine", daemon=True)
        self._thread.start()

    # --- called from any thread ---

    def submit(self, request: GenerationRequest, on_event: OnEvent) -> Generation:
        """See interface.Scheduler."""
        return self.submit_all([request], [on_event])[0]

    def submit_all(self, requests: Sequence[GenerationRequest], on_events: Sequence[OnEvent]) -> list[Generation]:
        """See interface.Scheduler."""
        now = self._clock()
        for request in requests:
            self._check(request.prompt)
            if request.max_tokens is not None and request.max_tokens < 1:
                raise RequestRefused(f"max_tokens must be 1 or more, not {request.max_tokens}")
            largest = max(request.sampling.logit_bias, default=0)
            if largest >= self.vocab:
                raise RequestRefused(f"logit_bias names token {largest}; the model has tokens 0 to {self.vocab - 1}")
        tasks = [
            Generation(request, on_event, self.vocab, self.context, now, self._wake)
            for request, on_event in zip(requests, on_events, strict=True)
        ]
        self._put(tasks)
        return tasks

    def embeddings(self, tokens: Sequence[int], timeout_s: float | None = None) -> np.ndarray:
        """See interface.Scheduler."""
        self._check(tokens)
        task = Embedding(tokens, self._clock(), timeout_s)
        self._put([task])
        try:
            return task.future.result(timeout_s)
        except FutureTimeout:
            task.cancelled = True
            self._wake()
            raise TimeoutError(f"no embedding within {timeout_s} s") from None

    def stats(self) -> dict[str, Any]:
        """See interface.Scheduler."""
        with self._changed:
            running = list(self._running)
            return {
                "running": len(running),
                "prefilling": sum(task.missing > 0 for task in running),
                "queued": len(self._queue),
                "slots": self.slots,
                **self._usage,
                **{name: self._count[name] for name in _COUNTERS},
                "finished": dict(self._finished),
            }

    def close(self, drain: bool = True, timeout_s: float | None = None) -> None:
        """See interface.Scheduler."""
        with self._changed:
            self._closing = True
            self._cancel_all |= not drain
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._changed:
                self._cancel_all = True
            self._thread.join()
        self._engine.close()

    def _check(self, tokens: Sequence[int]) -> None:
        if len(tokens) == 0:
            raise RequestRefused("the prompt has no tokens")
        if len(tokens) > self.context:
            raise RequestRefused(
                f"the prompt has {len(tokens)} tokens, and the context holds {self.context}", "context_length_exceeded"
            )
        if not all(0 <= token < self.vocab for token in tokens):
            raise RequestRefused(f"the prompt has a token outside the vocabulary of {self.vocab}")

    def _put(self, tasks: Sequence[Task]) -> None:
        with self._changed:
            if self._closing or self._broken:
                raise SchedulerClosed(self._broken or "the server is shutting down")
            room = self._queue_limit + max(0, self.slots - len(self._running))
            if len(self._queue) + len(tasks) > room:
                self._count["refused"] += len(tasks)
                wait = self._seconds * (len(self._queue) + 1) / self.slots
                raise QueueFull(min(60.0, max(1.0, wait)), len(self._queue))
            for task in tasks:
                self._queue.put(task)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- the engine's thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._running or self._closing):
                    self._changed.wait()
                if self._closing and not (self._queue or self._running):
                    return
                ended = self._leavers()
                self._admit()
                running = list(self._running)
                if not running and self._queue:
                    self._changed.wait(0.01)  # an engine that has no room for anyone though nobody runs
            for task, reason in ended:
                task.end(reason)
            if running:
                self._step(running)

    def _leavers(self) -> list[tuple[Task, str]]:
        """Those that were cancelled or are out of time; they no longer wait."""
        now, leavers = self._clock(), []
        for task in [*self._queue, *self._running]:
            if task.cancelled or self._cancel_all:
                leavers.append((task, "cancelled"))
            elif now >= task.deadline:
                leavers.append((task, "timeout"))
        for task, reason in leavers:
            self._finished[reason] += 1
            if task.slot is None:
                self._queue.drop(task)
            else:
                self._running.remove(task)
                self._engine.release(task.slot)
                task.slot = None
                self._usage = self._engine.usage()
        return leavers

    def _admit(self) -> None:
        """Give slots to those whose turn it is. Who waits for a prefix that is being computed lets others pass."""
        for task in list(self._queue):
            if len(self._running) >= self.slots:
                return
            if self._soon_shared(task):
                continue
            slot = self._engine.admit(task.tokens, task.limit, fresh=task.hidden)
            if slot is None:
                return
            self._queue.take(task)
            task.slot = slot
            if isinstance(task, Generation):
                task.cached = slot.cached
                self._count["prefix_hits"] += slot.cached > 0
                self._count["prefix_hit_tokens"] += slot.cached
            self._running.append(task)

    def _soon_shared(self, task: Task) -> bool:
        """Whether a running prefill is about to make much of this prompt available."""
        if task.hidden:
            return False
        longest = 0
        for other in self._running:
            if other.missing and not other.hidden:
                shared = min(common_prefix(other.tokens, task.tokens), len(task.tokens) - 1)
                longest = max(longest, shared)
        return longest >= WORTH_WAITING and longest - self._engine.known(task.tokens) >= WORTH_WAITING

    def _step(self, running: list[Task]) -> None:
        work, workers = [], []
        writing = any(not task.missing for task in running)
        budget = self._prefill_tokens if writing else self._engine.chunk
        for task in running:
            size = min(task.missing, budget)
            if task.missing and not size:
                continue
            try:
                work.append(self._work(task, size))
            except Exception as error:  # a constraint is foreign code
                self._end(task, "error", _sentence(error))
                continue
            workers.append(task)
            budget -= size
        if not work:
            return
        try:
            result = self._engine.step(work)
        except Exception as error:
            self._failed(workers, error)
            return
        self._failures = 0
        self._count["steps"] += 1
        for task, item in zip(workers, work, strict=True):
            self._count["prompt_tokens"] += len(item.tokens) if item.prompt else 0
            try:
                self._deliver(task, result)
            except Exception as error:
                self._end(task, "error", _sentence(error))
        self._usage = self._engine.usage()

    @staticmethod
    def _work(task: Task, size: int) -> Work:
        if task.hidden:
            start = len(task.slot.tokens)
            return Work(task.slot, task.tokens[start : start + size], True, None, True)
        if not task.missing:
            return Work(task.slot, [task.next_token], False, task.choice())
        start = len(task.slot.tokens)
        choice = task.choice() if size == task.missing else None
        return Work(task.slot, task.tokens[start : start + size], True, choice)

    def _deliver(self, task: Task, result: StepResult) -> None:
        if task.hidden:
            task.total = task.total + result.hidden[task.slot.index]
            if not task.missing:
                self._release(task, "stop")
                task.future.set_result((task.total / len(task.tokens)).astype(np.float32))
            return
        chosen = result.chosen.get(task.slot.index)
        if chosen is None:
            return
        event = task.take(chosen)
        self._count["tokens_generated"] += 1
        if event.finish_reason is not None:
            self._release(task, event.finish_reason)  # before the client hears of it: its slot is free by then
        task.send(event)

    def _failed(self, workers: list[Task], error: Exception) -> None:
        """A step that failed ends those that took part; an engine that fails again and again takes nothing more."""
        self._failures += 1
        for task in workers:
            self._end(task, "error", _sentence(error))
        if self._failures < FAILURES:
            return
        with self._changed:
            self._broken = "the engine failed; see the log, and start the server again"
            waiting = list(self._queue)
            for task in waiting:
                self._queue.drop(task)
        for task in waiting:
            task.end("error", _sentence(error))

    def _end(self, task: Task, reason: str, error: str | None = None) -> None:
        self._release(task, reason)
        task.end(reason, error)

    def _release(self, task: Task, reason: str) -> None:
        with self._changed:
            self._running.remove(task)
            self._engine.release(task.slot)
            task.slot = None
            self._finished[reason] += 1
            self._seconds += 0.1 * (self._clock() - task.started - self._seconds)
            self._usage = self._engine.usage()


_COUNTERS = ("steps", "tokens_generated", "prompt_tokens", "prefix_hits", "prefix_hit_tokens", "refused")


def _sentence(error: Exception) -> str:
    """What may be logged of an error: its own words if it is one of ours, else its kind alone."""
    return str(error) if isinstance(error, MlcrtError) else f"internal error ({type(error).__name__})"
