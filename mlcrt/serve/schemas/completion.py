"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mlcrt.serve.schemas.common import Model, Sampling, TokenId, Usage  # noqa: F401

MAX_PROMPTS = 64
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Text | Tokens | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
Prompts = Prompt | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionRequest(Sampling):
    model: str
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(None, description="Default: 16.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = Field(None, description="Put the prompt in front of the answer. Not with logprobs.")
    best_of: int | None = Field(None, description="Not offered, other than as the value of n.")
    suffix: str | None = Field(None, description="Not offered.")


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
