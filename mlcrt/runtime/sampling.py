"""What a request may ask of the sampler: names, meanings and limits as in the OpenAI and Hugging Face APIs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mlcrt.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """Everything that decides which token comes next and when an answer ends.

    temperature: 0 takes the most likely token and draws no random number.
    top_p, top_k, min_p: keep the smallest set holding `top_p` of the probability; the `top_k` most likely tokens
        (0: all); the tokens at least `min_p` times as likely as the best one.
    repetition_penalty: Hugging Face's, over prompt and answer (https://arxiv.org/abs/1909.05858, section 4.1).
    presence_penalty, frequency_penalty: OpenAI's, over the answer alone.
    logit_bias: token id → number added to its logit. seed: equal seeds give equal text; None draws one.
    max_tokens: tokens in the answer; None goes on until the model stops or the context is full.
    stop: the answer ends before the first of these strings. ignore_eos: go on past the model's end token.
    logprobs: how many alternatives to report per token (0: only the chosen one, None: nothing).
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, 0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name, low, high in (("seed", 0, 2**64 - 1), ("max_tokens", 1, None), ("logprobs", 0, 20)):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), low, high)
        object.__setattr__(self, "stop", _stops(self.stop))
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be true or false, not {self.ignore_eos!r}.")

    def but(self, **changes: Any) -> SamplingParams:
        """A copy with some settings changed; a setting that is not there is a `UsageError` naming the nearest one."""
        names = [f.name for f in fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]}?" if near else "there are " + ", ".join(names) + "."
                raise UsageError(f"There is no sampling setting {name!r}; {hint}")
        return replace(self, **changes)

    def but_parsed(self, name: str, text: str) -> SamplingParams:
        """`but` from what a person typed after `/set`: numbers, `none`, `true`, a stop string, or `TOKEN=BIAS`."""
        low = text.strip().lower()
        value: Any = text
        if name == "logit_bias":
            value = {**self.logit_bias, **parse_logit_bias([text])} if low != "none" else {}
        elif name == "stop":
            value = () if low == "none" else (*self.stop, text.replace("\\n", "\n").replace("\\t", "\t"))
        elif low in ("none", "true", "false"):
            value = {"none": None, "true": True, "false": False}[low]
        else:
            for kind in (int, float):
                try:
                    value = kind(text)
                    break
                except ValueError:
                    continue
        return self.but(**{name: value})


def parse_logit_bias(items: list[str]) -> dict[int, float]:
    """`["50256=-100", "11=2.5"]` → `{50256: -100.0, 11: 2.5}`."""
    out = {}
    for item in items:
        token, _, bias = item.partition("=")
        try:
            out[int(token)] = float(bias)
        except ValueError:
            raise UsageError(f"A logit bias is written TOKEN_ID=NUMBER, for example 42=-100, not {item!r}.") from None
    return out


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (low < value if above else low <= value) or value > high:
        bound = f"above {low:g}" if above else f"{low:g} or more"
        top = "" if high == math.inf else f" and at most {high:g}"
        raise UsageError(f"{name} must be a number {bound}{top}, not {value!r}.")


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        top = "" if high is None else f" and at most {high}"
        raise UsageError(f"{name} must be a whole number, {low} or more{top}, not {value!r}.")


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise UsageError(f"logit_bias must map token ids to numbers, not {value!r}.")
    out = {}
    for token, bias in value.items():
        try:
            key = int(token)  # JSON objects have string keys
        except (TypeError, ValueError):
            key = -1
        if key < 0:
            raise UsageError(f"logit_bias is keyed by token ids, which are whole numbers from 0 on, not {token!r}.")
        _number(f"logit_bias of token {key}", bias, -100.0, 100.0)
        out[key] = float(bias)
    return out


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(s, str) and s for s in stops):
        raise UsageError(f"stop must be a string or a list of strings, none of them empty, not {value!r}.")
    return stops
