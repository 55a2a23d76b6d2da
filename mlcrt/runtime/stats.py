"""Figures of a conversation: what was run, what was reused, how fast, how much memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Usage:
    """What one generation did. Counts are tokens, times seconds; `decode_seconds` has one entry per decode step."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, found in the KV cache
    completion_tokens: int = 0
    prefill_tokens: int = 0  # run through the model: the new part of the prompt, and again after a context shift
    prefill_seconds: float = 0.0
    decode_seconds: list[float] = field(default_factory=list)
    shifts: int = 0

    @property
    def prefill_rate(self) -> float:
        """Tokens per second, 0 when nothing ran."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second, 0 when nothing ran."""
        total = sum(self.decode_seconds)
        return len(self.decode_seconds) / total if total > 0 else 0.0

    def add(self, other: Usage) -> None:
        """Sum up, field by field."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, the two rates included."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "prefill_tokens": self.prefill_tokens,
            "prefill_seconds": round(self.prefill_seconds, 6),
            "prefill_tokens_per_s": round(self.prefill_rate, 3),
            "completion_tokens": self.completion_tokens,
            "decode_seconds": round(sum(self.decode_seconds), 6),
            "decode_tokens_per_s": round(self.decode_rate, 3),
            "context_shifts": self.shifts,
        }


class ChatStats(dict):
    """`last` and `total` (see `Usage.to_dict`), `context`, `memory` in bytes; `str()` is for people."""

    def __init__(
        self,
        model: str,
        device: str,
        context: int,
        used: int,
        dropped: int,
        last: Usage,
        total: Usage,
        finish_reason: str | None,
        memory: Mapping[str, int],
    ):
        super().__init__(
            model=model,
            device=device,
            context={"size": context, "used": used, "dropped_turns": dropped},
            last={**last.to_dict(), "finish_reason": finish_reason},
            total=total.to_dict(),
            memory={name: int(size) for name, size in memory.items()},
        )

    def __str__(self) -> str:
        last, total, context = self["last"], self["total"], self["context"]
        lines = [
            ("model", f"{self['model']} on {self['device']}"),
            ("last answer", _speeds(last)),
            ("reused", f"{last['reused_tokens']} of {last['prompt_tokens']} prompt tokens were cached"),
            ("all answers", _speeds(total)),
            ("context", f"{context['used']} of {context['size']} tokens" + _dropped(context["dropped_turns"])),
            ("memory", ", ".join(f"{name} {human_bytes(size)}" for name, size in self["memory"].items())),
        ]
        return "\n".join(f"{name:<12} {text}" for name, text in lines if text)


def _speeds(usage: Mapping[str, Any]) -> str:
    return (
        f"prefill {usage['prefill_tokens']} tokens at {usage['prefill_tokens_per_s']:.1f} tok/s, "
        f"answer {usage['completion_tokens']} tokens at {usage['decode_tokens_per_s']:.1f} tok/s"
    )


def _dropped(turns: int) -> str:
    return f", {turns} oldest turn{'s' * (turns > 1)} dropped" if turns else ""


def human_bytes(size: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return ""
