"""A BatchEngine without weights that checks what it is told to do: logits depend, by hash, on every token in the slot's
cache, so an answer is right only if the cache held exactly the prompt and what was chosen after it.

`expected` computes the same answer without any scheduler.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import numpy as np

from mlcrt.runtime.batch_engine import Choice, Chosen, Slot, StepResult, Work

HIDDEN = 12


def logits_after(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """float32 [vocab]."""
    digest = hashlib.blake2b(np.array(tokens, np.int32).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).normal(size=vocab).astype(np.float32) * 3


def hidden_of(tokens: Sequence[int]) -> np.ndarray:
    """float64 [hidden] of the last of `tokens`."""
    return logits_after(tokens, HIDDEN).astype(np.float64)


def allowed(mask: np.ndarray, vocab: int) -> np.ndarray:
    """bool [vocab] of a bit mask, by the definition."""
    return np.array([bool((int(mask[t // 32]) >> (t % 32)) & 1) for t in range(vocab)])


def choose(raw: np.ndarray, choice: Choice) -> tuple[int, np.ndarray]:
    """(argmax, logits) after bias and mask."""
    logits = raw.copy()
    if choice.bias is not None:
        for token, value in zip(*choice.bias, strict=True):
            logits[token] += value
    if choice.mask is not None:
        logits[~allowed(choice.mask, len(raw))] = -np.inf
    return int(logits.argmax()), logits


def expected(prompt: Sequence[int], count: int, vocab: int, stop: frozenset = frozenset()) -> list[int]:
    """The greedy answer, its stop token included."""
    tokens, answer = list(prompt), []
    while len(answer) < count and not (answer and answer[-1] in stop):
        answer.append(int(logits_after(tokens, vocab).argmax()))
        tokens.append(answer[-1])
    return answer


class ToyBatchEngine:
    """`delay`: seconds a step takes. `log`: per step (prompt tokens, slots that decode). `fail_at`: numbers of steps
    that raise. `reuse`: keep the tokens of ended slots and give their longest prefix to later ones."""

    def __init__(self, vocab: int = 50, context: int = 64, slots: int = 3, chunk: int = 16, delay: float = 0.0,
                 reuse: bool = True):  # fmt: skip
        self.vocab, self.context, self.slots, self.chunk = vocab, context, slots, chunk
        self.delay, self.reuse = delay, reuse
        self.log: list[tuple[int, int]] = []
        self.fail_at: set[int] = set()
        self.closed = False
        self.thread: int | None = None
        self.held = threading.Event()  # cleared: steps wait
        self.held.set()
        self.open: dict[int, Slot] = {}
        self._old: list[list[int]] = []

    def known(self, tokens):
        return max((self._common(other, tokens) for other in self._sources()), default=0)

    def _sources(self):
        return [*self._old, *(slot.tokens for slot in self.open.values())] if self.reuse else []

    @staticmethod
    def _common(a, b):
        size = min(len(a), len(b) - 1)
        return next((i for i in range(size) if a[i] != b[i]), size)

    def admit(self, tokens, limit, fresh=False):
        assert not self.closed and len(tokens) <= limit <= self.context
        free = [i for i in range(self.slots) if i not in self.open]
        if not free:
            return None
        cached = 0 if fresh else self.known(tokens)
        slot = Slot(free[0], list(tokens[:cached]), cached)
        slot.limit = limit
        self.open[slot.index] = slot
        return slot

    def release(self, slot):
        assert self.open.pop(slot.index) is slot
        self._old = [*self._old[-5:], slot.tokens]

    def step(self, work: Sequence[Work]) -> StepResult:
        assert not self.closed and work
        assert self.thread in (None, threading.get_ident()), "two threads use the engine"
        self.thread = threading.get_ident()
        assert self.held.wait(60)
        time.sleep(self.delay)
        assert len({item.slot.index for item in work}) == len(work)
        assert sum(len(item.tokens) for item in work if item.prompt) <= self.chunk
        self.log.append((sum(len(i.tokens) for i in work if i.prompt), sum(not i.prompt for i in work)))
        if len(self.log) in self.fail_at:
            raise RuntimeError("secret words of a prompt")
        result = StepResult()
        for item in work:
            slot = item.slot
            assert self.open.get(slot.index) is slot and len(item.tokens) > 0
            assert item.prompt or len(item.tokens) == 1
            start = len(slot.tokens)
            slot.tokens.extend(item.tokens)
            assert len(slot.tokens) <= slot.limit, "more tokens than it was admitted with"
            if item.hidden:
                result.hidden[slot.index] = sum(hidden_of(slot.tokens[: i + 1]) for i in range(start, len(slot.tokens)))
            if item.choice is not None:
                raw = logits_after(slot.tokens, self.vocab)
                token, logits = choose(raw, item.choice)
                result.chosen[slot.index] = Chosen(
                    token, float(logits[token]), logits if item.choice.logits else None,
                    raw if item.choice.raw else None,
                )  # fmt: skip
        return result

    def usage(self):
        return {
            "kv_tokens": sum(len(s.tokens) for s in self.open.values()),
            "kv_cached_tokens": sum(map(len, self._old)),
            "kv_capacity_tokens": self.slots * self.context,
        }

    def close(self):
        assert not self.open, "closed while sequences run"
        self.closed = True
