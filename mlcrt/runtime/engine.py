"""The engine: a compiled library, its parameters and one sequence's state on a device.

It needs TVM's runtime only. The decode state lives in device buffers that keep their address for the engine's life:
token, position, logits, and K and V per layer; a step takes no argument that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlcrt.dist import check_target, open_dist, signature
from mlcrt.errors import MlcrtError
from mlcrt.quant.params import read_params
from mlcrt.quant.scheme import SCHEMES
from mlcrt.select import pick
from mlcrt.targets import all_targets

from .drawing import Drawing, on_device
from .memory import plan_memory
from .sampler import Sampler
from .session import read_session, write_session

_TOKEN, _POSITION, _LOGITS, _CACHE = 0, 1, 2, 3  # places in the state tuple, see models/decoder.py


class ContextFull(MlcrtError):
    """The tokens do not fit the context; nothing was changed."""


class LoadedModel:
    """A library with its parameters on a device; what it computes for whom is a subclass's to say in `_allocate`."""

    def __init__(self, dist: Path, device: str = "auto", context: int | None = None, sequences: int = 1):
        opened = open_dist(dist)
        slot = pick(opened, device)
        entry = check_target(opened, slot)
        name = slot.partition(":")[0]
        target = all_targets()[name]
        self.manifest, self.config, self.device = opened.manifest, opened.config, name
        self._where = device.partition(":")[2]  # which device of the target, where it has several
        self.chunk: int = entry["chunk"]
        self.score_chunk: int = entry["score_chunk"]
        self._entry = entry
        self._load(opened, target, self._plan(opened, context, sequences))

    def _plan(self, opened, context: int | None, sequences: int):
        if context is not None and context < 1:
            raise MlcrtError(f"a context of {context} tokens is not possible; choose at least 1")
        plan = plan_memory(opened, self._entry, context, sequences)
        limit = self.config.context
        if plan.context > limit:
            raise MlcrtError(f"{opened.name} was trained for {limit} tokens; choose --context {limit} or less")
        self.plan = plan
        return plan

    def _load(self, opened, target, plan) -> None:
        named = getattr(target, "named_runtime", None)
        number = (int(self._where),) if self._where.isdigit() else ()
        runtime = named(self._where, self._entry["features"]) if named else target.runtime(*number)
        plan.check(runtime.available_bytes(), self.device)
        self.context = plan.context
        self._runtime, self._used_before = runtime, runtime.used_bytes()
        path = opened.path / self._entry["library"]
        try:
            library = runtime.load(path)
        except MlcrtError:  # what the device lacks, which compiling again would not bring
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["unknown reason"])[-1]
            raise MlcrtError(f"{path} cannot be loaded ({reason}); compile it again with mlcrt compile") from None
        count = len(self._entry["parameters"]) + 2 * self.config.layers + 6
        runtime.reserve(plan.weights + plan.kv + 8 * self.config.vocab + 256 * count)
        self._params = runtime.bundle(self._read_params(opened))
        self._allocate(library)
        runtime.reserve(0)

    def _read_params(self, opened) -> list:
        stored = opened.manifest["params"]
        if stored.get("synthetic"):
            from mlcrt.measure.synthetic import synthetic_params

            arrays = synthetic_params(self.config, opened.manifest["schemes"])
        else:
            arrays = read_params(opened.path, stored["files"])
        found = signature([(name, a.shape, str(a.dtype)) for name, a in arrays.items()], self.config)
        if found != self._entry["signature"]:
            raise MlcrtError(
                f"the parameter files in {opened.path} are not those that {self._entry['library']} was compiled for;"
                " make the folder again with mlcrt compile"
            )
        schemes = opened.manifest["schemes"]
        ordered = []
        for name in self._entry["parameters"]:
            array, scheme = arrays[name], schemes.get(name.rpartition(".")[0])
            if scheme is not None and SCHEMES[scheme].layout == "KN":
                array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
            ordered.append(array)
        return self._runtime.place_all(ordered)

    def _cache_shapes(self, blocks: int) -> list[tuple[int, ...]]:
        c, block = self.config, self._entry["kv_block"]
        return [(c.kv_heads, blocks, c.head_dim * block)] * (2 * c.layers)

    def _caches(self, blocks: int) -> list:
        """Empty K and V caches of every layer, on the device."""
        dtype = self._entry["kv_dtype"]
        return [self._runtime.place(np.zeros(shape, dtype)) for shape in self._cache_shapes(blocks)]

    def _allocate(self, library) -> None:
        raise NotImplementedError

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of weights, KV cache and workspace."""
        return {"weights": self.plan.weights, "kv": self.plan.kv, "workspace": self.plan.workspace}

    @property
    def runtime(self):
        """The device's runtime (targets/device.py), for measuring."""
        return self._runtime

    @property
    def features(self) -> list[str]:
        """What the library needs of the machine, by the target's names."""
        return list(self._entry["features"])

    @property
    def device_bytes(self) -> int | None:
        """Device memory taken since before loading; None where the driver does not tell."""
        used = self._runtime.used_bytes()
        return None if used is None or self._used_before is None else used - self._used_before


class Engine(LoadedModel):
    """One model on one device with room for `context` tokens of one sequence.

    `tokens` are those in the KV cache, so len(tokens) is the position of the next one.
    """

    def __init__(self, dist: Path, device: str = "auto", context: int | None = None):
        super().__init__(dist, device, context)

    def _allocate(self, library) -> None:
        runtime = self._runtime
        arrays = [np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros((1, self.config.vocab), np.float32)]
        self._state = [*(runtime.place(a) for a in arrays), *self._caches(self.plan.blocks)]
        self._state_bundle = runtime.bundle(self._state)
        self._token = runtime.view(self._state[_TOKEN])
        self._position = runtime.view(self._state[_POSITION])
        self._logits = runtime.view(self._state[_LOGITS])
        self._prefill, self._score = library["prefill"], library["score"]
        self._decode = runtime.step(library["decode"], self._state_bundle, self._params)
        self._drawing, self._draw = [], None
        if self._entry.get("draws") is True:
            self._allocate_drawing(library)
        self.tokens: list[int] = []

    def _allocate_drawing(self, library) -> None:
        """Settings, logits drawn from, and outcome: see kernels/simt/draw.py."""
        runtime, decode, draw = self._runtime, library["decode"], library["draw"]
        arrays = [np.zeros(8, np.int32), np.zeros((1, self.config.vocab), np.float32), np.zeros(2, np.int32)]
        self._drawing = [runtime.place(a) for a in arrays]
        state, params, drawing = self._state_bundle, self._params, runtime.bundle(self._drawing)

        def step() -> None:
            decode(state, params)
            draw(state, drawing, params)

        self._draw = runtime.replayed(step)

    def drawing(self, sampler: Sampler) -> Drawing | None:
        """What draws on the device the tokens that `sampler` would draw from the logits; None: that has to do it."""
        self._check_open()
        return Drawing(self, sampler) if self._draw is not None and on_device(sampler) else None

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens (at least one); float32 logits [vocab] after the last, valid until the next call."""
        self._admit(tokens)
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            if len(part) == 1:
                self._step(part[0])
            else:
                self._begin()
                self._prefill(self._runtime.place(np.array(part, np.int32)), self._state_bundle, self._params)
                self.tokens.extend(int(t) for t in part)
        return self._logits_view()

    def decode(self, token: int) -> np.ndarray:
        """Append one token; float32 logits [vocab] after it, valid until the next call."""
        self._admit((token,))
        self._step(token)
        return self._logits_view()

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        """Append at most `score_chunk` tokens; float32 logits [len(tokens), vocab], row i after token i."""
        if len(tokens) > self.score_chunk:
            raise MlcrtError(f"score takes at most {self.score_chunk} tokens at once, not {len(tokens)}")
        self._admit(tokens)
        self._begin()
        result = self._score(self._runtime.place(np.array(tokens, np.int32)), self._state_bundle, self._params)
        self.tokens.extend(int(t) for t in tokens)
        return self._runtime.fetch(result)

    def greedy(self, count: int) -> list[int]:
        """Append `count` tokens, each the argmax after the one before; the tokens.

        The device feeds itself: the host only starts the steps and reads the tokens at the end. After it the last
        token is known but not yet appended: `tokens` ends with the one before.
        """
        self._admit([0] * count)
        history = [self.greedy_token]
        self._begin()
        history += self._runtime.run_steps(self._decode, count, self._state[_TOKEN])
        self.tokens += history[:-1]
        return history

    @property
    def greedy_token(self) -> int:
        """The argmax of the last logits, as the device computed it."""
        self._check_open()
        return int(self._runtime.read(self._state[_TOKEN], self._token)[0])

    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._check_open()
        if not 0 <= length <= len(self.tokens):
            raise MlcrtError(f"cannot roll back to {length} tokens: there are {len(self.tokens)}")
        del self.tokens[length:]

    def save(self, path: Path) -> None:
        """Write the sequence (tokens and KV cache) to a session file."""
        self._check_open()
        blocks = self._blocks(len(self.tokens))
        caches = [self._runtime.read(t)[:, :blocks] for t in self._state[_CACHE:]]
        write_session(path, self._identity(), self.tokens, caches)

    def restore(self, path: Path) -> None:
        """Take up the sequence of a session file; refused for another model, layout or too small a context."""
        self._check_open()
        tokens, caches = read_session(path, self._identity(), len(self._state) - _CACHE)
        if not all(0 <= t < self.config.vocab for t in tokens):
            raise MlcrtError(f"{path} is damaged (it has tokens outside the vocabulary); it cannot be restored")
        if len(tokens) > self.context:
            raise ContextFull(f"{path} holds {len(tokens)} tokens; start with --context {len(tokens)} or more")
        shapes = self._cache_shapes(self._blocks(len(tokens)))
        for shape, saved in zip(shapes, caches, strict=True):
            if saved.shape != shape or saved.dtype != self._entry["kv_dtype"]:
                raise MlcrtError(f"{path} is damaged (a cache has shape {saved.shape}); it cannot be restored")
        for tensor, saved in zip(self._state[_CACHE:], caches, strict=True):
            self._runtime.write_blocks(tensor, saved)
        self.tokens = tokens

    def close(self) -> None:
        """Free the device memory; the engine cannot be used afterwards."""
        self._state, self._state_bundle, self._params = [], None, None
        self._prefill = self._decode = self._score = None
        self._token = self._position = self._logits = None
        self._drawing, self._draw = [], None
        self._runtime.close()

    def _identity(self) -> dict[str, str]:
        return {
            "signature": self.manifest["params"]["signature"],
            "model": f"{self.manifest['name']}-{self.manifest['quantization']}",
            "layout": f"{self._entry['kv_dtype']}/{self._entry['kv_block']}/{self._entry['kv_layout']}",
        }

    def _blocks(self, tokens: int) -> int:
        """KV blocks that `tokens` positions touch."""
        return -(-tokens // self._entry["kv_block"])

    def _check_open(self) -> None:
        if self._decode is None:
            raise MlcrtError("this engine was closed; make a new one")

    def _admit(self, tokens: Sequence[int]) -> None:
        self._check_open()
        if len(tokens) == 0:
            raise MlcrtError("there are no tokens to process: give at least one")
        bad = next((t for t in tokens if not 0 <= t < self.config.vocab), None)
        if bad is not None:
            raise MlcrtError(f"token {bad} is outside the vocabulary of {self.config.vocab}")
        used = len(self.tokens)
        if used + len(tokens) > self.context:
            raise ContextFull(
                f"the context is full: {used} tokens are in it, {len(tokens)} more do not fit {self.context};"
                " start a new conversation or choose a larger --context"
            )

    def _begin(self) -> None:
        """The host's view of the position rules: rollback only shortens `tokens`."""
        self._runtime.write(self._state[_POSITION], self._position, len(self.tokens))

    def _step(self, token: int) -> None:
        self._begin()
        self._runtime.write(self._state[_TOKEN], self._token, int(token))
        self._decode()
        self.tokens.append(int(token))

    def _logits_view(self) -> np.ndarray:
        return self._runtime.read(self._state[_LOGITS], self._logits)[0]
