"""`mlcrt compile`: a dist folder's decoder → one library per target inside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mlcrt.dist import LIBRARY_ABI, Dist, check_target, is_dist, open_dist, sha256
from mlcrt.errors import MlcrtError
from mlcrt.quant.model import converted, float_kind, silent
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets import all_targets, parse_target
from mlcrt.version import __version__

CHUNK = 128  # most tokens of one prefill call: enough to amortise dequantisation, small enough for the cache
Report = Callable[[str], None]


def compile_model(
    model,
    quantization: str | None = None,
    targets: str = "auto",
    out: Path | None = None,
    dump_ir: Path | None = None,
    context: int | None = None,
    check: bool = False,
    report: Report = silent,
    dist_root: Path = Path("dist"),
) -> Path:
    """Convert `model` unless that is done, and compile it for every target of the comma-separated list; the folder."""
    chosen = [parse_target(t.strip()) for t in targets.split(",") if t.strip()]
    folder = _dist_folder(model, quantization, out, dist_root, report)
    for name, arch in chosen:
        _compile_target(open_dist(folder), name, arch, dump_ir, context, report)
        if check:
            from .check import check_target_numerics

            check_target_numerics(open_dist(folder), name, model, report)
    return folder


def ensure_compiled(
    model, quantization: str | None = None, target: str = "auto", dist_root: Path = Path("dist"), report: Report = silent
) -> Path:
    """The dist folder of `model` with a usable library for `target`, made first where it is missing."""
    name, arch = parse_target(target)
    folder = _dist_folder(model, quantization, None, dist_root, report)
    dist = open_dist(folder)
    if name in dist.manifest["targets"]:
        try:
            check_target(dist, name)
            return folder
        except MlcrtError as error:
            if is_dist(Path(model)):
                raise
            report(f"{error}; doing so")
    _compile_target(dist, name, arch, None, None, report)
    return folder


def _dist_folder(model, quantization: str | None, out: Path | None, dist_root: Path, report: Report) -> Path:
    if is_dist(Path(model)):
        folder = Path(model)
        have = open_dist(folder).manifest["quantization"]
        if quantization not in (None, have):
            raise MlcrtError(f"{folder} is quantised as {have}; give the original model to get {quantization}")
        return folder
    return converted(model, quantization, out, dist_root, report)


def _compile_target(
    dist: Dist, name: str, arch: str, dump_ir: Path | None, context: int | None, report: Report
) -> None:
    import tvm

    from .pipeline import compile_decoder

    started = time.perf_counter()
    target = all_targets()[name]
    attributes = target.attributes(arch)
    library = target.library(attributes, attributes.kv_dtype(float_kind(dist)))
    schemes = dist.manifest["schemes"]

    def scheme_of(parameter: str):
        return replace(SCHEMES[schemes[parameter]], layout="NK")  # KN weights are turned when they are loaded

    executable, parameters, workspace = compile_decoder(
        dist.config,
        scheme_of,
        tvm.target.Target(attributes.tvm_target()),
        library,
        CHUNK,
        dump_ir,
        lambda phase: report(f"compiling for {name} ({attributes.name}): {phase}"),
    )
    with _target_folder(dist.path, name) as building:
        file = building / f"lib.{target.link.output_format}"
        with tempfile.TemporaryDirectory(dir=building) as objects:
            executable.export_library(str(file), fcompile=target.link, workspace_dir=objects)
        entry = {
            "library": f"{name}/{file.name}",
            "sha256": sha256(file),
            "signature": dist.manifest["params"]["signature"],
            "abi": LIBRARY_ABI,
            "mlcrt": __version__,
            "tvm": tvm.__version__,
            "arch": attributes.name,
            "features": list(attributes.features),
            "parameters": [p[0] for p in parameters],
            "chunk": CHUNK,
            "kv_dtype": library.kv_dtype,
            "kv_block": library.kv_block,
            "workspace_bytes": workspace,
        }
    dist.manifest["targets"][name] = entry
    dist.save()
    from mlcrt.runtime.memory import plan_memory

    report(f"compiled {dist.path / entry['library']} in {time.perf_counter() - started:.1f} s")
    report(plan_memory(dist, entry, context).text())


@contextlib.contextmanager
def _target_folder(dist: Path, name: str) -> Iterator[Path]:
    """Fill a folder beside and let it replace dist/name when the block succeeds."""
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=dist))
    except OSError as error:
        raise MlcrtError(f"{dist} cannot be written: {error.strerror}") from None
    try:
        os.chmod(beside, 0o755)
        yield beside
        old = beside.with_name(f"{beside.name}.old")
        if (dist / name).exists():
            os.replace(dist / name, old)
        os.replace(beside, dist / name)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MlcrtError(f"{dist / name} cannot be written: {error.strerror}; nothing was changed") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
