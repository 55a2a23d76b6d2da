"""POST /v1/completions: text goes on, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from mlcrt.runtime.sampler import TokenLogprob
from mlcrt.serve.answer import Run
from mlcrt.serve.errors import json_response
from mlcrt.serve.routes import GENERATION, streamed
from mlcrt.serve.schemas.completion import Completion, CompletionRequest
from mlcrt.serve.service import Service, client_of, new_id
from mlcrt.serve.streaming import EventStream, unless_left

router = APIRouter(tags=["completions"])


@router.post(
    "/v1/completions", response_model=None, responses={**GENERATION, **streamed(Completion)}, summary="Continue a text"
)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """OpenAI's older completions: each prompt, text or tokens, is continued `n` times."""
    service: Service = request.app.state.service
    notes = request.scope["mlcrt"]
    prepare = run_in_threadpool(service.completion_jobs, body, client_of(request.scope))
    jobs, echoed = await unless_left(request, prepare)
    run = Run(service, jobs, notes)
    writer = _Writer(service, echoed or [""] * len(jobs), body.logprobs is not None)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(writer.chunks(run, with_usage), run.close, notes)
    try:
        answer = await unless_left(request, writer.whole(run))
    finally:
        run.close()
    service.log_text("answer", answer["choices"])
    return json_response(answer)


class _Writer:
    """Deltas in the shape of one request's answer; `fronts` is what each text begins with."""

    def __init__(self, service: Service, fronts: list[str], logprobs: bool):
        self.service, self.fronts, self.logprobs = service, fronts, logprobs
        self._offsets = [0] * len(fronts)
        self._frame = {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": service.name,
            "system_fingerprint": service.fingerprint,
        }  # fmt: skip

    async def whole(self, run: Run) -> dict[str, Any]:
        texts, reasons = list(self.fronts), [""] * len(self.fronts)
        reported: list[dict[str, list]] = [self._tokens(0, ()) for _ in self.fronts]
        async for delta in run.deltas():
            texts[delta.index] += delta.text
            reasons[delta.index] = delta.finish_reason or ""
            for key, values in self._tokens(delta.index, delta.logprobs).items():
                reported[delta.index][key] += values
        choices = [
            {"index": i, "text": text, "logprobs": reported[i] if self.logprobs else None, "finish_reason": reasons[i]}
            for i, text in enumerate(texts)
        ]
        return {**self._frame, "choices": choices, "usage": run.usage.to_dict()}

    async def chunks(self, run: Run, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        rest = {"usage": None} if with_usage else {}
        for i, front in enumerate(self.fronts):
            if front:
                yield self._chunk(i, front, None, None) | rest
        async for delta in run.deltas():
            reported = self._tokens(delta.index, delta.logprobs) if delta.logprobs else None
            yield self._chunk(delta.index, delta.text, reported, delta.finish_reason) | rest
        if with_usage:
            yield {**self._frame, "choices": [], "usage": run.usage.to_dict()}

    def _chunk(self, index: int, text: str, logprobs: dict | None, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._frame, "choices": [choice]}

    def _tokens(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, list]:
        """Tokens, their log-probabilities, the best ones, and where each token's text begins in the answer."""
        out: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in logprobs:
            text = self.service.token_text(entry.token)[0]
            out["tokens"].append(text)
            out["token_logprobs"].append(max(float(entry.logprob), -9999.0))
            best = {self.service.token_text(token)[0]: max(float(value), -9999.0) for token, value in entry.top}
            out["top_logprobs"].append(best)
            out["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(text)
        return out
