"""The URLs of the server, one module per topic."""

from __future__ import annotations

from typing import Any

from mlcrt.serve.schemas.common import ErrorBody

_ERRORS = {
    400: "The request is wrong; `param` says where.",
    401: "The API key is missing or wrong.",
    403: "The Host header names another server.",
    404: "There is no such model.",
    408: "It took longer than allowed.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says for how long to wait.",
    500: "The server failed.",
    503: "The server is shutting down.",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in statuses}


GENERATION = failures(400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
QUESTION = failures(400, 401, 403, 404, 413, 415, 500, 503)
READING = failures(401, 403, 500, 503)


def streamed(model: type) -> dict[int | str, dict[str, Any]]:
    """A 200 that is JSON, or server-sent events when the request says `stream`."""
    events = {"schema": {"type": "string"}, "example": "data: {…}\n\ndata: [DONE]\n\n"}
    text = "The answer; with `stream`, server-sent events of its pieces."
    return {200: {"model": model, "description": text, "content": {"text/event-stream": events}}}
