"""Logits in, token out.

Order: repetition penalty, frequency and presence penalties, logit bias, temperature, top-k, top-p, min-p, draw: the
order of Hugging Face's logits processors and warpers (llama.cpp by default applies temperature after the filters).
Every filter keeps "all tokens at least this likely", so tokens tied with the last kept one are kept too, and the
vocabulary is never sorted, however flat the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.sampling import SamplingParams

_BLOCK = 1024
_REACH = 16.0  # tokens less likely than the best by more than this power of e are left out of most draws
_LEAST = math.exp(-_REACH)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probabilities under the model's own distribution, before penalties, bias, temperature and filters."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


class Sampler:
    """Draws the tokens of one answer.

    `prompt` counts for the repetition penalty only. `sample` remembers what it returns, `accept` adds a token that was
    decided elsewhere. Raises `UsageError` for a bias on a token that the vocabulary does not have.
    """

    def __init__(self, params: SamplingParams, vocab: int, prompt: Iterable[int] = ()):
        self.params = params
        self.vocab = vocab
        self._rng = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._arrays: np.ndarray | None = None
        self._bias_ids = np.fromiter(params.logit_bias, np.int64, len(params.logit_bias))
        self._bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        largest = max(params.logit_bias, default=0)
        if largest >= vocab:
            raise UsageError(f"logit_bias names token {largest}, but the model has tokens 0 to {vocab - 1}.")
        self._repeats = params.repetition_penalty != 1.0
        self._counts_matter = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self._seen = _TokenSet(vocab) if self._repeats else None
        self._answer = _TokenSet(vocab) if self._counts_matter else None
        if self._seen is not None:
            for token in prompt:
                self._seen.add(token)

    def accept(self, token: int) -> None:
        """Count `token` as part of the answer."""
        for tokens in (self._seen, self._answer):
            if tokens is not None:
                tokens.add(token)

    def sample(self, logits: np.ndarray) -> int:
        """The next token for float32 logits [vocab], which are not changed. Raises `MlcrtError` for NaN or +inf."""
        if logits.shape != (self.vocab,):
            raise MlcrtError(f"The sampler was made for {self.vocab} logits and got an array of shape {logits.shape}.")
        token = self._choose(self._penalised(logits))
        self.accept(token)
        return token

    def logprob(self, logits: np.ndarray, token: int) -> TokenLogprob:
        """Log-probabilities of `token` and of the `params.logprobs` best ones, from unchanged logits [vocab]."""
        return logprob(logits, token, self.params.logprobs or 0)

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        if self._seen is None and self._answer is None and not self._bias.size:
            return logits
        params = self.params
        source, logits = logits, self._scratch(0)  # the engine owns its array
        logits[:] = source
        if self._seen is not None:
            ids = self._seen.ids
            values = logits[ids]
            factor = np.float32(params.repetition_penalty)
            logits[ids] = np.where(values > 0, values / factor, values * factor)
        if self._answer is not None:
            ids = self._answer.ids
            counts = self._answer.counts[ids]
            logits[ids] -= np.float32(params.frequency_penalty) * counts + np.float32(params.presence_penalty)
        logits[self._bias_ids] += self._bias
        return logits

    def _choose(self, logits: np.ndarray) -> int:
        best = int(logits.argmax())  # the first NaN counts as the largest
        top = logits[best]
        if not np.isfinite(top):
            raise MlcrtError(
                f"The model returned {top} as a logit: its weights are damaged or its numbers overflow; "
                "convert it again, or use q0f32 to rule out overflow."
            )
        if self._rng is None:
            return best
        draws = _Draws(self._rng)
        temperature = np.float32(max(self.params.temperature, 1e-30))
        ids = np.flatnonzero(logits >= top - temperature * np.float32(_REACH))
        if max(self.params.top_k, 1) <= ids.size <= self.vocab // 2:
            pick = self._draw(_relative(logits[ids], top, temperature), draws, (self.vocab - ids.size) * _LEAST)
            if pick is not None:
                return int(ids[pick])
        return self._draw(_relative(logits, top, temperature, self._scratch(1)), draws.again())

    def _draw(self, likely: np.ndarray, draws: _Draws, lost: float = 0.0) -> int | None:
        """An index with probability proportional to `likely` [n] among those that top-k, top-p and min-p keep.

        Top-p is decided per candidate: it is in the smallest set holding `top_p` exactly if the tokens more likely than
        it hold less than `top_p`. A refused candidate takes all the less likely ones with it, and another is drawn.

        Where `likely` leaves out tokens under _LEAST, which together have at most `lost`, the result is None if it
        could depend on them, and otherwise the same as with them.
        """
        params, ids = self.params, None
        if 0 < params.top_k <= likely.size and (lost or params.top_k < likely.size):
            cut = np.partition(likely, likely.size - params.top_k)[likely.size - params.top_k]
            ids, lost = np.flatnonzero(likely >= cut), 0.0
            likely = likely[ids]
        need = params.top_p * float(likely.sum(dtype=np.float64))
        low = np.float32(params.min_p)
        while True:
            pick = _draw_index(
                self._at_least(likely, low) if low > 0 else likely, draws.next(), lost if low < _LEAST else 0.0
            )
            if pick is None:
                return None
            if params.top_p < 1.0:
                low = np.nextafter(likely[pick], np.float32(np.inf))
                above = float(self._at_least(likely, low).sum(dtype=np.float64))
                if above >= need + params.top_p * lost:
                    continue
                if above >= need:
                    return None
            return int(pick if ids is None else ids[pick])

    def _at_least(self, weights: np.ndarray, low: np.float32) -> np.ndarray:
        """`weights` with those under `low` set to zero (no branch per element, unlike selecting them)."""
        return np.multiply(weights, weights >= low, out=self._scratch(2)[: weights.size])

    def _scratch(self, which: int) -> np.ndarray:
        """One of three float32 arrays [vocab]: fresh ones cost more in page faults than the arithmetic on them."""
        if self._arrays is None:
            self._arrays = np.empty((3, self.vocab), np.float32)
        return self._arrays[which]


class _TokenSet:
    """Distinct tokens in a growing array, with their counts: `ids` int64 [n], `counts` float32 [vocab]."""

    def __init__(self, vocab: int):
        self.counts = np.zeros(vocab, np.float32)
        self._ids = np.empty(256, np.int64)
        self._n = 0

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: self._n]

    def add(self, token: int) -> None:
        self.counts[token] += 1
        if self.counts[token] == 1:
            if self._n == self._ids.size:
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._ids[self._n] = token
            self._n += 1


def logprob(logits: np.ndarray, token: int, top: int = 0) -> TokenLogprob:
    """Log-softmax of float32 logits [vocab] at `token` and at the `top` largest."""
    peak = float(logits.max())
    norm = peak + float(np.log(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))
    best: tuple[tuple[int, float], ...] = ()
    if top:
        ids = np.argpartition(logits, -min(top, logits.size))[-top:]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        best = tuple((int(i), float(logits[i]) - norm) for i in ids)
    return TokenLogprob(token, float(logits[token]) - norm, best)


class _Draws:
    """Uniform numbers in [0, 1), which can be given out again in the same order."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._given, self._at = rng, [], 0

    def next(self) -> float:
        if self._at == len(self._given):
            self._given.append(self._rng.random())
        self._at += 1
        return self._given[self._at - 1]

    def again(self) -> _Draws:
        self._at = 0
        return self


def _relative(logits: np.ndarray, top: np.float32, temperature: np.float32, out: np.ndarray | None = None):
    """exp((logits - top) / temperature): probabilities relative to the best token's."""
    with np.errstate(over="ignore", under="ignore"):
        likely = np.subtract(logits, top, out=out)
        likely /= temperature
        return np.exp(likely, out=likely)


def _draw_index(weights: np.ndarray, draw: float, lost: float = 0.0) -> int | None:
    """Index with probability weights/sum, for `draw` uniform in [0, 1). A weight of zero is never drawn.

    First a block, then an index in it, so that the running sum stays short. None if up to `lost` of further weight, at
    any places between, could lead to another one.
    """
    if lost:
        mass = np.cumsum(weights, dtype=np.float64)
        at = draw * mass[-1]
        index = int(np.searchsorted(mass, at, side="right"))
        before = mass[index - 1] if index else 0.0
        sure = index < mass.size and before + lost <= at and at + draw * lost < mass[index]
        return index if sure else None
    starts = np.arange(0, weights.size, _BLOCK)
    block, inside = _invert(np.add.reduceat(weights, starts, dtype=np.float64), draw)
    start = int(starts[block])
    return start + _invert(weights[start : start + _BLOCK], inside)[0]


def _invert(weights: np.ndarray, draw: float) -> tuple[int, float]:
    """The index whose share of the running sum covers `draw`, and where in that share it falls, in [0, 1)."""
    mass = np.cumsum(weights, dtype=np.float64)
    last = int(np.searchsorted(mass, mass[-1]))  # the last weight that is not zero
    index = min(int(np.searchsorted(mass, draw * mass[-1], side="right")), last)
    before = float(mass[index - 1]) if index else 0.0
    return index, min(max((draw * float(mass[-1]) - before) / (float(mass[index]) - before), 0.0), 1.0)
