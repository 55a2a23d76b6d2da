"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with the status and codes of its API.

A message says what the client can do about it. None holds a path of this machine or text of a prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from mlcrt.errors import MlcrtError
from mlcrt.serve.interface import QueueFull, RequestRefused, SchedulerClosed

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """What a client is told: an HTTP status and OpenAI's four fields."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: text of a model or a client may hold half a surrogate pair, which UTF-8 cannot carry."""
    content = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Response(content, status, dict(headers or {}), media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, code, param)


def unauthorized(given: bool) -> ApiError:
    message = "The API key is not valid." if given else "An API key is needed: send it as 'Authorization: Bearer KEY'."
    return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def model_not_found(served: str) -> ApiError:
    return ApiError(404, f"There is no such model here; this server has {served!r}.", "model_not_found", "model")


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request body is larger than the {limit} bytes that are allowed.", "request_too_large")


def shutting_down() -> ApiError:
    return ApiError(
        503, "The server is shutting down; try again later.", "service_unavailable", kind=SERVER,
        headers={"Retry-After": "5"},
    )  # fmt: skip


def engine_failed() -> ApiError:
    message = "The model's engine has failed; the server has to be started again."
    return ApiError(503, message, "engine_failed", kind=SERVER)


def internal() -> ApiError:
    return ApiError(500, "The server failed on this request; its log says why.", "internal_error", kind=SERVER)


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        408, f"The request took longer than the {seconds:g} s that are allowed.", "request_timeout", kind="timeout"
    )


def of_exception(error: Exception) -> ApiError | None:
    """What a client is told about an exception that is its doing, or the scheduler's state; None for any other."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        seconds = str(max(1, math.ceil(error.retry_after_s)))
        return ApiError(
            429, f"The queue is full; try again in {seconds} s.", "rate_limit_exceeded", kind="requests",
            headers={"Retry-After": seconds},
        )  # fmt: skip
    if isinstance(error, SchedulerClosed):
        return shutting_down()
    if isinstance(error, RequestRefused):
        return bad_request(_sentence(error), code=error.code)
    return None


def _sentence(error: MlcrtError) -> str:
    text = " ".join(str(error).split())
    return f"{text[:1].upper()}{text[1:]}"


_CODES = {
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "model_attributes_type": "invalid_type",
}


def _no_json() -> ApiError:
    return ApiError(400, "The request body is not valid JSON.", "invalid_json")


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, by the name of the field. What the client sent is not repeated."""
    first = error.errors()[0]
    kind = first["type"]
    if kind == "json_invalid":
        return _no_json()
    param = _param(first["loc"], error.body, kind == "missing")
    message = first["msg"]
    if kind == "union_tag_invalid":
        context = first["ctx"]
        message = f"{context['discriminator'].strip(chr(39))} should be one of {context['expected_tags']}"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    elif kind == "missing" and not param:
        message = "The request has no JSON body"
    code = _CODES.get(kind) or ("invalid_type" if kind.endswith("_type") else "invalid_value")
    return ApiError(400, f"{param}: {message}." if param else f"{message}.", code, param or None)


def _param(location: tuple, body: Any, missing: bool) -> str:
    """`messages[0].content` for a place in the body. Steps that are names of union members are left out."""
    out, at = "", body
    steps = location[1:] if location[:1] == ("body",) else location
    for i, step in enumerate(steps):
        if isinstance(step, int):
            out += f"[{step}]"
            at = at[step] if isinstance(at, list) and step < len(at) else None
        elif (isinstance(at, Mapping) and step in at) or (missing and i == len(steps) - 1):
            out += f".{step}" if out else step
            at = at.get(step) if isinstance(at, Mapping) else None
    return out


def install(app: FastAPI) -> None:
    """Make every error of `app` come in this shape."""

    async def validation(request: Request, error: RequestValidationError) -> Response:
        return of_validation(error).response()

    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return ApiError(404, "There is nothing at this URL.", "unknown_url").response()
        if error.status_code == 405:
            message = "This URL does not take this method."
            return ApiError(405, message, "method_not_allowed", headers=error.headers).response()
        if error.status_code == 400:  # no UTF-8, nested too deeply, a number with too many digits
            return _no_json().response()
        return ApiError(error.status_code, "The request could not be read.", "invalid_request").response()

    async def known(request: Request, error: Exception) -> Response:
        found = of_exception(error)
        if found is None:
            raise error
        return found.response()

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, QueueFull, SchedulerClosed, RequestRefused):
        app.add_exception_handler(kind, known)
