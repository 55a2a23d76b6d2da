"""GET /health and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from mlcrt.serve.errors import json_response
from mlcrt.serve.routes import READING, failures
from mlcrt.serve.schemas.other import Health
from mlcrt.serve.service import Service

router = APIRouter(tags=["system"])


@router.get(
    "/health", response_model=Health, summary="Whether requests are taken",
    responses={503: {"model": Health, "description": "It is shutting down, or its engine failed."}, **failures(403)},
)  # fmt: skip
async def health(request: Request):
    """Needs no key."""
    service: Service = request.app.state.service
    if service.closing or service.failed:
        return json_response({"status": "shutting down" if service.closing else "failed"}, 503)
    return json_response({"status": "ok"})


_TEXT = {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", response_model=None, responses={**READING, **_TEXT}, summary="Figures for Prometheus")
async def metrics(request: Request):
    """Requests, times, queue, slots, KV cache, memory of the process."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
