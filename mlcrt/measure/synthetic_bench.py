"""Decode speed at given depths of the context, for models of known shapes with random weights, or for any other.

Steps are greedy and the device feeds itself: the host starts them and reads the tokens at the end. The KV cache is
not filled first: attention does the same work whatever the cache holds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcrt.dist import Dist, check_target, is_dist, open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.measure import machine
from mlcrt.measure.bench import bytes_per_token, floor, floor_text, memory_text, memory_used, random_prompt, spread
from mlcrt.measure.synthetic import make_synthetic, synthetic_config, synthetic_manifest
from mlcrt.select import has_library, pick
from mlcrt.targets import parse_target

CONTEXTS = (16, 512, 4096)
_WARM = 8  # tokens
Report = Callable[[str], None]


def silent(line: str) -> None:
    pass


def prepare_synthetic(shape: str, quantization: str, target: str, dist_root: Path, report: Report = silent) -> Path:
    """The folder dist_root/synthetic-NAME-QUANTIZATION with a library for `target`, made or compiled where needed."""
    chosen, arch = parse_target(target)
    name, config = synthetic_config(shape)
    manifest = json.loads(json.dumps(synthetic_manifest(name, config, quantization)))
    folder = Path(dist_root) / f"synthetic-{name}-{quantization}"
    if folder.exists() and not _is_synthetic(folder):
        raise MlcrtError(f"{folder} is there and is not a synthetic model; move it away")
    if not folder.exists() or _about_model(open_dist(folder).manifest) != _about_model(manifest):
        make_synthetic(shape, quantization, folder)
    dist = open_dist(folder)
    if not _is_compiled(dist, f"{chosen}:{arch}" if arch else chosen):
        from mlcrt.compile.build import compile_target

        compile_target(dist, chosen, arch, report=report)
    return folder


def _is_synthetic(folder: Path) -> bool:
    return is_dist(folder) and bool(open_dist(folder).manifest["params"].get("synthetic"))


def _about_model(manifest: dict) -> dict:
    """What has to be equal for two folders to hold the same model."""
    return {key: manifest.get(key) for key in ("quantization", "config", "schemes", "params")}


def _is_compiled(dist: Dist, wanted: str) -> bool:
    try:
        return has_library(dist, wanted) and bool(check_target(dist, pick(dist, wanted)))
    except MlcrtError:
        return False


def fitting(contexts: list[int] | None, generate: int, limit: int) -> list[int]:
    """The contexts to measure at, or those of CONTEXTS that a model for `limit` tokens has room for."""
    if contexts is None:
        contexts = [c for c in CONTEXTS if c + max(generate, _WARM) <= limit] or [1]
    largest = max(contexts) + max(generate, _WARM)
    if largest > limit:
        raise UsageError(
            f"--contexts {max(contexts)} and {max(generate, _WARM)} more tokens are beyond the {limit} that the model"
            " is for; choose smaller numbers"
        )
    return contexts


def bench_depths(
    dist: Path,
    device: str,
    prompt_tokens: int,
    generate: int,
    repeat: int,
    contexts: list[int] | None = None,
    report: Report = silent,
    profiled: str | None = None,
) -> dict[str, Any]:
    """Load, warm up, then `repeat` runs of `generate` greedy tokens at each context, and prefills; JSON-ready.

    `profiled`: as for `bench`, decode at the first of `contexts`.
    """
    opened = open_dist(dist)
    limit = opened.config.context
    contexts = fitting(contexts, generate, limit)
    if prompt_tokens > limit:
        raise UsageError(f"-p {prompt_tokens} is more than the {limit} tokens that the model is for")
    room = min(limit, max(max(contexts) + max(generate, _WARM), prompt_tokens))
    start = time.perf_counter()
    from mlcrt.runtime.engine import Engine

    engine = Engine(dist, device=device, context=room)
    try:
        loaded = time.perf_counter() - start
        report(engine.plan.text())
        prompt = random_prompt(engine.config.vocab, prompt_tokens)
        int(engine.prefill(prompt[:_WARM]).argmax())
        first_token = time.perf_counter() - start
        report(f"{repeat} x {generate} tokens at {', '.join(map(str, contexts))}, and {prompt_tokens} prompt tokens")
        runs = {context: _decode_runs(engine, context, generate, repeat) for context in contexts}
        prefill = [prompt_tokens / seconds for seconds in _prefill_runs(engine, prompt, repeat)]
        memory = memory_used(engine)  # before the large arrays below
        report("memory bandwidth")
        bandwidth = engine.runtime.read_bandwidth()
        depths, room_tokens = [], engine.plan.blocks * engine.plan.kv_block
        for context, seconds in runs.items():
            step = statistics.median(seconds)
            size = bytes_per_token(engine.config, engine.memory, room_tokens, context + generate / 2)
            times = {name: value * 1e3 for name, value in spread(seconds).items()}
            depths.append(
                {
                    "context": context,
                    "decode_tokens_per_s": 1 / step,
                    "ms_per_token": times,
                    **floor(size, bandwidth, step),
                }
            )
        result = {
            "model": Path(dist).name,
            "synthetic": bool(opened.manifest["params"].get("synthetic")),
            "device": engine.device,
            "arch": opened.manifest["targets"][pick(opened, device)]["arch"],
            "generated_tokens": generate,
            "prompt_tokens": prompt_tokens,
            "repeat": repeat,
            "depths": depths,
            "prefill_tokens_per_s": spread(prefill),
            "load_s": loaded,
            "first_token_s": first_token,
            **memory,
            "read_bandwidth": bandwidth,
            "bandwidth_method": engine.runtime.bandwidth_method,
            "machine": machine.describe(),
        }
        if profiled:
            from mlcrt.measure.profile import profile

            report(f"{profiled}, kernel by kernel")
            step = statistics.median(runs[contexts[0]]) if profiled == "decode" else None
            result["profile"] = profile(engine, dist, profiled, contexts[0], prompt, step, bandwidth)
        return result
    finally:
        engine.close()


def _decode_runs(engine: Any, context: int, generate: int, repeat: int) -> list[float]:
    """Seconds per token of each run at `context` tokens."""
    engine.tokens = [0] * context  # positions count, contents do not
    engine.greedy(_WARM)
    seconds = []
    for _ in range(repeat):
        engine.tokens = [0] * context
        start = time.perf_counter()
        engine.greedy(generate)
        seconds.append((time.perf_counter() - start) / generate)
    return seconds


def _prefill_runs(engine: Any, prompt: list[int], repeat: int) -> list[float]:
    """Seconds of each run from an empty cache, after one that is not counted."""
    seconds = []
    for _ in range(repeat + 1):
        engine.tokens = []
        start = time.perf_counter()
        engine.prefill(prompt)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people."""
    out = []
    for depth in result["depths"]:
        times = depth["ms_per_token"]
        out += [
            (
                f"decode at {depth['context']}",
                f"{depth['decode_tokens_per_s']:.1f} tok/s; ms per token: "
                f"median {times['median']:.3f} (min {times['min']:.3f}, max {times['max']:.3f})",
            ),
            ("floor", floor_text(depth, result["read_bandwidth"])),
        ]
    prefill, computer = result["prefill_tokens_per_s"], result["machine"]
    drawn = ", which draws the weights" if result["synthetic"] else ""
    out += [
        (
            f"prefill {result['prompt_tokens']}",
            f"{prefill['median']:.1f} tok/s (min {prefill['min']:.1f}, max {prefill['max']:.1f})",
        ),
        ("load", f"{result['load_s']:.2f} s{drawn}; first token after {result['first_token_s']:.2f} s"),
        ("memory", memory_text(result)),
        ("machine", f"{computer['cpu']}, {computer['cores']} cores, {computer['os']}; code for {result['arch']}"),
    ]
    if result["read_bandwidth"] is not None:
        out.insert(-1, ("bandwidth", f"{result['read_bandwidth'] / 1e9:.1f} GB/s: {result['bandwidth_method']}"))
    return out
