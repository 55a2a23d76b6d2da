"""Decode speed of a sampled answer: drawn on the device, the host one step behind, against drawn on the host.

    python tests/perf/sampled_decode.py dist/SmolLM2-135M-Instruct-gguf --device cuda
    python tests/perf/sampled_decode.py dist/synthetic-llama3-8b-q4f16_1 --device cuda --top-k 40

Prints tokens/s of each way, whether the tokens are the same, and how many the device left to the host. Random weights
give a flat distribution, in which only top-k or min-p makes a small choice. Exit code 1 if tokens differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from mlcrt.runtime.engine import Engine
from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams

RUNS = 3


def answer(engine: Engine, params: SamplingParams, device: bool, count: int) -> tuple[list[int], float, int]:
    """(tokens, seconds per token after the first, tokens that the device refused)."""
    engine.rollback(0)
    sampler = Sampler(params, engine.config.vocab)
    drawing = engine.drawing(sampler) if device else None
    tokens = [sampler.sample(engine.prefill([1, 2, 3, 4, 5, 6, 7, 8]))]
    start = time.perf_counter()
    while len(tokens) <= count:
        token = tokens[-1]
        if drawing:
            tokens.append(drawing.after(token, len(tokens) == count))
        else:
            tokens.append(sampler.sample(engine.decode(token)))
    return tokens, (time.perf_counter() - start) / count, drawing.refused if drawing else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("dist", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    engine = Engine(args.dist, args.device, args.n + 64)
    chosen = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p}
    differ = False
    engine.prefill([1])
    engine.greedy(8)
    engine.rollback(0)
    engine.prefill([1, 2, 3, 4, 5, 6, 7, 8])
    start = time.perf_counter()
    engine.greedy(args.n)
    print(f"greedy, read at the end: {args.n / (time.perf_counter() - start):.1f} tokens/s")
    for name, params in (("sampled", SamplingParams(seed=7, **chosen)), ("greedy", SamplingParams(temperature=0))):
        found = {}
        for device in (True, False):
            answer(engine, params, device, 8)
            runs = [answer(engine, params, device, args.n) for _ in range(RUNS)]
            seconds = statistics.median(run[1] for run in runs)
            found[device] = runs[0][0]
            where = f"device, {runs[0][2]} left to the host" if device else "host"
            print(f"{name} on the {where}: {1 / seconds:.1f} tokens/s, {seconds * 1e3:.3f} ms a token")
        same = found[True] == found[False]
        differ |= not same
        print(f"{name}: {'the same tokens' if same else 'DIFFERENT TOKENS'}")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
