"""What many clients get together: their tokens per second against one client's, through the scheduler that serves them.

A step reads every weight once for all its answers, and multiplies it once for each. So a step takes at least (bytes
read) / (the device's read bandwidth, measured) and on a CPU without tile registers at least (multiply-adds) / (the
speed of NumPy's own float32 matrix product here, which is near what the cores can do).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.measure import machine
from mlcrt.measure.bench import bytes_per_token
from mlcrt.models.config import DecoderConfig
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.stats import human_bytes

_PATIENCE = 600.0  # seconds without a token
_VERBS = {"bytes": "read", "arithmetic": "multiply"}


def bench_batch(
    dist: Path,
    device: str,
    prompt_tokens: int,
    generate: int,
    repeat: int,
    clients: int,
    context: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """One client, then `clients` at once, `repeat` times each: tokens per second, seconds and bytes, JSON-ready.

    Prompts are random and different, so that no prefix is shared; answers are greedy and `generate` tokens long.
    """
    if context is not None and context < prompt_tokens + generate:
        raise UsageError(f"A context of {context} cannot hold {prompt_tokens} + {generate} tokens; raise --context.")
    if generate < 2:
        raise UsageError("Answers of one token have no time per token; give -n 2 or more.")
    from mlcrt.runtime.batch_engine import open_batch_engine
    from mlcrt.serve.scheduler import BatchScheduler

    start = time.perf_counter()
    engine = open_batch_engine(dist, device, context or prompt_tokens + generate, clients)
    scheduler = BatchScheduler(engine)
    try:
        loaded = time.perf_counter() - start
        draw = np.random.default_rng(0)

        def run(count: int, prompt: int, tokens: int) -> _Run:
            return _Run(scheduler, draw.integers(0, engine.vocab, (count, prompt)).tolist(), tokens)

        run(clients, min(prompt_tokens, 8), min(generate, 4))
        counts = sorted({1, clients})
        report(f"warm-up, then {repeat} x {prompt_tokens} prompt tokens and {generate} answer tokens for each client")
        runs = {count: [run(count, prompt_tokens, generate) for _ in range(repeat)] for count in counts}
        peak = machine.peak_memory()  # before the large arrays below
        report("the device's memory bandwidth, and the speed of a matrix product where that may matter")
        bandwidth, speed = engine.runtime.read_bandwidth(), engine.runtime.multiply_adds(engine.features)
        one = bytes_per_token(engine.config, engine.memory, engine.context * clients, prompt_tokens + generate / 2)
        kv = engine.memory["kv"] * (prompt_tokens + generate / 2) / (engine.context * clients)
        results = {}
        for count, measured in runs.items():
            step = statistics.median(s for r in measured for s in r.steps)
            floors = {}
            if bandwidth is not None:
                floors["bytes"] = (one + (count - 1) * kv) / bandwidth
            if speed is not None:
                floors["arithmetic"] = count * multiply_adds(engine.config) / speed
            results[str(count)] = {
                "decode_tokens_per_s": statistics.median(r.decode_rate for r in measured),
                "tokens_per_s": statistics.median(r.rate for r in measured),
                "ms_per_token": {
                    "median": step * 1e3,
                    "p95": float(np.percentile([s for r in measured for s in r.steps], 95)) * 1e3,
                },
                "first_token_s": statistics.median(f for r in measured for f in r.first),
                "floor_ms_per_token": {name: seconds * 1e3 for name, seconds in floors.items()},
                "floor_share": max(floors.values()) / step if floors else None,
            }
        alone = results["1"]["decode_tokens_per_s"]
        return {
            "model": Path(dist).name,
            "device": engine.device,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": generate,
            "repeat": repeat,
            "clients": results,
            "speedup": results[str(clients)]["decode_tokens_per_s"] / alone,
            "load_s": loaded,
            "memory": {name: int(size) for name, size in engine.memory.items()},
            "peak_memory": peak,
            "read_bandwidth": bandwidth,
            "multiply_adds_per_s": speed,
            "machine": machine.describe(),
        }
    finally:
        scheduler.close(drain=False)


def multiply_adds(config: DecoderConfig) -> float:
    """Multiply-adds of the linear layers for one token, the output layer included; attention adds little to them."""
    attention = config.hidden * config.head_dim * (config.heads + config.kv_heads) * 2
    used = config.moe.top_k if config.moe else 1
    mlp = 3 * config.hidden * (config.moe.intermediate if config.moe else config.intermediate) * used
    return config.layers * (attention + mlp) + config.vocab * config.hidden


class _Run:
    """All prompts at once. `rate`: answer tokens per second from the start to the last; `decode_rate`: while all were
    being written; `first`: seconds to each first token; `steps`: seconds between two tokens of one answer then."""

    def __init__(self, scheduler, prompts: list[list[int]], tokens: int):
        from mlcrt.serve.interface import GenerationRequest

        times: list[list[float]] = [[] for _ in prompts]
        over = threading.Semaphore(0)
        failed = []

        def receiver(index: int):
            def on_event(event):
                times[index].append(time.perf_counter())
                if event.finish_reason is not None:
                    if event.finish_reason != "length":
                        failed.append(event.error or event.finish_reason)
                    over.release()

            return on_event

        requests = [GenerationRequest(p, SamplingParams(temperature=0.0), tokens) for p in prompts]
        start = time.perf_counter()
        scheduler.submit_all(requests, [receiver(i) for i in range(len(prompts))])
        for _ in prompts:
            if not over.acquire(timeout=_PATIENCE):
                raise MlcrtError(f"no answer came within {_PATIENCE:.0f} s")
        if failed:
            raise MlcrtError(f"a request failed: {failed[0]}")
        self.first = [t[0] - start for t in times]
        self.rate = sum(map(len, times)) / (max(t[-1] for t in times) - start)
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        inside = [[s for s in t if begin <= s <= end] for t in times]
        gaps = [np.diff(t) for t in inside]
        self.steps = [float(gap) for gap in np.concatenate(gaps)] or [float(g) for t in times for g in np.diff(t)]
        self.decode_rate = len(prompts) / statistics.mean(self.steps)


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people."""
    out = []
    for count, figures in result["clients"].items():
        step, floor = figures["ms_per_token"], figures["floor_ms_per_token"]
        least = [f"{floor[kind]:.2f} ms to {verb}" for kind, verb in _VERBS.items() if kind in floor]
        reached = f"{', '.join(least)}: {figures['floor_share']:.0%} of it reached" if least else "not known"
        name = "1 client" if count == "1" else f"{count} clients"
        out += [
            (
                name,
                f"decode {figures['decode_tokens_per_s']:.1f} tok/s together; ms per token: "
                f"median {step['median']:.2f}, p95 {step['p95']:.2f}",
            ),
            (
                "",
                f"with prompts of {result['prompt_tokens']}: {figures['tokens_per_s']:.1f} tok/s, "
                f"first token after {figures['first_token_s']:.2f} s",
            ),
            ("floor", reached),
        ]
    computer = result["machine"]
    memory = ", ".join(f"{name} {human_bytes(size)}" for name, size in result["memory"].items())
    return [
        *out,
        ("together", f"{result['speedup']:.2f} times one client"),
        ("memory", f"{memory}; peak of the process {human_bytes(result['peak_memory'])}"),
        ("machine", f"{computer['cpu']}, {computer['cores']} cores, {computer['os']}"),
    ]
