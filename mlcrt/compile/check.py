"""`mlcrt compile --check`: a compiled library against the CPU's q0f32 build of the same dequantised weights.

The reference has the values that the target's library means, in plain float32, and runs other code: no codes and
scales, and kernels for the CPU level named below. So what differs is arithmetic: a kernel or a code generator at fault.
Whether the quantised weights resemble the checkpoint's is another question (`mlcrt eval --perplexity`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlcrt.dist import MANIFEST, Dist, open_dist, signature, write_json
from mlcrt.errors import MlcrtError
from mlcrt.models import Parameter, parameters
from mlcrt.quant.convert import BLOCK_ELEMENTS, Plan, stored_specs
from mlcrt.quant.pack import unpack_rows
from mlcrt.quant.params import ParamsWriter, read_params
from mlcrt.quant.scheme import SCHEMES
from mlcrt.scratch import scratch_folder
from mlcrt.targets import all_targets, host_machine
from mlcrt.targets.platforms import DEFAULT, foreign

REFERENCE = "cpu"
# Every x86-64 in use has the level, and its code is the plainest: 4 lanes, no fused multiply-add
REFERENCE_ARCH = "x86-64-v2" if host_machine() == "x86_64" else "aarch64"
# Largest error of a logit in standard deviations of the logits, by the type of the KV cache
BOUNDS = {"float32": 5e-4, "float16": 2e-2}
PREFILLS = (1, 7, 33, 17)  # tokens of one prefill each, so that chunks begin and end inside blocks of the cache
DECODES = 14


def require_checkable(target: str, platform: str = DEFAULT) -> None:
    """MlcrtError unless a library for `target` with host code for `platform` can run on this machine."""
    probed, elsewhere = all_targets()[target].probe(), foreign({"platform": platform})
    reason = f"the library {elsewhere}" if elsewhere else probed.reason
    if elsewhere or not probed.available:
        raise MlcrtError(f"{target} cannot be checked here: {reason}; run without --check")


def check_target_numerics(dist: Dist, slot: str, report: Callable[[str], None], built: Path | None = None) -> float:
    """Compare the library of `slot` in `dist` with the reference; the largest error in units of the logits' std.

    `built` is a folder that has the library and the parameters of `dist` before the library is in its place.

    The text is fixed: prefills of uneven length, then single tokens, then the first tokens scored at once. Raises
    MlcrtError if the target is not on this machine, if the error is above BOUNDS, and if the token that the library
    chooses is not the largest of its own logits.
    """
    entry = open_dist(built or dist.path).manifest["targets"][slot]
    require_checkable(slot.partition(":")[0], entry.get("platform", DEFAULT))
    tokens = fixed_tokens(dist)
    bound = BOUNDS[entry["kv_dtype"]]
    report(f"checking {slot}: running {len(tokens)} tokens")
    try:
        got = trace(built or dist.path, slot, tokens)
    except MlcrtError as error:
        raise type(error)(str(error).replace(str(built), str(dist.path)) if built else str(error)) from None
    with _scratch(dist) as scratch:
        report(f"checking {slot}: building the float32 reference")
        reference = build_reference(dist, scratch)
        expected = trace(reference, REFERENCE, tokens)
    rows = np.abs(got - expected).max(axis=1) / expected.std()
    # Where experts are routed, a near tie between two may fall either way and change that row: half of the rows count.
    error = float(np.median(rows) if dist.config.moe else rows.max())
    figure = f"{error:.1e} of the logits' standard deviation from the CPU in float32 (at most {bound:g} is right)"
    if not error <= bound:  # not a number is wrong too
        raise MlcrtError(f"{dist.path}: the library for {slot} computes wrong results: its logits are {figure}")
    report(f"checked {slot}: logits are within {figure}")
    return error


def fixed_tokens(dist: Dist) -> list[int]:
    """The same tokens for every build of a model; spread over the vocabulary, no more than the context takes."""
    count = min(sum(PREFILLS) + DECODES, dist.config.context)
    return [int(t) for t in np.random.PCG64(0).random_raw(count) % np.uint64(dist.config.vocab)]


def trace(folder: Path, target: str, tokens: list[int]) -> np.ndarray:
    """float32 [rows, vocab]: logits after every prefill and decode of `tokens`, and of all positions scored at once."""
    from mlcrt.runtime.engine import Engine

    engine = Engine(folder, target, context=len(tokens))
    try:
        rows, start = [], 0
        for length in PREFILLS + (1,) * DECODES:
            part = tokens[start : start + length]
            if not part:
                break
            logits = engine.decode(part[0]) if start >= sum(PREFILLS) else engine.prefill(part)
            rows.append(logits[None].copy())
            start += length
            if engine.greedy_token != int(logits.argmax()):
                raise MlcrtError(
                    f"{folder}: the library for {target} computes wrong results: it chose token {engine.greedy_token},"
                    f" and the largest of its logits is that of {int(logits.argmax())}"
                )
        engine.rollback(0)
        rows.append(engine.score(tokens[: engine.score_chunk]))
        return np.concatenate(rows)
    finally:
        engine.close()


def build_reference(dist: Dist, folder: Path) -> Path:
    """A q0f32 dist of the parameters that `dist` stores, compiled for the CPU, in `folder`."""
    from .build import compile_target

    config = dist.config
    schemes = dict.fromkeys(dist.manifest["schemes"], "q0f32")
    specs = stored_specs(Plan(config, {}, schemes, frozenset(), {}))
    _require_space(folder, specs)
    try:
        files = _write_dequantised(dist, folder, specs)
        params = {
            "files": files,
            "bytes": sum((folder / f).stat().st_size for f in files),
            "signature": signature(specs, config),
        }
        manifest = {**dist.manifest, "quantization": "q0f32", "schemes": schemes, "params": params, "targets": {}}
        write_json(folder / MANIFEST, manifest)
    except OSError as error:
        raise MlcrtError(f"{folder} cannot be written for --check: {error.strerror or error}") from None
    compile_target(open_dist(folder), REFERENCE, REFERENCE_ARCH, slots=0)
    return folder


@contextlib.contextmanager
def _scratch(dist: Dist) -> Iterator[Path]:
    try:
        with scratch_folder(dist.path.parent, f"{dist.path.name}.check") as folder:
            yield folder
    except OSError as error:
        raise MlcrtError(f"{dist.path.parent} cannot be written for --check: {error.strerror or error}") from None


def _require_space(folder: Path, specs: list) -> None:
    needed = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for _, shape, dtype in specs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MlcrtError(
            f"--check writes the weights as float32 into {folder.parent}: that takes {needed / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free; make room or run without --check"
        )


def _write_dequantised(dist: Dist, folder: Path, specs: list) -> list[str]:
    stored = read_params(dist.path, dist.manifest["params"]["files"])
    weights = {p.name: p for p in parameters(dist.config) if p.name in dist.manifest["schemes"]}
    writer = ParamsWriter(folder, specs, {"format": "mlcrt", "model": dist.name})
    try:
        for name, _, _ in specs:
            if name in weights:
                for rows in dequantised(stored, weights[name], dist.manifest["schemes"][name]):
                    writer.write(name, rows)
            else:
                writer.write(name, stored[name])
        return writer.close()
    except BaseException:
        writer.abort()
        raise


def dequantised(stored: dict[str, np.ndarray], parameter: Parameter, scheme: str) -> Iterator[np.ndarray]:
    """float32 blocks of rows of a stored weight, experts one after the other."""
    chosen = SCHEMES[scheme]
    *_, rows, columns = parameter.shape
    parts = {}
    for suffix in chosen.tensors(rows, columns):
        part = stored[f"{parameter.name}.{suffix}" if suffix else parameter.name]
        part = np.swapaxes(part, -1, -2) if chosen.layout == "KN" and not chosen.is_float else part
        parts[suffix] = part.reshape(-1, part.shape[-1])
    step = max(1, BLOCK_ELEMENTS // columns)
    for first in range(0, len(next(iter(parts.values()))), step):
        yield unpack_rows({suffix: part[first : first + step] for suffix, part in parts.items()}, chosen, columns)
