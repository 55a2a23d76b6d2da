"""Logits in, token out.

Order: repetition penalty, frequency and presence penalties, logit bias, temperature, top-k, top-p, min-p, draw: the
order of Hugging Face's logits processors and warpers (llama.cpp by default applies temperature after the filters).
Every filter keeps "all tokens at least this likely", so tokens tied with the last kept one are kept too.

A token takes one random number u, a function of the seed and of how many tokens were drawn before: tokens are ranked by
logit (of equals the smaller id first), and the one drawn is where the running sum of the kept ones' probabilities
passes u. GPUs do the same (kernels/simt/draw.py), so that they choose the same token from the same logits. Only as
much of the vocabulary is ranked as the cut and u ask for.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.threefry import uniform

_REACH = 16.0  # tokens less likely than the best by more than this power of e are left out of most draws
# Tokens this likely, as a share of the best one's probability, are ranked first; if that does not decide, the next.
_LEVELS = (2.0**-4, 2.0**-7, 2.0**-10, 2.0**-13, 2.0**-16, 0.0)


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
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.drawn = 0  # tokens so far: the counter of the random numbers
        # Fresh arrays of this size cost more in page faults than the arithmetic on them.
        self._logits, self._likely = np.empty((2, vocab), np.float32)
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
        source, logits = logits, self._logits  # the engine owns its array
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
        if self.params.temperature == 0:
            return best
        self.drawn += 1
        return self._draw(logits, top, uniform(self.seed, self.drawn - 1))

    def _draw(self, logits: np.ndarray, top: np.float32, draw: float) -> int:
        """The token for `draw`, uniform in [0, 1), from logits [vocab] whose largest is `top`."""
        token = self._draw_from_few(logits, top, draw)
        return self._draw_from_all(logits, top, draw) if token is None else token

    def _draw_from_few(self, logits: np.ndarray, top: np.float32, draw: float) -> int | None:
        """The same by the likeliest tokens alone, where the rest could change nothing, whatever its weight is."""
        few = logits[logits >= top - np.float32(max(self.params.temperature, 1e-30) * _REACH)]
        if few.size > self.vocab // 2:
            return None
        rising = np.sort(few)
        mass = self._mass(rising, top)
        total, lost = float(mass[-1]), (self.vocab - few.size) * math.exp(-_REACH)
        low, high = total * (1 - 1e-12), (total + lost) * (1 + 1e-12)  # sums in another order differ by rounding
        place = self._place(rising, mass, low, top, draw)
        if place is None or place != self._place(rising, mass, high, top, draw):
            return None
        return self._token_at(logits, rising, place)

    def _draw_from_all(self, logits: np.ndarray, top: np.float32, draw: float) -> int:
        likely = self._weights(logits, top, self._likely)
        total = float(likely.sum(dtype=np.float64))
        enough = total * (self.params.top_p if self.params.top_p < 1.0 else draw)
        for level in _LEVELS:
            keep = likely >= np.float32(level)
            if level and not self.params.top_k and float((likely * keep).sum(dtype=np.float64)) < enough:
                continue  # not worth ranking: neither the cut of top-p nor the draw is in it
            rising = np.sort(logits if keep.all() else logits[keep])
            place = self._place(rising, self._mass(rising, top), total, top, draw)
            if place is not None:
                return self._token_at(logits, rising, place)
        raise AssertionError("the last level has every token")

    @staticmethod
    def _token_at(logits: np.ndarray, rising: np.ndarray, place: int) -> int:
        """The token of a rank; equal logits are in the order of their tokens."""
        value = rising[-1 - place]
        before = place - _at_least(rising, value, False)
        same = logits == value
        return int(np.flatnonzero(same)[before] if before else same.argmax())

    def _mass(self, rising: np.ndarray, top: np.float32) -> np.ndarray:
        """Running sums of the weights of sorted logits, the largest first."""
        return np.cumsum(self._weights(rising, top)[::-1], dtype=np.float64)

    def _place(self, rising: np.ndarray, mass: np.ndarray, total: float, top: np.float32, draw: float) -> int | None:
        """The rank that is drawn; None if these logits, the largest of all, do not decide it. `rising` is sorted,
        `mass` as `_mass` gives it, `total` the weight of the whole vocabulary."""
        params, count = self.params, rising.size
        whole, limited = count == self.vocab, 0 < params.top_k < self.vocab
        end, most = count, total  # of the kept ranks; the weight that top_p is a share of

        def behind(rank: int) -> int:
            """The first rank from `rank` > 0 on whose logit is less than that of the rank before."""
            return _at_least(rising, rising[-rank]) if rank <= count else count

        if limited:
            end = behind(params.top_k)
            if end == count and not whole:
                return None
            most = float(mass[end - 1])
        if params.top_p < 1.0:
            end = min(end, behind(int(np.searchsorted(mass, params.top_p * most)) + 1))
        if params.min_p > 0.0:
            end = min(end, int(np.count_nonzero(rising - top >= least_logit(params))))
        filtered = limited or params.top_p < 1.0 or params.min_p > 0.0
        if end == count and filtered and not whole:
            return None
        kept = float(mass[end - 1]) if filtered or whole else total
        place = int(np.searchsorted(mass, draw * kept, side="right"))
        if place < end:
            return place
        return int(np.searchsorted(mass, mass[end - 1])) if filtered or whole else None  # the last that is not zero

    def _weights(self, logits: np.ndarray, top: np.float32, out: np.ndarray | None = None) -> np.ndarray:
        """Probabilities as shares of the best token's."""
        with np.errstate(over="ignore", under="ignore"):
            weights = np.subtract(logits, top, out=out)
            weights /= np.float32(max(self.params.temperature, 1e-30))
            return np.exp(weights, out=weights)


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


def _at_least(rising: np.ndarray, value: np.float32, equal: bool = True) -> int:
    """How many are at least `value`, or above it."""
    return rising.size - int(np.searchsorted(rising, value, side="left" if equal else "right"))


def least_logit(params: SamplingParams) -> np.float32:
    """The least logit that min_p keeps, relative to the best one."""
    if params.min_p == 0.0:
        return np.float32(-np.inf)
    return np.float32(params.temperature * math.log(params.min_p))
