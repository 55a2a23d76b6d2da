"""Server-sent events, and noticing that a client has left."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from mlcrt.serve import errors
from mlcrt.serve.errors import ApiError

_PING_SECONDS = 15.0  # proxies close connections that say nothing for long
_STALLED_SECONDS = 120.0  # for a client that stays connected and does not read

T = TypeVar("T")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which is cancelled when the client disconnects; then `ApiError` 499, which nobody sees."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        await _stop(task, left)
    request.scope["mlcrt"]["end"] = "disconnected"
    raise ApiError(499, "The client left.", "client_left")


async def _stop(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """The objects that `chunks` gives as `data:` events, then `[DONE]`.

    `close` is called at the end, which a disconnect brings about at once. An `ApiError` out of `chunks` becomes a last
    event with OpenAI's `error` object, for the status has gone out by then. `notes` are the log's.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], close: Callable[[], None], notes: dict[str, Any]):
        self.status_code, self.background = 200, None
        self.chunks, self.close, self.notes = chunks, close, notes
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(send))
        left = asyncio.ensure_future(_left(receive))
        pinger = asyncio.ensure_future(self._ping(send))
        try:
            await asyncio.wait({writer, left, pinger}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            else:
                self.notes["end"] = "disconnected" if left.done() else "stalled"
        finally:
            self.close()
            await _stop(writer, left, pinger)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                await self._event(send, json.dumps(chunk, separators=(",", ":")))
            await self._event(send, "[DONE]")
        except Exception as error:
            known = errors.of_exception(error)
            await self._event(send, json.dumps((known or errors.internal()).body(), separators=(",", ":")))
            if known is None:
                raise
            self.notes.setdefault("end", known.code)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Send, data: str) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
        self._sent = time.monotonic()

    async def _ping(self, send: Send) -> None:
        """Comments while there is nothing to say. It ends, and the stream with it, when the client does not read."""
        while True:
            quiet = time.monotonic() - self._sent
            if quiet < _PING_SECONDS:
                await asyncio.sleep(_PING_SECONDS - quiet)
                continue
            comment = {"type": "http.response.body", "body": b": waiting\n\n", "more_body": True}
            try:
                await asyncio.wait_for(send(comment), _STALLED_SECONDS)
            except asyncio.TimeoutError:
                return
            self._sent = time.monotonic()
