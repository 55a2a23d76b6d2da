"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from mlcrt.serve.errors import json_response, model_not_found
from mlcrt.serve.routes import QUESTION, READING
from mlcrt.serve.schemas.other import ModelCard, ModelList
from mlcrt.serve.service import Service

router = APIRouter(tags=["models"])


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "mlcrt",
        "context": service.scheduler.context,
    }  # fmt: skip


@router.get("/v1/models", response_model=ModelList, responses=READING, summary="The model that is served")
async def models(request: Request):
    """Under every name that requests may use."""
    service: Service = request.app.state.service
    return json_response({"object": "list", "data": [_card(service, name) for name in service.settings.names]})


@router.get("/v1/models/{model:path}", response_model=ModelCard, responses=QUESTION, summary="One model")
async def model(request: Request, model: str):
    """A 404 if it is not served here."""
    service: Service = request.app.state.service
    if model not in service.settings.names:
        raise model_not_found(service.name)
    return json_response(_card(service, model))
