"""Time of prefill's cooperative-matrix kernels on a Vulkan device, tile by tile.

    python tests/perf/vulkan_tiles.py make FOLDER [--shapes llama3-8b] [--tiles w-128x128x32-64x32 …]   (no GPU needed)
    python tests/perf/vulkan_tiles.py run FOLDER [--tokens 512]                   (TVM's runtime is enough)

`run` prints per layer and tiles the device time of `prepare` and of the product, and how far some outputs are from
NumPy's. Tiles are named TOKENSxROWSxDEPTH-SUBGROUP_TOKENSxSUBGROUP_ROWS: `d-` with two steps in workgroup memory,
`w-` with one, and `-8` after it for 16x8x16 matrices.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np

SHAPES = {  # layer → rows, columns, switches
    "llama3-8b": {
        "qkv": (6144, 4096, {"norm_eps": 1e-5}),
        "o": (4096, 4096, {"residual": True}),
        "gate_up": (28672, 4096, {"norm_eps": 1e-5, "gate": "silu"}),
        "down": (4096, 14336, {"residual": True}),
    },
    "smollm2-135m": {
        "qkv": (960, 576, {"norm_eps": 1e-5}),
        "o": (576, 576, {"residual": True}),
        "gate_up": (3072, 576, {"norm_eps": 1e-5, "gate": "silu"}),
        "down": (576, 1536, {"residual": True}),
    },
}
TILES = [
    "d-128x128x32-64x32", "w-128x128x32-64x32", "w-128x128x64-64x32", "d-128x128x32-64x64", "w-128x128x64-64x64",
    "d-64x128x32-32x32", "w-64x128x64-32x64", "d-64x64x64-32x32", "d-128x64x32-64x32", "w-128x256x32-64x64",
    "w-256x128x32-64x64", "d-128x128x32-64x32-8", "d-64x128x32-64x32",
]  # fmt: skip
REPEATS, CHECKED = 20, 64


def tiles_of(name: str):
    from mlcrt.targets.vulkan.matrix import MatrixTiles

    kind, whole, part, *rest = name.split("-")
    (tokens, rows, depth), (sub_tokens, sub_rows) = (map(int, s.split("x")) for s in (whole, part))
    shape = (16, 8, 16) if rest else (16, 16, 16)
    return MatrixTiles(tokens, rows, depth, sub_tokens, sub_rows, kind == "d", shape)


def make(folder: Path, shapes: list[str], tiles: list[str], old=None) -> None:
    """One library with a function per layer and tiles."""
    import tvm

    from mlcrt.kernels.records import Linear
    from mlcrt.kernels.simt import Library
    from mlcrt.quant.scheme import SCHEMES
    from mlcrt.targets.cpu.link import link
    from mlcrt.targets.vulkan import attributes, matrix
    from mlcrt.targets.vulkan.architecture import Variant
    from mlcrt.targets.vulkan.tiles import machine

    folder.mkdir(parents=True, exist_ok=True)
    functions, listed = {}, []
    for shape in shapes:
        for layer, (rows, columns, switches) in SHAPES[shape].items():
            op = Linear(SCHEMES["q4f16_1"], rows, columns, None, **switches)
            for name in tiles:
                if columns % tiles_of(name).depth:
                    continue
                key = re.sub(r"\W", "_", f"{shape}_{layer}_{name}")
                function = matrix.linear(op, tiles_of(name), machine(Variant("s32m")))
                functions[key] = function.with_attr("global_symbol", key)
                listed.append((key, shape, layer, name))
            if old is not None:
                key = re.sub(r"\W", "_", f"{shape}_{layer}_old")
                functions[key] = old.linear(op, machine(Variant("s32m"))).with_attr("global_symbol", key)
                listed.append((key, shape, layer, "old"))
    with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):
        library = tvm.compile(tvm.IRModule(functions), target=tvm.target.Target(attributes("s32").tvm_target()))
    library.export_library(str(folder / "tiles.so"), fcompile=link)
    (folder / "tiles.json").write_text(json.dumps(listed))


def expected(x, codes, scales, norm, residual, switches, units: np.ndarray) -> np.ndarray:
    """The outputs of some units."""
    rows = [units, units + len(codes) // 2] if switches.get("gate") else [units]
    if norm is not None:
        x = x * norm / np.sqrt((x**2).mean(1, keepdims=True) + switches["norm_eps"])
    sums = []
    for picked in rows:
        nibbles = (codes[picked][:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
        weight = nibbles.reshape(len(picked), -1).astype(np.float32) - 8
        sums.append(x @ (weight * np.repeat(scales[picked].astype(np.float32), 32, 1)).T)
    if residual is not None:
        return sums[0] + residual[:, units]
    return sums[0] / (1 + np.exp(-sums[0])) * sums[1] if len(sums) > 1 else sums[0]


def run(folder: Path, tokens: int) -> None:
    import tvm

    from mlcrt.targets import vulkan

    runtime = vulkan.runtime()
    started = time.perf_counter()
    library = tvm.runtime.load_module(str(folder / "tiles.so"))
    print(f"{runtime.device.device_name}: {tokens} tokens; pipelines made in {time.perf_counter() - started:.1f} s")
    rng = np.random.default_rng(0)
    held: dict = {}
    for key, shape, layer, name in json.loads((folder / "tiles.json").read_text()):
        rows, columns, switches = SHAPES[shape][layer]
        units = rows // 2 if "gate" in switches else rows
        if (shape, layer) not in held:
            x = rng.standard_normal((tokens, columns), np.float32)
            codes = rng.integers(0, 1 << 32, (rows, columns // 8), np.uint32)
            scales = rng.uniform(0.001, 0.01, (rows, columns // 32)).astype(np.float16)
            norm = rng.uniform(0.5, 1.5, columns).astype(np.float32) if "norm_eps" in switches else None
            residual = rng.standard_normal((tokens, units), np.float32) if "residual" in switches else None
            picked = np.unique(np.r_[0, units - 1, rng.integers(0, units, CHECKED)])
            wanted = expected(x, codes, scales, norm, residual, switches, picked)
            given = [runtime.place(a) for a in (x, codes, scales, norm, residual) if a is not None]
            held = {(shape, layer): (given, picked, wanted)}
        given, picked, wanted = held[shape, layer]
        y = runtime.place(np.full((tokens, units), np.nan, np.float32))
        arguments = [*given, y]
        if name != "old":
            arguments.append(runtime.place(np.zeros((tokens, columns // 2), np.uint32)))
        function = library[key]
        for _ in range(3):
            function(*arguments)
        error = np.abs(y.numpy()[:, picked] - wanted).max() / wanted.std()
        times = runtime.profile(lambda: [function(*arguments) for _ in range(REPEATS)])  # noqa: B023
        each = {kernel[len(key) :]: time / calls / 1e3 for kernel, (time, calls) in times.items()}
        prepare, product = (0.0, sum(each.values())) if name == "old" else (each["_kernel"], each["_kernel_1"])
        rate = 2 * tokens * rows * columns / product / 1e6
        times = f"prepare {prepare:7.1f} us  product {product:8.1f} us  {rate:6.1f} TFLOP/s"
        print(f"{shape:13s} {layer:8s} {name:22s} {times}  error {error:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["llama3-8b"], choices=list(SHAPES))
    parser.add_argument("--tiles", nargs="+", default=TILES)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder, args.shapes, args.tiles)
    else:
        run(args.folder, args.tokens)


if __name__ == "__main__":
    main()
