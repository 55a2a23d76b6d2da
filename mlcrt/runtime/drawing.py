"""Tokens drawn on the device as a Sampler draws them on the host (see kernels/simt/draw.py), the host one step behind.

While the host waits for a token, the step after it is under way: that token is on the device already. A step that was
started for a token which turns out to end the answer does no harm: the cache beyond `engine.tokens` holds nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlcrt.runtime.sampler import Sampler, least_logit

_COLDEST, _HOTTEST = 1e-4, 1e4  # temperatures between which float32 holds what is asked of it
_LONGEST = 64  # tokens that the device is left out for
_TOKEN = 0  # its place in the engine's state


def on_device(sampler: Sampler) -> bool:
    """Whether the device may draw: penalties, bias and reported probabilities need the logits on the host."""
    p = sampler.params
    plain = p.repetition_penalty == 1.0 and p.presence_penalty == 0.0 and p.frequency_penalty == 0.0
    mild = p.temperature == 0.0 or _COLDEST <= p.temperature <= _HOTTEST
    return plain and mild and not p.logit_bias and p.logprobs is None


def device_settings(sampler: Sampler) -> np.ndarray:
    """The int32 [8] that the draw kernel takes. Temperature 0 is the best token whatever the random number."""
    p, greedy = sampler.params, sampler.params.temperature == 0.0
    top_p = p.top_p if p.top_p < 1.0 and not greedy else 2.0
    low = -3.4e38 if greedy or p.min_p == 0.0 else least_logit(p)
    numbers = np.array([1.0 if greedy else 1.0 / p.temperature, top_p, low, 0.0 if greedy else 1.0], np.float32)
    top_k = 1 if greedy else (p.top_k if p.top_k < sampler.vocab else 0)
    seed = np.array([sampler.seed & 0xFFFFFFFF, sampler.seed >> 32], np.uint32)
    return np.concatenate([numbers.view(np.int32), np.array([top_k], np.int32), seed.view(np.int32), [0]]).astype(
        np.int32
    )


class Drawing:
    """One answer's tokens: `after` in place of the engine's decode and the sampler's choice.

    Where the device cannot decide a token for certain (a nucleus of very many tokens, a number at the edge between
    two), the sampler chooses from the same logits. If that happens again and again, the device is left out for a while.
    """

    def __init__(self, engine: Any, sampler: Sampler):
        self._engine, self._sampler, self._runtime = engine, sampler, engine.runtime
        self._flying: tuple[int, int, Any] | None = None  # token, its position and the ticket of a step under way
        self._pause, self._rest = 0, 1  # tokens that the host goes on choosing; how many after the next refusal
        self.refused = 0  # tokens that the device left to the host
        self._settings, self._kept, self._outcome = engine._drawing
        self._settings.copyfrom(device_settings(sampler))

    def after(self, token: int, last: bool = False) -> int:
        """Append `token`; the one that comes after it. `last`: no more will be asked for."""
        engine, flying, self._flying = self._engine, self._flying, None
        engine._admit((token,))
        if self._pause:
            self._pause -= 1
            return self._sampler.sample(engine.decode(token))
        if flying is not None and flying[:2] == (token, len(engine.tokens)):
            ticket = flying[2]
        else:
            engine._begin()
            self._runtime.write(engine._state[_TOKEN], engine._token, token)
            self._outcome.copyfrom(np.array([0, self._sampler.drawn], np.int32))
            ticket = self._start()
        engine.tokens.append(token)
        ahead = None if last or len(engine.tokens) >= engine.context else self._start()
        with self._runtime.errors():
            chosen = self._runtime.collect(ticket)
        if chosen < 0:
            return self._refuse()
        self._rest = 1
        self._sampler.drawn += self._sampler.params.temperature > 0
        if ahead is not None:
            self._flying = chosen, len(engine.tokens), ahead
        return chosen

    def _start(self) -> Any:
        with self._runtime.errors():
            self._engine._draw()
            return self._runtime.post(self._outcome)

    def _refuse(self) -> int:
        self.refused += 1
        self._pause, self._rest = self._rest - 1, min(2 * self._rest, _LONGEST)
        return self._sampler.sample(self._runtime.read(self._kept)[0])
