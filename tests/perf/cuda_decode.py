"""Decode and prefill speed on an NVIDIA GPU with random weights of a real shape: the figures in NOTES.md.

    python tests/perf/cuda_decode.py llama3-8b --contexts 16 512 4096
    python tests/perf/cuda_decode.py llama3-8b --compile-only        (no GPU needed; copy the folder afterwards)

Decode: greedy steps that the device feeds itself, one graph launch each; median of three runs of 64 after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from mlcrt.measure.synthetic import make_synthetic

STEPS, RUNS = 64, 3


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(engine, contexts: list[int]) -> None:
    print(engine.plan.text())
    for context in contexts:
        engine.tokens = [1] * context  # positions count, contents do not
        engine.greedy(8)
        runs = []
        for _ in range(RUNS):
            engine.tokens = [1] * context
            runs.append(timed(lambda: engine.greedy(STEPS)) / STEPS)
        seconds = statistics.median(runs)
        print(f"decode at {context}: {1 / seconds:.1f} tokens/s, {seconds * 1e3:.3f} ms a token")
    prompt = list(range(512))
    engine.rollback(0)
    engine.prefill(prompt)
    runs = []
    for _ in range(RUNS):
        engine.rollback(0)
        runs.append(timed(lambda: engine.prefill(prompt)))
    print(f"prefill 512: {512 / statistics.median(runs):.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="llama3-8b, llama2-7b, llama3.2-1b, smollm2-135m or a config.json")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512, 4096])
    parser.add_argument("--compile-only", action="store_true")
    args = parser.parse_args()
    folder = Path("dist", f"synthetic-{Path(args.shape).stem}-{args.quantization}")
    if not (folder / "cuda").is_dir():
        from mlcrt.compile import compile_model

        make_synthetic(args.shape, args.quantization, folder)
        compile_model(str(folder), None, f"cuda:{args.arch}")
    if args.compile_only:
        print(folder)
        return
    from mlcrt.runtime.engine import Engine

    measure(Engine(folder, "cuda", max(args.contexts) + 2 * STEPS), args.contexts)


if __name__ == "__main__":
    main()
