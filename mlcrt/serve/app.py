"""The web application: routes, checks, errors, documentation and the chat page around one service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool

from mlcrt.serve import errors
from mlcrt.serve.docs import docs_page
from mlcrt.serve.middleware import Guard, RequestLog
from mlcrt.serve.page import mount_page
from mlcrt.serve.routes import chat, completions, embeddings, models, system, tokens
from mlcrt.serve.service import Service
from mlcrt.version import __version__

_DESCRIPTION = """A language model behind OpenAI's API. Point any OpenAI client at `/v1`.

Errors have the shape `{"error": {"message", "type", "param", "code"}}`. Every answer carries an `x-request-id`."""

# These say nothing about prompts and need no key: a page cannot send one before it is there.
OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})
OPEN_FOLDER = "/web/"


def create_app(service: Service) -> FastAPI:
    """The application for `service`, which it closes when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="mlcrt", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", lifespan=lifespan,
    )  # fmt: skip
    app.state.service = service
    for module in (chat, completions, models, embeddings, tokens, system):
        app.include_router(module.router)
    app.add_api_route("/docs", docs_page, methods=["GET"], include_in_schema=False)
    mount_page(app)
    errors.install(app)
    _describe(app, bool(service.settings.api_keys))
    # the last one added is the first that a request meets
    app.add_middleware(Guard, service=service, open_paths=OPEN_PATHS, open_folder=OPEN_FOLDER)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"], max_age=600,
        )  # fmt: skip
    app.add_middleware(RequestLog, service=service, known=frozenset(_paths(app)))
    return app


def _paths(app: FastAPI) -> list[str]:
    return [*app.openapi()["paths"], *OPEN_PATHS]


def _describe(app: FastAPI, with_key: bool) -> None:
    """The OpenAPI document as this server behaves: 400 where FastAPI says 422, and the key where one is asked for."""
    document: dict[str, Any] = app.openapi()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if with_key and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
            elif not with_key:
                operation["responses"].pop("401", None)
    components = document.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    if with_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = document
