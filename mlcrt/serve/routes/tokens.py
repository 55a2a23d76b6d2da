"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from mlcrt.serve.errors import bad_request, json_response
from mlcrt.serve.routes import QUESTION
from mlcrt.serve.schemas.other import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from mlcrt.serve.service import Service

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeAnswer, responses=QUESTION, summary="Text to tokens")
async def tokenize(request: Request, body: TokenizeRequest):
    """Tokens of a text, or of messages as the model gets them."""
    service: Service = request.app.state.service
    if (body.text is None) == (body.messages is None):
        raise bad_request("Give either text or messages.", "text")
    tokens = await run_in_threadpool(_tokens, service, body)
    return json_response({"tokens": tokens, "count": len(tokens), "context": service.scheduler.context})


def _tokens(service: Service, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return service.encode(body.text or "", "text", body.add_special_tokens)
    tools: list[dict[str, Any]] = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    text = service.prompts.render(body.messages, tools, body.add_generation_prompt, body.chat_template_kwargs)
    return service.encode(text, "messages")


@router.post("/detokenize", response_model=DetokenizeAnswer, responses=QUESTION, summary="Tokens to text")
async def detokenize(request: Request, body: DetokenizeRequest):
    """The text of tokens, special ones included unless told otherwise."""
    service: Service = request.app.state.service
    if any(token >= service.scheduler.vocab for token in body.tokens):
        raise bad_request(f"There are no tokens above {service.scheduler.vocab - 1}.", "tokens")
    text = await run_in_threadpool(service.tokenizer.decode, body.tokens, body.skip_special_tokens)
    return json_response({"text": text})
