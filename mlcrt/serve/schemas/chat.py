"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from mlcrt.serve.schemas.common import Json, Model, Sampling, Usage

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Model):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Model):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Model):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Model):
    name: Name
    arguments: str = Field(description="JSON text.")


class PastCall(Model):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Model):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[PastCall] | None = None


class ToolMessage(Model):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Model):
    name: Name
    description: str | None = None
    parameters: Json | None = Field(None, description="JSON Schema of the arguments, an object.")
    strict: bool | None = None


class Tool(Model):
    type: Literal["function"]
    function: Function


class NamedFunction(Model):
    name: str


class NamedTool(Model):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Model):
    type: Literal["text"]


class JsonFormat(Model):
    type: Literal["json_object"]


class JsonSchema(Model):
    name: Name
    description: str | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Model):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Sampling):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Goes before max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="required and a named function are enforced by a grammar."
    )
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Json | None = Field(
        None, description="Variables for the chat template, such as enable_thinking. Beyond OpenAI's API."
    )


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]


class Call(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Answer(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | None = None


class Choice(BaseModel):
    index: int
    message: Answer
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
