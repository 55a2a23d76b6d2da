"""Models, embeddings, tokens and health."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mlcrt.serve.schemas.chat import Message, Tool
from mlcrt.serve.schemas.common import Json, Model, TokenId
from mlcrt.serve.schemas.completion import Prompts


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int = Field(description="Tokens that prompt and answer may have together.")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class EmbeddingRequest(Model):
    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="The model's own number, if given.")
    user: str | None = Field(None, description="Not used.")


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class TokenizeRequest(Model):
    """Either `text`, or `messages` as the chat template renders them."""

    text: str | None = None
    add_special_tokens: bool = Field(True, description="With text: the beginning-of-text token, if the model has one.")
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: Json | None = None


class TokenizeAnswer(BaseModel):
    tokens: list[int]
    count: int
    context: int


class DetokenizeRequest(Model):
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]
    skip_special_tokens: bool = False


class DetokenizeAnswer(BaseModel):
    text: str


class Health(BaseModel):
    status: Literal["ok", "shutting down", "failed"]
