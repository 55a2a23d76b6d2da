"""A stand-in for the compiled engine, for tests of what sits on top of it: no weights, but honest about its cache.

Logits depend, by hash, on every token in the cache, so an answer is right only if the cache held exactly the prompt.
It refuses whatever the real engine would not survive.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.measure import machine
from mlcrt.models.config import DecoderConfig, Rope


class ContextFull(MlcrtError):
    pass


def toy_config(toy: dict) -> DecoderConfig:
    """The configuration that goes with a toy.json."""
    return DecoderConfig(
        family="toy", vocab=toy["vocab"], hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16,
        intermediate=128, context=toy["context"], norm_eps=1e-5, ropes=(Rope((1.0,)),), layer_rope=(0, 0),
        layer_window=(None, None), attention_scale=0.25, eos=tuple(toy["eos"]),
    )  # fmt: skip


class Runtime:
    """What measuring asks of a device."""

    bandwidth_method = "told"

    def read_bandwidth(self) -> float | None:
        return machine.read_bandwidth()


class Engine:
    """`toy.json` in the compiled folder: vocab, eos, context, `ends` (one answer token in so many is the end),
    `text_tokens` (the ids it answers with)."""

    chunk = score_chunk = 32

    def __init__(self, dist, device="auto", context=None):
        self.toy = json.loads((Path(dist) / "toy.json").read_text())
        self.config = toy_config(self.toy)
        self.context = context or self.toy["context"]
        self.manifest, self.device = {}, "toy"
        self.runtime, self.device_bytes = Runtime(), None
        self.memory = {"weights": 10_000_000, "kv": self.context * 256, "workspace": 4096}
        self.tokens: list[int] = []
        self.ran: list[int] = []  # how many tokens each call ran
        self.closed = False
        self.interrupt_at: int | None = None  # call number that is broken off half way

    def logits_after(self, tokens) -> np.ndarray:
        digest = hashlib.blake2b(np.array(tokens, np.int32).tobytes(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        out = np.full(self.config.vocab, -30, np.float32)
        ids = self.toy["text_tokens"]
        out[ids] = np.random.default_rng(seed).normal(size=len(ids)) * 3
        if self.toy["ends"] and seed % self.toy["ends"] == 0:
            out[list(self.config.eos)] = 30
        return out

    def _append(self, tokens) -> None:
        assert not self.closed and len(tokens) > 0
        assert all(isinstance(t, int) and 0 <= t < self.config.vocab for t in tokens)
        if len(self.tokens) + len(tokens) > self.context:
            raise ContextFull("full")
        time.sleep(float(os.environ.get("TOY_DELAY", 0)) if len(tokens) == 1 else 0)
        self.ran.append(len(tokens))
        if self.interrupt_at == len(self.ran):
            self.tokens += tokens[: len(tokens) // 2 + 1]
            raise KeyboardInterrupt
        self.tokens += tokens

    def prefill(self, tokens):
        self._append(list(tokens))
        return self.logits_after(self.tokens)

    def decode(self, token):
        self._append([token])
        return self.logits_after(self.tokens)

    def score(self, tokens):
        assert len(tokens) <= self.chunk
        before = len(self.tokens)
        self._append(list(tokens))
        return np.stack([self.logits_after(self.tokens[: i + 1]) for i in range(before, len(self.tokens))])

    def rollback(self, length):
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]

    def save(self, path):
        Path(path).write_text(json.dumps({"name": self.toy["name"], "tokens": self.tokens}))

    def restore(self, path):
        state = json.loads(Path(path).read_text())
        if state["name"] != self.toy["name"]:
            raise MlcrtError(f"{path} was saved by another model.")
        self.tokens = state["tokens"]

    def close(self):
        self.closed = True
