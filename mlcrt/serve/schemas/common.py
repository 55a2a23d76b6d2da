"""What several requests have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CHOICES = 16


class Model(BaseModel):
    """Values are taken as they are typed (no "1" for 1); fields that are not known are left alone, as new clients
    send ever more of them."""

    model_config = ConfigDict(strict=True, extra="ignore")


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]


class StreamOptions(Model):
    include_usage: bool = Field(False, description="Send a last chunk with `usage` and no choices.")


class Grammar(Model):
    type: Literal["auto", "lark", "gbnf", "regex"] = Field("auto", description="auto: Lark or GBNF, by its looks.")
    value: str = Field(min_length=1)


class Sampling(Model):
    """How tokens are chosen. What is not given comes from the model's generation_config.json."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="How many answers. With `seed`, answer number i is drawn with seed + i."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        None, description="Equal seeds give equal answers."
    )
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: (
        Annotated[dict[TokenKey, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]], Field(max_length=1024)]
        | None
    ) = None
    user: str | None = Field(None, description="Not used.")
    # beyond OpenAI's, as extra body
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0: all. Beyond OpenAI's API.")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Drop tokens less than this times as likely as the best. Beyond OpenAI's API."
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = Field(
        None, description="Over prompt and answer; 1: none. Beyond OpenAI's API."
    )
    ignore_eos: bool | None = Field(None, description="Go on past the model's end token. Beyond OpenAI's API.")
    grammar: Annotated[str, Field(min_length=1)] | Grammar | None = Field(
        None, description="The answer follows this grammar: Lark, GBNF or a regular expression. Beyond OpenAI's API."
    )


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorFields


class PromptDetails(BaseModel):
    cached_tokens: int = Field(description="Of the prompt, not computed again.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


Json = dict[str, Any]
