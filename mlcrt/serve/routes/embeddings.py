"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from mlcrt.serve import errors
from mlcrt.serve.errors import bad_request, json_response
from mlcrt.serve.interface import SchedulerClosed
from mlcrt.serve.routes import GENERATION
from mlcrt.serve.schemas.other import EmbeddingList, EmbeddingRequest
from mlcrt.serve.service import Service, prompts_of
from mlcrt.serve.streaming import unless_left

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingList, responses=GENERATION, summary="Vectors for texts")
async def embeddings(request: Request, body: EmbeddingRequest):
    """The mean over a text's tokens of the model's last hidden state, scaled to length 1.

    A chat model was not trained to make such vectors: for search, a model made for embeddings is better.
    """
    service: Service = request.app.state.service
    service.check_model(body.model)

    async def vectors() -> tuple[list[np.ndarray], int]:
        made, count = [], 0
        for prompt in prompts_of(body.input):
            tokens = await run_in_threadpool(service.prompt_tokens, prompt, "input")
            call = partial(service.scheduler.embeddings, tokens, timeout_s=service.settings.request_timeout)
            try:
                vector = np.asarray(await run_in_threadpool(call), np.float32)
            except SchedulerClosed:
                raise service.unavailable() from None
            except TimeoutError:
                raise errors.timed_out(service.settings.request_timeout) from None
            made.append(vector / max(float(np.linalg.norm(vector)), 1e-12))
            count += len(tokens)
        return made, count

    made, count = await unless_left(request, vectors())
    if body.dimensions not in (None, made[0].size):
        raise bad_request(f"This model's vectors have {made[0].size} numbers.", "dimensions")
    as_text = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(vector) if as_text else vector.tolist()}
        for i, vector in enumerate(made)
    ]
    request.scope["mlcrt"].update(prompt=count)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "model": service.name, "data": data, "usage": usage})


def _base64(vector: np.ndarray) -> str:
    """float32, little-endian, as OpenAI has it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
