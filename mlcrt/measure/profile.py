"""Where the time of a step goes: kernel by kernel, with the bytes each one has to move.

Bytes are counted from the arguments of each call: weights, the KV cache and everything else (activations, results).
What a kernel is given whole but reads in part is counted by the part: rows of the embedding table, positions of the
cache that hold something (within a layer's sliding window), experts that can run.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from mlcrt.models.config import DecoderConfig
from mlcrt.runtime.stats import human_bytes

_PASSES = 5
KINDS = ("weights", "kv", "other")
Tensors = tuple[tuple[str, int, tuple[int, ...]], ...]  # (name, bytes, shape), see mlcrt.runtime.observe.Call


def profile(
    engine: Any, dist: Path, part: str, length: int, prompt: list[int], step: float | None, bandwidth: float | None
) -> dict[str, Any]:
    """Time every kernel of one decode step at `length` tokens, or (part "prefill") of one call over `prompt`.

    step: seconds of the same step as it is normally run, to compare with; bandwidth: bytes per second or None. The
    result is JSON-ready: `kernels`, slowest first, and their sums.
    """
    from mlcrt.runtime.observe import Observer

    launches = engine.runtime.launches(engine._decode) if part == "decode" else None
    prompt = prompt[: engine.chunk]
    with Observer(engine, dist) as observer:

        def run():
            return observer.decode(length) if part == "decode" else observer.prefill(prompt)

        run()
        passes = [run() for _ in range(_PASSES)]
        empty, method = observer.overhead(), observer.method
    tokens, before = (1, length) if part == "decode" else (len(prompt), 0)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for calls in zip(*passes, strict=True):
        first = calls[0]
        key = first.kernel, role(engine.config, first.tensors)
        row = rows.setdefault(key, {"kernel": key[0], "weight": key[1], "calls": 0, "us": 0.0})
        row["calls"] += 1
        row["us"] += 1e6 * statistics.median(call.seconds for call in calls)
        for kind, size in touched(engine.config, first.kernel, first.tensors, tokens, before).items():
            row[kind] = row.get(kind, 0) + size
    kernels = sorted(rows.values(), key=lambda row: -row["us"])
    for row in kernels:
        row["bytes_per_s"] = sum(row[kind] for kind in KINDS) / (row["us"] / 1e6)
        row["floor_share"] = None if bandwidth is None else row["bytes_per_s"] / bandwidth
    return {
        "part": part,
        "tokens": tokens,
        "context": before,
        "kernels": kernels,
        "calls": sum(row["calls"] for row in kernels),
        "launches": launches,
        "sum_ms": sum(row["us"] for row in kernels) / 1e3,
        "empty_call_us": empty * 1e6,
        "step_ms": None if step is None else step * 1e3,
        "bytes": {kind: sum(row[kind] for row in kernels) for kind in KINDS},
        "method": method,
    }


def touched(config: DecoderConfig, kernel: str, tensors: Tensors, tokens: int, before: int) -> dict[str, int]:
    """Bytes by kind that a call over `tokens` tokens after `before` others moves (see the module)."""
    out = dict.fromkeys(KINDS, 0)
    for name, size, shape in tensors:
        if name.startswith("kv."):
            room = math.prod(shape) // (config.kv_heads * config.head_dim)
            out["kv"] += size * _positions(config, kernel, int(name[3:]), tokens, before) // room
        elif name:
            out["weights"] += int(size * _share(config, name, tensors, tokens))
        else:
            out["other"] += size
    return out


def role(config: DecoderConfig, tensors: Tensors) -> str:
    """The weight a kernel works with, without its layer's number; '' for none."""
    name = next((name.partition(".weight")[0] for name, _, _ in tensors if ".weight" in name), "")
    if name == "embed" and _makes_logits(config, tensors):
        return "lm_head"
    return ".".join(name.split(".")[2:]) if name.startswith("layers.") else name


def _positions(config: DecoderConfig, kernel: str, layer: int, tokens: int, before: int) -> int:
    """Positions of a layer's cache: rope_append (see mlcrt/kernels/library.py) writes its own, attention reads all."""
    if kernel.startswith("rope_append"):
        return tokens
    window = config.layer_window[layer]
    return before + tokens if window is None else min(before + tokens, window + tokens - 1)


def _share(config: DecoderConfig, name: str, tensors: Tensors, tokens: int) -> float:
    """How much of a weight is read: of the embedding table rows, unless it is also the output layer; of experts those
    that are routed to, at most."""
    if name.startswith("embed.") and not _makes_logits(config, tensors):
        return min(1.0, tokens / config.vocab)
    if config.moe and ".experts." in name:
        return min(1.0, tokens * config.moe.top_k / config.moe.experts)
    return 1.0


def _makes_logits(config: DecoderConfig, tensors: Tensors) -> bool:
    return any(not name and shape[-1:] == (config.vocab,) for name, _, shape in tensors)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table for people: a heading, then one line per kernel."""
    head = ("kernel", "weight", "calls", "µs each", "µs", "weights", "KV", "other", "GB/s", "of floor")
    lines = []
    for row in result["kernels"]:
        share = "-" if row["floor_share"] is None else f"{row['floor_share']:.0%}"
        sizes = (human_bytes(row[kind]) if row[kind] else "-" for kind in KINDS)
        each = row["us"] / row["calls"]
        speed = f"{row['bytes_per_s'] / 1e9:.1f}"
        lines.append(
            (row["kernel"], row["weight"], str(row["calls"]), f"{each:.1f}", f"{row['us']:.0f}", *sizes, speed, share)
        )
    return [head, *lines]


def title(result: dict[str, Any]) -> str:
    """What the table shows."""
    if result["part"] == "decode":
        return f"one decode step at {result['context']} tokens"
    return f"one prefill call over {result['tokens']} tokens"


def notes(result: dict[str, Any]) -> list[str]:
    """What has to be known to read the table."""
    launches = "" if result["launches"] is None else f", {result['launches']} launches in the recorded step"
    step = "" if result["step_ms"] is None else f"; as it normally runs, together: {result['step_ms']:.3f} ms"
    return [
        f"{result['calls']} kernel calls{launches}. Sum of the calls, one at a time: {result['sum_ms']:.3f} ms{step}.",
        f"Each call was timed alone ({result['method']}; medians of {_PASSES} passes), which adds waiting: an empty one"
        f" shows {result['empty_call_us']:.1f} µs. So the sum is not a step's time, and small kernels look slower than"
        " they are. Above 100 %, data came from a cache.",
    ]
