"""Compile published shapes (two layers of each) for metal and say what their largest kernel needs; not in the suite.

    python tests/metal/real_shapes.py SCHEME [NAME…]        names: see tests/models/real_configs.py

Ends with an error where a kernel needs more than an Apple GPU has, or where the front end refuses one. 20 s a shape.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "models")]

import msl  # noqa: E402
from real_configs import REAL  # noqa: E402

from mlcrt.compile.pipeline import compile_decoder  # noqa: E402
from mlcrt.models import decoder_config  # noqa: E402
from mlcrt.quant.scheme import SCHEMES  # noqa: E402
from mlcrt.targets import metal  # noqa: E402


def two_layers(config: dict) -> dict:
    config = copy.deepcopy(config)
    for part in (config, config.get("text_config") or {}):
        if "num_hidden_layers" in part:
            part["num_hidden_layers"] = 2
        if "layer_types" in part:
            part["layer_types"] = part["layer_types"][:2]
    return config


def main(scheme: str, *names: str) -> None:
    library = metal.library(metal.attributes(), "float32" if scheme == "q0f32" else "float16")
    for name in names or REAL:
        config = decoder_config(two_layers(REAL[name]))
        executable, _, _ = compile_decoder(config, lambda _: SCHEMES[scheme], msl.twin(), library)
        kernels = msl.kernels_of_module(executable.mod).values()
        problems = msl.check(list(kernels))
        if problems:
            raise SystemExit(f"{name}: {problems[0]}")
        largest = max(kernels, key=lambda k: k.threadgroup_bytes)
        print(f"{name:18} {scheme:10} {largest.threadgroup_bytes:6} bytes in {largest.name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
