"""Prefill and decode speed of a compiled model, and how near decode comes to the memory's limit.

Decode reads every weight once per token, so (bytes read per token) / (read bandwidth) is the least time it can take;
`floor_share` is that time over the measured one. The bandwidth is that of the device's memory, measured by its runtime;
where that cannot measure it, there is no floor. Weights read are all of them except the embedding table when
it is not also the output layer, and of routed experts the part that runs; the KV cache counts at its mean length.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import UsageError
from mlcrt.measure import machine
from mlcrt.models.config import DecoderConfig
from mlcrt.runtime.stats import human_bytes

_SHORT = 8  # tokens of the prompt for the time to the first token, and of the warm-up's answer


def bench(
    dist: Path,
    device: str,
    prompt_tokens: int,
    generate: int,
    repeat: int,
    context: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    profiled: str | None = None,
) -> dict[str, Any]:
    """Load, warm up, then measure `repeat` times; seconds, tokens per second and bytes in a JSON-ready dict.

    Prefill is timed per pass, decode per token with the greedy choice of the next one. Prompts are random tokens, the
    same in every run: their content does not change the work of a dense model. `profiled` ("decode", "prefill") adds
    `profile`, that part kernel by kernel.
    """
    if context is not None and context < prompt_tokens + generate:
        raise UsageError(f"A context of {context} cannot hold {prompt_tokens} + {generate} tokens; raise --context.")
    start = time.perf_counter()
    from mlcrt.runtime.engine import Engine

    engine = Engine(dist, device=device, context=context or prompt_tokens + generate)
    try:
        loaded = time.perf_counter() - start
        prompt = random_prompt(engine.config.vocab, max(prompt_tokens, _SHORT))
        int(engine.prefill(prompt[:_SHORT]).argmax())
        first_token = time.perf_counter() - start
        report(f"warm-up, then {repeat} x {prompt_tokens} prompt tokens and {generate} answer tokens")
        run_once(engine, prompt[:prompt_tokens], min(_SHORT, generate))
        runs = [run_once(engine, prompt[:prompt_tokens], generate) for _ in range(repeat)]
        memory = memory_used(engine)  # before the large arrays below
        report("memory bandwidth")
        bandwidth = engine.runtime.read_bandwidth()
        prefill = [prompt_tokens / seconds for seconds, _ in runs]
        steps = np.array([step for _, steps in runs for step in steps])
        token_bytes = bytes_per_token(engine.config, engine.memory, engine.context, prompt_tokens + generate / 2)
        result = {
            "model": Path(dist).name,
            "device": engine.device,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": generate,
            "repeat": repeat,
            "prefill_tokens_per_s": spread(prefill),
            "decode_tokens_per_s": statistics.median(1 / np.array(steps_of).mean() for _, steps_of in runs),
            "decode_ms_per_token": {
                "min": float(steps.min() * 1e3),
                "median": float(np.median(steps) * 1e3),
                "p95": float(np.percentile(steps, 95) * 1e3),
            },
            "load_s": loaded,
            "first_token_s": first_token,
            **memory,
            "read_bandwidth": bandwidth,
            "bandwidth_method": engine.runtime.bandwidth_method,
            **floor(token_bytes, bandwidth, float(np.median(steps))),
            "machine": machine.describe(),
        }
        if profiled:
            from mlcrt.measure.profile import profile

            report(f"{profiled}, kernel by kernel")
            step = float(np.median(steps)) if profiled == "decode" else None
            result["profile"] = profile(engine, dist, profiled, prompt_tokens, prompt, step, bandwidth)
        return result
    finally:
        engine.close()


def run_once(engine: Any, prompt: list[int], generate: int) -> tuple[float, list[float]]:
    """(seconds of the prefill, seconds of each of `generate` decode steps), from an empty cache."""
    engine.rollback(0)
    start = time.perf_counter()
    token = int(engine.prefill(prompt).argmax())
    prefill = time.perf_counter() - start
    steps = []
    for _ in range(generate):
        start = time.perf_counter()
        token = int(engine.decode(token).argmax())
        steps.append(time.perf_counter() - start)
    return prefill, steps


def memory_used(engine: Any) -> dict[str, Any]:
    """Bytes planned for the model, the process's peak, and what the device's memory lost, where the driver tells."""
    return {
        "memory": {name: int(size) for name, size in engine.memory.items()},
        "peak_memory": machine.peak_memory(),
        "device_memory": engine.device_bytes,
    }


def floor(token_bytes: float, bandwidth: float | None, seconds: float) -> dict[str, Any]:
    """Bytes of a token, the milliseconds they take at least, and that over the measured `seconds`; None: not known."""
    least = None if bandwidth is None else token_bytes / bandwidth
    return {
        "bytes_per_token": int(token_bytes),
        "floor_ms_per_token": None if least is None else least * 1e3,
        "floor_share": None if least is None else least / seconds,
    }


def bytes_per_token(config: DecoderConfig, memory: dict[str, int], context: int, length: float) -> float:
    """Bytes that decoding one token reads at `length` cached tokens, for the module's model of what is read."""
    attention = config.hidden * config.head_dim * (config.heads + config.kv_heads) * 2
    expert = 3 * config.hidden * (config.moe.intermediate if config.moe else config.intermediate)
    stored, used = (config.moe.experts, config.moe.top_k) if config.moe else (1, 1)
    table = config.vocab * config.hidden
    all_parameters = config.layers * (attention + stored * expert) + table * (1 if config.tie_embeddings else 2)
    read_parameters = config.layers * (attention + used * expert) + table
    return memory["weights"] * read_parameters / all_parameters + memory["kv"] * length / context


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people."""
    prefill, decode, computer = result["prefill_tokens_per_s"], result["decode_ms_per_token"], result["machine"]
    return [
        (
            f"prefill {result['prompt_tokens']}",
            f"{prefill['median']:.1f} tok/s (min {prefill['min']:.1f}, max {prefill['max']:.1f})",
        ),
        (
            f"decode {result['generated_tokens']}",
            f"{result['decode_tokens_per_s']:.1f} tok/s; ms per token: "
            f"min {decode['min']:.2f}, median {decode['median']:.2f}, p95 {decode['p95']:.2f}",
        ),
        ("floor", floor_text(result, result["read_bandwidth"])),
        ("load", f"{result['load_s']:.2f} s, first token after {result['first_token_s']:.2f} s"),
        ("memory", memory_text(result)),
        ("machine", f"{computer['cpu']}, {computer['cores']} cores, {computer['os']}"),
        ("flags", " ".join(computer["flags"])),
    ]


def floor_text(result: dict[str, Any], bandwidth: float | None) -> str:
    """The floor in words."""
    if bandwidth is None:
        size = human_bytes(result["bytes_per_token"])
        return f"{size} per token; not known in time: this device's bandwidth cannot be measured"
    return (
        f"{human_bytes(result['bytes_per_token'])} per token at {bandwidth / 1e9:.1f} GB/s: "
        f"{result['floor_ms_per_token']:.2f} ms, {result['floor_share']:.0%} of it reached"
    )


def memory_text(result: dict[str, Any]) -> str:
    """What was planned and what was taken."""
    planned, taken = result["memory"], result["device_memory"]
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in planned.items())
    device = ""
    if taken is not None:
        device = f"; on the device {human_bytes(taken)} taken, {human_bytes(sum(planned.values()))} planned"
    return f"{parts}{device}; peak of the process {human_bytes(result['peak_memory'])}"


def random_prompt(vocab: int, size: int) -> list[int]:
    """The same `size` tokens in every run."""
    return [int(token) for token in np.random.default_rng(0).integers(0, vocab, size)]


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
