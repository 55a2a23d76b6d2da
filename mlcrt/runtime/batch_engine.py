"""Many sequences on one device, advanced together step by step.

`open_batch_engine` gives a `PagedEngine` where the target's kernels have paged caches: one call for all sequences that
decode, one for the new tokens of prompts, and prefixes shared block by block. Elsewhere it gives a `SlotEngine`, which
runs the one-sequence functions for one slot after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mlcrt.dist import check_target, open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.select import pick

from .batch_step import DecodeStep, padded, unconstrained
from .engine import Engine, LoadedModel
from .pages import BlockPool, Lease


@dataclass(eq=False)
class Slot:
    """A sequence that was admitted. `tokens` are in its cache; `cached` of them were found there already."""

    index: int
    tokens: list[int]
    cached: int
    lease: Lease | None = None


@dataclass(frozen=True)
class Choice:
    """How the token after a slot's new ones is chosen: the argmax of the logits plus `bias`, where `mask` allows it.

    mask: int32 [ceil(vocab/32)], bit t % 32 of word t // 32 allows token t. bias: (ids int32 [b], values float32 [b]).
    logits: return them, with mask and bias applied. raw: return them as the model gave them.
    """

    mask: np.ndarray | None = None
    bias: tuple[np.ndarray, np.ndarray] | None = None
    logits: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Chosen:
    """`token` is the argmax and `best` its logit; float32 logits [vocab] where asked for, valid until the next step."""

    token: int
    best: float
    logits: np.ndarray | None = None
    raw: np.ndarray | None = None


@dataclass(frozen=True)
class Work:
    """Tokens to append to a slot: part of its prompt, or (prompt False) the one that was chosen last."""

    slot: Slot
    tokens: Sequence[int]
    prompt: bool
    choice: Choice | None = None
    hidden: bool = False  # return the sum of the new tokens' last hidden states, after the final norm


@dataclass
class StepResult:
    """By slot index: what was chosen, and float64 [hidden] sums of hidden states."""

    chosen: dict[int, Chosen] = field(default_factory=dict)
    hidden: dict[int, np.ndarray] = field(default_factory=dict)


class BatchEngine(Protocol):
    """What the scheduler needs. One thread at a time."""

    slots: int  # sequences at once
    context: int  # tokens of one sequence
    vocab: int
    chunk: int  # most prompt tokens of one step, over all slots

    def known(self, tokens: Sequence[int]) -> int:
        """How many leading tokens would not have to be computed again."""

    def admit(self, tokens: Sequence[int], limit: int, fresh: bool = False) -> Slot | None:
        """A slot for a sequence that begins with `tokens` and has `limit` at most; its cache holds a prefix of them
        (none if `fresh`). None while there is no room."""

    def step(self, work: Sequence[Work]) -> StepResult:
        """Append tokens to some slots and choose what comes next."""

    def release(self, slot: Slot) -> None:
        """Free the slot; its cache is kept for reuse until the space is wanted."""

    def usage(self) -> dict[str, int]:
        """kv_tokens that running sequences hold, kv_cached_tokens kept for reuse, kv_capacity_tokens."""

    def close(self) -> None: ...


def open_batch_engine(dist: Path, device: str = "auto", context: int | None = None, slots: int = 8) -> BatchEngine:
    """Load a compiled model for `slots` sequences of `context` tokens each."""
    opened = open_dist(dist)
    entry = check_target(opened, pick(opened, device))
    if slots < 1 or (entry["batch"] and slots > entry["batch"]):
        most = f"from 1 to {entry['batch']}" if entry["batch"] else "at least 1"
        raise UsageError(f"{slots} slots are not possible; choose {most}")
    return (PagedEngine if entry["batch"] else SlotEngine)(dist, device, context, slots)


class _Common(LoadedModel):
    def __init__(self, dist: Path, device: str = "auto", context: int | None = None, slots: int = 8):
        self.slots = slots
        super().__init__(dist, device, context, slots)
        self.vocab = self.config.vocab

    def _normed(self, x: np.ndarray) -> np.ndarray:
        """Final RMSNorm of float32 rows [n, hidden], in float64."""
        weight = self._runtime.fetch(self._params[self._entry["parameters"].index("final_norm")])
        x = x.astype(np.float64)
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + self.config.norm_eps) * weight


class PagedEngine(_Common):
    """All slots share a pool of blocks of the KV cache.

    A sequence comes out the same to the bit whatever else runs: kernels compute every token as if it were alone, and
    how a prompt is cut into chunks does not matter. One thing does: tokens that were generated are in the cache as
    decoding computed them, and a prompt that continues a generated answer may find them there; computed again as part
    of a prompt they would differ by rounding.
    """

    def _allocate(self, library) -> None:
        runtime = self._runtime
        self._cache = runtime.bundle(self._caches(self.plan.blocks))
        self._functions = {name: library[f"batch_{name}"] for name in ("prefill", "decode", "logits", "choose")}
        size = self._entry["kv_block"]
        self._pool = BlockPool(self.plan.blocks, size)
        self._blocks = np.zeros((self.slots, -(-self.context // size)), np.int32)
        self._own_memory = runtime.view(runtime.place(np.zeros(1, np.int32))) is None
        self._placed_blocks, self._blocks_changed = None, True
        self._steps: dict[int, DecodeStep] = {}
        self._free = list(range(self.slots - 1, -1, -1))

    def known(self, tokens: Sequence[int]) -> int:
        return self._pool.known(tokens)

    def admit(self, tokens: Sequence[int], limit: int, fresh: bool = False) -> Slot | None:
        if not self._free:
            return None
        lease = self._pool.open(() if fresh else tokens, limit)
        if lease is None:
            return None
        slot = Slot(self._free.pop(), list(tokens[: lease.shared]), lease.shared, lease)
        self._blocks[slot.index, : len(lease.blocks)] = lease.blocks
        self._blocks_changed = True
        return slot

    def step(self, work: Sequence[Work]) -> StepResult:
        if not self._functions:
            raise MlcrtError("this engine was closed; make a new one")
        result = StepResult()
        for item in work:
            self._reserve(item)
        prompts = [item for item in work if item.prompt]
        others = [item for item in work if not item.prompt]
        if prompts:
            self._prefill(prompts, result)
        if others:
            self._decode(others, result)
        for item in work:
            item.slot.tokens.extend(item.tokens)
            self._pool.fill(item.slot.lease, item.slot.tokens)
        return result

    def release(self, slot: Slot) -> None:
        self._pool.close(slot.lease)
        self._free.append(slot.index)

    def usage(self) -> dict[str, int]:
        size = self._pool.size
        return {
            "kv_tokens": self._pool.used * size,
            "kv_cached_tokens": self._pool.cached * size,
            "kv_capacity_tokens": self._pool.count * size,
        }

    def close(self) -> None:
        self._functions, self._cache, self._params, self._placed_blocks, self._steps = {}, None, None, None, {}

    def _reserve(self, item: Work) -> None:
        slot, lease = item.slot, item.slot.lease
        before = len(lease.blocks)
        self._pool.grow(lease, len(slot.tokens) + len(item.tokens))
        if len(lease.blocks) > before:
            self._blocks[slot.index, before : len(lease.blocks)] = lease.blocks[before:]
            self._blocks_changed = True

    def _placed(self):
        """The blocks of all slots on the device; where that has memory of its own, always at the same address."""
        if self._placed_blocks is None or (self._blocks_changed and not self._own_memory):
            self._placed_blocks = self._runtime.place(self._blocks.copy())
        elif self._blocks_changed:
            self._placed_blocks.copyfrom(self._blocks)
        self._blocks_changed = False
        return self._placed_blocks

    def _new_tokens(self, work: list[Work]) -> list[np.ndarray]:
        """Tokens to append, their positions and their sequences, int32 each."""
        tokens = np.array([t for item in work for t in item.tokens], np.int32)
        counts = [len(item.tokens) for item in work]
        starts = np.array([len(item.slot.tokens) for item in work], np.int32)
        offsets = np.arange(len(tokens), dtype=np.int32) - np.repeat(np.cumsum(counts, dtype=np.int32) - counts, counts)
        positions = (np.repeat(starts, counts) + offsets).astype(np.int32)
        return [tokens, positions, np.repeat(np.array([item.slot.index for item in work], np.int32), counts)]

    def _places(self, work: list[Work]) -> tuple:
        """(tokens, places) of the new tokens, on the device."""
        tokens, *where = map(self._runtime.place, self._new_tokens(work))
        return tokens, self._runtime.bundle([*where, self._placed()])

    def _decode(self, work: list[Work], result: StepResult) -> None:
        if not self._own_memory:
            logits = self._functions["decode"](*self._places(work), self._cache, self._params)
            self._choose(logits, work, result)
            return
        blocks, rows = self._placed(), padded(len(work), self.slots)
        if rows not in self._steps:
            arguments = (self._functions, rows, self.vocab, blocks, self._cache, self._params)
            self._steps[rows] = DecodeStep(self._runtime, *arguments)
        step = self._steps[rows]
        step(*self._new_tokens(work))
        self._choose(step.logits, work, result, rows, (step.tokens, step.best))

    def _prefill(self, work: list[Work], result: StepResult) -> None:
        hidden = self._functions["prefill"](*self._places(work), self._cache, self._params)
        rows = self._runtime.read(hidden) if any(item.hidden for item in work) else None
        ends, end = [], 0
        for item in work:
            start, end = end, end + len(item.tokens)
            if item.hidden:
                result.hidden[item.slot.index] = self._normed(rows[start:end]).sum(axis=0)
            if item.choice is not None:
                ends.append((item, end - 1))
        if ends:
            last = self._runtime.place(self._rows(hidden, [row for _, row in ends]))
            self._choose(self._functions["logits"](last, self._params), [item for item, _ in ends], result)

    def _rows(self, tensor, rows: list[int]) -> np.ndarray:
        """Some rows of a float32 matrix; no others are copied from a device."""
        if not self._own_memory:
            return np.ascontiguousarray(self._runtime.read(tensor)[rows])
        width = int(tensor.shape[1])
        return np.concatenate([tensor._create_view((1, width), "float32", 4 * width * row).numpy() for row in rows])

    def _choose(self, logits, work: list[Work], result: StepResult, rows: int | None = None, chosen=None) -> None:
        """Masks and biases on the device, then the argmax there; logits come to the host where wanted.

        rows: those of `logits`, if they are more than `work`. chosen: (tokens, best) where nothing is masked or biased.
        """
        place, read, rows = self._runtime.place, self._runtime.read, rows or len(work)
        raw, after = {}, {}
        if any(item.choice.raw for item in work):
            which = [i for i, item in enumerate(work) if item.choice.raw]
            raw = dict(zip(which, self._rows(logits, which), strict=True))
        if chosen is None or any(item.choice.mask is not None or item.choice.bias is not None for item in work):
            arguments = self._constraints(work, rows)
            logits, *chosen = self._functions["choose"](logits, *map(place, arguments), self._params)
        tokens, best = read(chosen[0]), read(chosen[1])
        if any(item.choice.logits for item in work):
            which = [i for i, item in enumerate(work) if item.choice.logits]
            after = dict(zip(which, self._rows(logits, which), strict=True))
        for i, item in enumerate(work):
            result.chosen[item.slot.index] = Chosen(int(tokens[i]), float(best[i]), after.get(i), raw.get(i))

    def _constraints(self, work: list[Work], rows: int) -> list[np.ndarray]:
        """Arguments of choose after the logits, those of `work` first."""
        arguments = unconstrained(rows, self.vocab)
        masks = [item.choice.mask for item in work if item.choice.mask is not None]
        if masks:
            arguments[0] = np.stack(masks)
            arguments[1][[i for i, item in enumerate(work) if item.choice.mask is not None]] = np.arange(len(masks))
        biases = [item.choice.bias for item in work]
        sizes = [0 if b is None else len(b[0]) for b in biases]
        if any(sizes):
            ends = np.cumsum(sizes, dtype=np.int32)
            arguments[2] = np.concatenate([[0], ends, np.repeat(ends[-1:], rows - len(work))]).astype(np.int32)
            arguments[3] = np.concatenate([b[0] for b in biases if b is not None]).astype(np.int32)
            arguments[4] = np.concatenate([b[1] for b in biases if b is not None]).astype(np.float32)
        return arguments


class SlotEngine(_Common):
    """Every slot has a cache of its own and runs alone, for targets without kernels for many sequences.

    A step over k slots costs k single steps. How a prompt is cut into chunks changes its numbers by rounding.
    """

    _WORTH = 32  # tokens of a prefix that another slot's cache is copied for

    def _allocate(self, library) -> None:
        plan = replace(self.plan, sequences=1)
        self._hidden = library["hidden"]
        self._engines = []
        for _ in range(self.slots):
            engine = Engine.__new__(Engine)
            engine.__dict__.update(self.__dict__, plan=plan)
            engine._allocate(library)
            self._engines.append(engine)
        self._running: set[int] = set()

    def known(self, tokens: Sequence[int]) -> int:
        return max(_shared(engine.tokens, tokens) for engine in self._engines)

    def admit(self, tokens: Sequence[int], limit: int, fresh: bool = False) -> Slot | None:
        free = [i for i in range(self.slots) if i not in self._running]
        if not free:
            return None
        shared = [0 if fresh else _shared(engine.tokens, tokens) for engine in self._engines]
        best = max(range(self.slots), key=lambda i: (shared[i], i in free))
        index = best if best in free else max(free, key=lambda i: (shared[i], -len(self._engines[i].tokens)))
        engine = self._engines[index]
        if shared[best] >= shared[index] + self._WORTH:
            self._copy(self._engines[best], engine, shared[best])
            shared[index] = shared[best]
        engine.rollback(shared[index])
        self._running.add(index)
        return Slot(index, list(engine.tokens), shared[index])

    def step(self, work: Sequence[Work]) -> StepResult:
        result = StepResult()
        for item in work:
            engine, index = self._engines[item.slot.index], item.slot.index
            if item.hidden:
                engine._begin()
                tokens = self._runtime.place(np.array(item.tokens, np.int32))
                rows = self._runtime.fetch(self._hidden(tokens, engine._state_bundle, self._params))
                engine.tokens.extend(item.tokens)
                result.hidden[index] = self._normed(rows).sum(axis=0)
            elif item.prompt:
                engine.prefill(item.tokens)
            else:
                engine._step(item.tokens[0])
            item.slot.tokens.extend(item.tokens)
            if item.choice is not None:
                result.chosen[index] = self._choose(engine, item.choice)
        return result

    def release(self, slot: Slot) -> None:
        self._running.discard(slot.index)

    def usage(self) -> dict[str, int]:
        lengths = [len(engine.tokens) for engine in self._engines]
        running = sum(n for i, n in enumerate(lengths) if i in self._running)
        return {
            "kv_tokens": running,
            "kv_cached_tokens": sum(lengths) - running,
            "kv_capacity_tokens": self.slots * self.context,
        }

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._params = None

    def _copy(self, source: Engine, target: Engine, length: int) -> None:
        """The first `length` tokens of one slot's cache into another's."""
        blocks = source._blocks(length)
        for ours, theirs in zip(target._state[3:], source._state[3:], strict=True):
            self._runtime.write_blocks(ours, self._runtime.read(theirs)[:, :blocks])
        target.tokens = list(source.tokens[:length])

    def _choose(self, engine: Engine, choice: Choice) -> Chosen:
        if choice.mask is None and choice.bias is None and not (choice.logits or choice.raw):
            return Chosen(engine.greedy_token, 0.0)
        raw = np.array(engine._logits_view())
        logits = raw.copy()
        if choice.bias is not None:
            np.add.at(logits, choice.bias[0], choice.bias[1])
        if choice.mask is not None:
            bits = np.unpackbits(choice.mask.astype("<i4").view(np.uint8), bitorder="little")[: self.vocab]
            logits[bits == 0] = -np.inf
        token = int(logits.argmax())
        return Chosen(token, float(logits[token]), logits, raw)


def _shared(cached: Sequence[int], tokens: Sequence[int]) -> int:
    """Leading tokens that are the same, short of all of `tokens`."""
    size = min(len(cached), len(tokens) - 1)
    if list(cached[:size]) == list(tokens[:size]):
        return size
    return next(i for i in range(size) if cached[i] != tokens[i])
