"""From the scheduler's tokens to pieces of answers: text, tool calls, log-probabilities, why it ended."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlcrt.runtime.sampler import TokenLogprob
from mlcrt.runtime.text import Detokenizer, StopMatcher
from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.serve import errors
from mlcrt.serve.interface import GenerationRequest, OnEvent, SchedulerClosed, StepEvent
from mlcrt.serve.tools.parser import Event, Text, ToolParser

if TYPE_CHECKING:
    from mlcrt.serve.service import Service


@dataclass
class Usage:
    """Tokens of one HTTP request."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Delta:
    """What became certain of answer number `index`. The last one of an answer has a `finish_reason`."""

    index: int
    text: str = ""
    calls: Sequence[Event] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: str | None = None


class Transcript:
    """The text of one answer as it comes.

    A log-probability goes out with the first of its token's text, so what a stop string swallows has none. `keep`
    are special tokens that show. The first `stops` to be complete ends the answer.
    """

    def __init__(self, tokenizer: ModelTokenizer, stops: Sequence[str], keep: frozenset[int], continuation: bool):
        self._detokenizer = Detokenizer(tokenizer.table, continuation=continuation, keep=keep)
        self._matcher = StopMatcher(stops)
        self._known = self._shown = 0  # characters decoded, and let out
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # with the place where their text begins

    @property
    def stopped(self) -> bool:
        return self._matcher.hit is not None

    def push(self, token: int, logprob: TokenLogprob | None) -> tuple[str, list[TokenLogprob]]:
        if logprob is not None:
            self._waiting.append((self._known, logprob))
        text = self._detokenizer.add(token)
        self._known += len(text)
        return self._out(self._matcher.push(text))

    def finish(self) -> tuple[str, list[TokenLogprob]]:
        """The rest, when something other than a stop string ended the answer."""
        text, ready = self._out(self._matcher.finish())
        return text, [*ready, *(logprob for _, logprob in self._waiting)]

    def _out(self, text: str) -> tuple[str, list[TokenLogprob]]:
        self._shown += len(text)
        ready = []
        while self._waiting and self._waiting[0][0] < self._shown:
            ready.append(self._waiting.popleft()[1])
        return text, ready


@dataclass
class Job:
    """One answer that is to be made."""

    request: GenerationRequest
    transcript: Transcript
    parser: ToolParser | None = None
    first_of_prompt: bool = True  # of several answers to one prompt, the one whose prompt is counted
    done: bool = False
    counted: StepEvent = field(default_factory=lambda: StepEvent(None))

    def take(self, index: int, event: StepEvent) -> Delta:
        """What `event` adds to the answer."""
        self.counted = event
        ended = event.finish_reason
        text, logprobs = "", []
        if event.token is not None and not (ended == "stop" and event.token in self.request.stop_token_ids):
            text, logprobs = self.transcript.push(event.token, event.logprob)
        if self.transcript.stopped:
            ended = "stop"
        elif ended:
            rest, more = self.transcript.finish()
            text, logprobs = text + rest, [*logprobs, *more]
        self.done = ended is not None
        if self.parser is None:
            return Delta(index, text, (), logprobs, ended)
        events = self.parser.feed(text)
        if ended:
            events += self.parser.finish()
            if self.parser.calls and ended == "stop":
                ended = "tool_calls"
        spoken = "".join(event.text for event in events if isinstance(event, Text))
        return Delta(index, spoken, [e for e in events if not isinstance(e, Text)], logprobs, ended)


class Run:
    """The answers of one HTTP request under way. Making it submits `jobs` and raises what `submit_all` raises.

    Iterate `deltas` once; call `close` whatever happens: it cancels what still runs and completes `usage` and `notes`.
    """

    def __init__(self, service: Service, jobs: Sequence[Job], notes: dict[str, Any]):
        self.usage = Usage()
        self._service, self._jobs, self._notes = service, jobs, notes
        self._queue: asyncio.Queue[tuple[int, StepEvent]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._started = time.perf_counter()
        self._closed = False
        receivers = [self._receiver(i) for i in range(len(jobs))]
        try:
            self._handles = service.scheduler.submit_all([job.request for job in jobs], receivers)
        except SchedulerClosed:
            raise service.unavailable() from None

    def _receiver(self, index: int) -> OnEvent:
        return lambda event: self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

    async def deltas(self) -> AsyncIterator[Delta]:
        """What becomes certain, as it does. Raises `ApiError` for a request that cannot be finished."""
        left, last = len(self._jobs), None
        metrics = self._service.metrics
        while left:
            index, event = await self._queue.get()
            job = self._jobs[index]
            if job.done:  # a step that was under way when a stop string ended the answer
                continue
            if event.finish_reason not in (None, "stop", "length"):
                raise _failure(self._service, event, self._notes)
            if problem := getattr(job.request.constraint, "error", ""):
                self._notes["constraint"] = "failed"
                raise errors.bad_request(f"The grammar could not be followed to its end: {problem}.", "grammar")
            now = time.perf_counter()
            if last is None:
                metrics.first_token(now - self._started)
            elif len(self._jobs) == 1:
                metrics.next_token(now - last)
            last = now
            delta = job.take(index, event)
            if job.done:
                left -= 1
                self._handles[index].cancel()
            if delta.finish_reason:
                self._notes["end"] = delta.finish_reason
            if delta.text or delta.calls or delta.logprobs or delta.finish_reason:
                if left == 0:
                    self.close()  # before the last delta goes out, so that the figures are those of the whole
                yield delta

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        usage = self.usage
        for job, handle in zip(self._jobs, self._handles, strict=True):
            handle.cancel()
            if job.first_of_prompt:
                usage.prompt += job.counted.prompt_tokens or len(job.request.prompt)
                usage.cached += job.counted.cached_tokens
            usage.completion += job.counted.completion_tokens
        self._handles = []  # they hold the receivers, which hold this: without a cycle all goes at once
        self._notes.update(prompt=usage.prompt, cached=usage.cached, completion=usage.completion)


def _failure(service: Service, event: StepEvent, notes: dict[str, Any]) -> errors.ApiError:
    notes["end"] = event.finish_reason
    if event.finish_reason == "timeout":
        return errors.timed_out(service.settings.request_timeout)
    if event.finish_reason == "cancelled":
        return errors.shutting_down()
    notes["error"] = repr(event.error)
    return errors.internal()
