"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from mlcrt.runtime.sampler import TokenLogprob
from mlcrt.serve.answer import Delta, Run
from mlcrt.serve.errors import json_response
from mlcrt.serve.routes import GENERATION, streamed
from mlcrt.serve.schemas.chat import ChatCompletion, ChatRequest
from mlcrt.serve.service import Service, client_of, new_id
from mlcrt.serve.streaming import EventStream, unless_left
from mlcrt.serve.tools.parser import CallStart, Event

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions", response_model=None, responses={**GENERATION, **streamed(ChatCompletion)},
    summary="Answer a conversation",
)  # fmt: skip
async def chat(request: Request, body: ChatRequest) -> Response:
    """OpenAI's chat completions. With `stream`, pieces of the answer come as server-sent events."""
    service: Service = request.app.state.service
    notes = request.scope["mlcrt"]
    prepare = run_in_threadpool(service.chat_jobs, body, client_of(request.scope))
    run = Run(service, await unless_left(request, prepare), notes)
    writer = _Writer(service, "chat.completion.chunk" if body.stream else "chat.completion")
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(writer.chunks(run, body.n or 1, with_usage), run.close, notes)
    try:
        answer = await unless_left(request, writer.whole(run, body.n or 1, bool(body.logprobs)))
    finally:
        run.close()
    service.log_text("answer", answer["choices"])
    return json_response(answer)


class _Writer:
    """Deltas in the shape of one request's answer."""

    def __init__(self, service: Service, kind: str):
        self.service = service
        self._frame = {
            "id": new_id("chatcmpl"), "object": kind, "created": int(time.time()), "model": service.name,
            "system_fingerprint": service.fingerprint,
        }  # fmt: skip
        self._ids: dict[tuple[int, int], str] = {}

    async def whole(self, run: Run, n: int, logprobs: bool) -> dict[str, Any]:
        texts, calls = ["" for _ in range(n)], [[] for _ in range(n)]
        tokens: list[list[dict]] = [[] for _ in range(n)]
        reasons = [""] * n
        async for delta in run.deltas():
            i = delta.index
            texts[i] += delta.text
            tokens[i] += self._logprobs(delta.logprobs)
            reasons[i] = delta.finish_reason or ""
            for event in delta.calls:
                if isinstance(event, CallStart):
                    calls[i].append(self._call(i, event))
                else:
                    calls[i][event.index]["function"]["arguments"] += event.text
        choices = []
        for i in range(n):
            message: dict[str, Any] = {"role": "assistant", "content": texts[i], "refusal": None}
            if calls[i]:
                message |= {"content": texts[i] or None, "tool_calls": calls[i]}
            reported = {"content": tokens[i]} if logprobs else None
            choices.append({"index": i, "message": message, "logprobs": reported, "finish_reason": reasons[i]})
        return {**self._frame, "choices": choices, "usage": run.usage.to_dict()}

    async def chunks(self, run: Run, n: int, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        rest = {"usage": None} if with_usage else {}
        for i in range(n):
            yield self._chunk(i, {"role": "assistant", "content": ""}, None, None) | rest
        async for delta in run.deltas():
            for piece in self._pieces(delta):
                yield piece | rest
        if with_usage:
            yield {**self._frame, "choices": [], "usage": run.usage.to_dict()}

    def _pieces(self, delta: Delta) -> list[dict[str, Any]]:
        """One chunk for text and calls, if there are any, and one for the reason it ended."""
        content: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.calls:
            content["tool_calls"] = [self._call_delta(delta.index, event) for event in delta.calls]
        out = []
        if content or delta.logprobs:
            reported = {"content": self._logprobs(delta.logprobs)} if delta.logprobs else None
            out.append(self._chunk(delta.index, content, reported, None))
        if delta.finish_reason:
            out.append(self._chunk(delta.index, {}, None, delta.finish_reason))
        return out

    def _chunk(self, index: int, delta: dict, logprobs: dict | None, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._frame, "choices": [choice]}

    def _call(self, choice: int, event: CallStart) -> dict[str, Any]:
        # Mistral's templates want nine letters and digits, and take the ids back with the results.
        made = new_id("")[1:10] if self.service.tools.name == "mistral" else "call_" + new_id("")[1:25]
        return {"id": made, "type": "function", "function": {"name": event.name, "arguments": ""}}

    def _call_delta(self, choice: int, event: Event) -> dict[str, Any]:
        if isinstance(event, CallStart):
            return {"index": event.index, **self._call(choice, event)}
        return {"index": event.index, "function": {"arguments": event.text}}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [
            {**self._token(entry.token, entry.logprob), "top_logprobs": [self._token(*top) for top in entry.top]}
            for entry in logprobs
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self.service.token_text(token)
        return {"token": text, "logprob": max(float(logprob), -9999.0), "bytes": data}
