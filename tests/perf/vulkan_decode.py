"""Decode and prefill speed on a Vulkan device with random weights of a real shape.

    python tests/perf/vulkan_decode.py llama3-8b --contexts 16 512 4096
    python tests/perf/vulkan_decode.py llama3-8b --compile-only        (no GPU needed; copy the folder afterwards)
    python tests/perf/vulkan_decode.py llama3.2-1b --profile           (device time of each kernel of a step)
    python tests/perf/vulkan_decode.py smollm2-135m --check            (logits against the CPU's library)

Decode: greedy steps that the device feeds itself, one submission each; median of three runs of 64 after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from mlcrt.measure.synthetic import make_synthetic

STEPS, RUNS = 64, 3


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(engine, contexts: list[int]) -> None:
    """Print what `mlcrt bench --synthetic` does, without its floor."""
    for context in contexts:
        engine.tokens = [1] * context  # positions count, contents do not
        engine.greedy(8)
        runs = []
        for _ in range(RUNS):
            engine.tokens = [1] * context
            runs.append(timed(lambda: engine.greedy(STEPS)) / STEPS)
        seconds = statistics.median(runs)
        print(f"decode at {context}: {1 / seconds:.1f} tokens/s, {seconds * 1e3:.3f} ms a token")
    prompt, runs = list(range(512)), []
    for _ in range(RUNS + 1):
        engine.rollback(0)
        runs.append(timed(lambda: engine.prefill(prompt)))
    print(f"prefill 512: {512 / statistics.median(runs[1:]):.0f} tokens/s")


def profile(engine, context: int) -> None:
    """Device time by kernel for one plain step and for a prefill of 512; timestamps stand between all kernels."""
    runtime = engine._runtime
    step = getattr(engine._decode, "step", engine._decode)
    prompt = runtime.place(np.arange(min(512, engine.chunk), dtype=np.int32))
    engine.tokens = [1] * context
    engine._begin()
    for name, function in (
        (f"step at {context}", step),
        (f"prefill of {prompt.shape[0]}", lambda: engine._prefill(prompt, engine._state_bundle, engine._params)),
    ):
        function()
        engine._begin()
        times = runtime.profile(function)
        total = sum(time for time, _ in times.values())
        print(f"{name}: {total / 1e6:.3f} ms in {sum(calls for _, calls in times.values())} launches")
        for kernel, (nanoseconds, calls) in sorted(times.items(), key=lambda item: -item[1][0]):
            print(f"  {nanoseconds / 1e6:9.3f} ms  {calls:4} x {nanoseconds / calls / 1e3:8.1f} us  {kernel}")


def check(folder: Path) -> None:
    """Print how far the logits are from the CPU's after prefills and decodes, and whether the same tokens follow."""
    from mlcrt.compile.check import trace
    from mlcrt.dist import open_dist
    from mlcrt.runtime.engine import Engine

    vocab = open_dist(folder).config.vocab
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, vocab, 72)]
    got, expected = (trace(folder, target, tokens) for target in ("vulkan", "cpu"))
    error = np.abs(got - expected).max() / expected.std()
    print(f"logits: within {error:.1e} of their standard deviation from the CPU's")
    chosen = []
    for target in ("vulkan", "cpu"):
        engine = Engine(folder, target, context=256)
        engine.prefill(tokens)
        chosen.append(engine.greedy(32))
        engine.close()
    print("greedy tokens:", "equal" if chosen[0] == chosen[1] else f"{chosen[0]} and on the CPU {chosen[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="llama3-8b, llama2-7b, llama3.2-1b, smollm2-135m or a config.json")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--arch", default="s32", help="kinds of kernels to compile")
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512, 4096])
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    name = Path(args.shape).stem if args.shape.endswith(".json") else args.shape
    folder = Path("dist", f"synthetic-{name}-{args.quantization}")
    if not (folder / "vulkan").is_dir():
        from mlcrt.compile import compile_model

        make_synthetic(args.shape, args.quantization, folder)
        compile_model(str(folder), None, f"vulkan:{args.arch}" + (",cpu:x86-64-v3" if args.check else ""))
    if args.compile_only:
        print(folder)
        return
    if args.check:
        check(folder)
        return
    from mlcrt.runtime.engine import Engine

    started = time.perf_counter()
    engine = Engine(folder, "vulkan", max(args.contexts) + 2 * STEPS)
    print(f"{args.shape} on {engine._runtime.device.device_name}: loaded in {time.perf_counter() - started:.1f} s")
    measure(engine, args.contexts)
    if hasattr(engine._decode, "replay"):
        print("a step:", engine._decode.replay.describe(), "memory:", engine._runtime.memory())
    if args.profile:
        profile(engine, args.contexts[0])


if __name__ == "__main__":
    main()
