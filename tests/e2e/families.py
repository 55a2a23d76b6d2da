"""Every family at short and long contexts on a device that is elsewhere: made on one machine, checked on another.

    python tests/e2e/families.py make DIR --target cuda:sm_90       needs no GPU
    python tests/e2e/families.py check DIR --device cuda            needs no compiler and none of the checkpoints

`make` compiles the tiny model of every golden case (q4f16_1) and one of them in every scheme, and keeps the logits that
the CPU's float32 build of the same dequantised weights gives: after a prompt of 1, 17, 513 and 4097 tokens and after
each of two more. `check` prints the largest error for each, in standard deviations of the logits, and exits with 1 if
one is above the bound (`mlcrt compile --check` has the same).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

CONTEXTS, MORE = (1, 17, 513, 4097), 2
ROOM = 8192  # positions, where a case's own limit is below
LIMITS = {"max_position_embeddings", "original_max_position_embeddings"}
SCHEMED = "llama3_gqa7"  # the case that is made in every scheme
EXPECTED = "expected.npz"


def prompts(vocab: int) -> list[list[int]]:
    """One of each length, the decoded tokens behind it."""
    draw = np.random.default_rng(0)
    return [draw.integers(3, vocab, n + MORE).tolist() for n in CONTEXTS]


def trace(folder: Path, device: str) -> np.ndarray:
    """float32 [contexts, 1 + MORE, vocab]"""
    from mlcrt.runtime.engine import Engine

    engine = Engine(folder, device, context=max(CONTEXTS) + MORE + 1)
    rows = []
    for tokens in prompts(engine.config.vocab):
        engine.rollback(0)
        rows.append(engine.prefill(tokens[:-MORE]).copy())
        rows += [engine.decode(token).copy() for token in tokens[-MORE:]]
    engine.close()
    return np.stack(rows).reshape(len(CONTEXTS), 1 + MORE, -1)


def make(folder: Path, target: str, only: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
    import tiny

    from mlcrt.compile.build import compile_model
    from mlcrt.compile.check import build_reference
    from mlcrt.dist import open_dist
    from mlcrt.quant.scheme import SCHEMES

    for case, scheme in [(c, "q4f16_1") for c in tiny.cases()] + [(SCHEMED, s) for s in SCHEMES if s != "q4f16_1"]:
        if only and case not in only:
            continue
        name = f"{case}-{scheme}"
        source = tiny.make_tiny(case, folder / "checkpoints" / case)
        config = json.loads((source / "config.json").read_text())
        for limits in (config, config.get("rope_parameters") or config.get("rope_scaling") or {}):
            for key in LIMITS & limits.keys():
                limits[key] = max(limits[key], ROOM)
        (source / "config.json").write_text(json.dumps(config))
        dist = compile_model(source, scheme, target, out=folder / name, slots=0)
        reference = folder / "references" / name
        reference.mkdir(parents=True)
        build_reference(open_dist(dist), reference)
        np.savez(dist / EXPECTED, logits=trace(reference, "cpu"))
        print(name, flush=True)


def check(folder: Path, device: str) -> bool:
    from mlcrt.compile.check import BOUNDS
    from mlcrt.dist import open_dist

    right, found = True, sorted(file.parent for file in folder.glob(f"*/{EXPECTED}"))
    print(f"{'':34}" + "".join(f"{n:>10}" for n in CONTEXTS))
    for dist in found:
        expected = np.load(dist / EXPECTED)["logits"]
        errors = np.abs(trace(dist, device) - expected).max(axis=2) / expected.std()
        # where experts are routed a near tie may fall either way and change a row: the median of three counts
        routed = open_dist(dist).config.moe
        errors = np.median(errors, axis=1) if routed else errors.max(axis=1)
        good = bool((errors <= BOUNDS["float16"]).all())  # not a number is wrong too
        right &= good
        print(f"{dist.name:34}" + "".join(f"{e:10.1e}" for e in errors) + ("" if good else "  WRONG"), flush=True)
    return right and bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[], metavar="CASE")
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.target, options.only)
        return 0
    return 0 if check(options.folder, options.device) else 1


if __name__ == "__main__":
    raise SystemExit(main())
