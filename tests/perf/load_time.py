"""Seconds from a process's start to a loaded model and its first token, and how fast weights get to the device.

    python tests/perf/load_time.py dist/SmolLM2-135M-Instruct-gguf --device cuda
    python tests/perf/load_time.py --make llama3-8b --device cuda     (needs dist/synthetic-llama3-8b-q4f16_1, compiled)

--make writes dist/stored-SHAPE-q4f16_1: the synthetic model's weights as the files that a converted model has.
Must: loaded and first token within 1.5 s and the time that reading the weights takes at 2 GB/s. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

RUNS = 3
_WORK = """
import json, os, sys, time
marks = {"python": time.time()}
from mlcrt.commands import options
options.own()
options.runtime_only()
from mlcrt.runtime.engine import Engine
import tvm
marks["imported"] = time.time()
read, spent = Engine._read_params, []
def timed(self, opened):
    start = time.perf_counter()
    placed = read(self, opened)
    self.runtime.device.sync()
    spent.append(time.perf_counter() - start)
    return placed
Engine._read_params = timed
engine = Engine(sys.argv[1], sys.argv[2], 256)
marks["loaded"] = time.time()
int(engine.prefill([1, 2, 3, 4, 5, 6, 7, 8]).argmax())
marks["first token"] = time.time()
seconds = {name: at - float(sys.argv[3]) for name, at in marks.items()}
print(json.dumps({"seconds": seconds, "weights": spent[0], "bytes": engine.memory["weights"]}))
"""


def make(shape: str, quantization: str) -> Path:
    """The folder of a synthetic model with its weights stored in files."""
    from mlcrt.dist import open_dist, write_json
    from mlcrt.measure.synthetic import synthetic_params
    from mlcrt.quant.params import ParamsWriter

    source, folder = (Path("dist", f"{kind}-{shape}-{quantization}") for kind in ("synthetic", "stored"))
    if folder.exists():
        return folder
    opened = open_dist(source)
    shutil.copytree(source, folder)
    arrays = synthetic_params(opened.config, opened.manifest["schemes"])
    writer = ParamsWriter(folder, [(name, a.shape, str(a.dtype)) for name, a in arrays.items()], {})
    for name, array in arrays.items():
        writer.write(name, array)
    params = {**opened.manifest["params"], "files": writer.close(), "synthetic": False}
    write_json(folder / "mlcrt.json", {**opened.manifest, "params": params})
    return folder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("dist", type=Path, nargs="?")
    parser.add_argument("--make", metavar="SHAPE")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    dist = make(args.make, args.quantization) if args.make else args.dist
    best = None
    for _ in range(RUNS):
        command = [sys.executable, "-c", _WORK, str(dist), args.device, repr(time.time())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        if done.returncode:
            return done.returncode
        result = json.loads(done.stdout.splitlines()[-1])
        marks = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["seconds"].items())
        speed = result["bytes"] / result["weights"] / 1e9
        print(f"{marks}; weights {result['bytes'] / 1e9:.2f} GB in {result['weights']:.2f} s, {speed:.1f} GB/s")
        best = min(best or 1e9, result["seconds"]["first token"])
    limit = 1.5 + result["bytes"] / 2e9
    print(f"first token after {best:.2f} s at best; the limit is {limit:.2f} s")
    return int(best > limit)


if __name__ == "__main__":
    sys.exit(main())
