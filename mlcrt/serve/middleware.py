"""What every request passes before a route sees it: an id, the log, and the checks that protect the server."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import traceback
import uuid
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlcrt.serve import errors
from mlcrt.serve.errors import ApiError
from mlcrt.serve.settings import Settings, is_loopback

log = logging.getLogger("mlcrt.serve")

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_BODY_SECONDS = 60.0  # for a body to arrive
_DRAIN_BYTES = 64 << 20  # of a body that is too large are read and thrown away, so that the client reads the answer


class RequestLog:
    """Outermost: gives a request its id, answers what nobody caught with 500, writes one line to the log.

    `scope["mlcrt"]` is a dictionary in which routes leave what the line should have (tokens, finish reason). Lines have
    the route's path ("-" where there is none), and nothing that a client wrote.
    """

    def __init__(self, app: ASGIApp, service: Any, known: frozenset[str]):
        self.app, self.service, self.known = app, service, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        notes = scope["mlcrt"] = {"id": request_id}
        started, status = time.perf_counter(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except asyncio.CancelledError:
            status = status or 499
            notes.setdefault("end", "cancelled")
            raise
        except Exception as error:
            self._log_failure(request_id, error)
            if not status:
                await errors.internal().response()(scope, receive, tagged)
            notes["end"] = "failed"
        finally:
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in self.known else "-")
            self.service.metrics.request(path, status, seconds)
            extra = "".join(f" {key}={value}" for key, value in notes.items() if key != "id")
            log.info("%s %s %s %s %.0fms%s", request_id, scope["method"], path, status, seconds * 1000, extra)

    def _log_failure(self, request_id: str, error: Exception) -> None:
        """Where it happened. The exception's text may quote a prompt, so it needs leave."""
        where = " < ".join(
            f"{f.filename}:{f.lineno} {f.name}" for f in reversed(traceback.extract_tb(error.__traceback__))
        )
        text = f": {error}" if self.service.settings.log_prompts else ""
        log.error("%s failed with %s%s at %s", request_id, type(error).__name__, text, where)


class Guard:
    """Refuses what should not reach a route: foreign Host names, wrong keys, other content types, bodies too large.

    `open_paths`, and what lies under `open_folder`, need no key. The whole body is read here, so that a route starts
    with all of it or not at all.
    """

    def __init__(self, app: ASGIApp, service: Any, open_paths: frozenset[str], open_folder: str):
        self.app, self.service = app, service
        self.open_paths, self.open_folder = open_paths, open_folder
        self.settings: Settings = service.settings
        self._keys = [key.encode() for key in self.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if scope["path"] not in self.open_paths and not scope["path"].startswith(self.open_folder):
                self._check_key(headers)
                if self.service.closing:
                    raise errors.shutting_down()
            body = await self._body(scope, headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:  # the client left before it had sent everything
            scope["mlcrt"]["end"] = "disconnected"
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of a foreign site whose name was pointed at this machine is not let in (DNS rebinding)."""
        if not self.settings.local_only or self._keys:
            return
        host = re.sub(r":\d*$", "", headers.get("host", ""))
        if not is_loopback(host) and host.lower() not in self.settings.allowed_hosts:
            raise ApiError(403, "This server answers to localhost only; see --allowed-host.", "host_not_allowed")

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        token = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        # every key is compared, whole, whatever the outcome: the time says nothing about how far a guess is right
        if not max(hmac.compare_digest(token, key) for key in self._keys):
            raise errors.unauthorized(bool(token))

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        length = headers.get("content-length", "")
        large = length.isdigit() and int(length) > self.settings.max_body
        chunks, size = [], 0
        try:
            with anyio.fail_after(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    large = large or size > self.settings.max_body
                    if large:
                        chunks.clear()
                    else:
                        chunks.append(message.get("body", b""))
                    if not message.get("more_body") or size > _DRAIN_BYTES:
                        break
        except TimeoutError:
            raise ApiError(408, "The request body did not arrive in time.", "request_timeout", kind="timeout") from None
        if large:
            raise errors.too_large(self.settings.max_body)
        # Other types reach a server from any web page without asking (a form, text/plain).
        if size and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(
                415, "The body must be JSON, sent as Content-Type: application/json.", "unsupported_media_type"
            )
        return b"".join(chunks)
