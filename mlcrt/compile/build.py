"""`mlcrt compile`: a dist folder's decoder → one library per target and architecture inside it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlcrt.dist import (
    LIBRARY_ABI,
    MANIFEST,
    Dist,
    check_target,
    folder_of,
    is_dist,
    new_library,
    open_dist,
    sha256,
    write_json,
)
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.quant.model import converted, float_kind, silent
from mlcrt.quant.scheme import SCHEMES
from mlcrt.scratch import sweep
from mlcrt.select import has_library, pick, slot_for
from mlcrt.targets import all_targets, parse_target, parse_targets
from mlcrt.targets.platforms import DEFAULT, platform_of
from mlcrt.unpack import is_package
from mlcrt.version import __version__

from .interrupt import keep_interrupts

OBJECT_SPACE = 32 << 20  # bytes that a library and its objects surely fit; they take about 1 MB
Report = Callable[[str], None]
Progress = Callable[[str, str, float], None]  # slot, phase, share of the phases done
Table = Callable[[str, list[dict]], None]


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
    progress: Progress | None = None,
    jobs: int | None = None,
    table: Table | None = None,
    slots: int | None = None,
) -> Path:
    """Convert `model` unless that is done, and compile it for every target of the comma-separated list; the folder.

    Several targets are compiled side by side, each in a process of its own, at most `jobs` at once (default: one per
    core). The libraries that succeed stay when another fails; MlcrtError then says which did and which did not.
    `progress` replaces the reported lines about phases. table(title, rows) is called with one dictionary per kernel for
    each target that can look into its code; the targets are then compiled one after the other. slots: most sequences
    of a batched step (`mlcrt serve`), fewer than the target's kernels could take; 0 leaves these kernels out.
    """
    chosen = parse_targets(targets)
    if is_package(model):
        raise UsageError(f"{model} is a package, which is only run; compile the folder or the model it was made from")
    folder = _dist_folder(model, quantization, out, dist_root, report)
    sweep(folder.parent)
    planned = _plan(open_dist(folder), chosen)
    if len(planned) == 1 or table is not None:
        for slot, (name, arch) in planned.items():
            compile_target(
                open_dist(folder), name, arch, dump_ir, context, report, check, slot, progress, table, slots
            )
    else:
        from .parallel import compile_slots

        compile_slots(folder, planned, dump_ir, context, check, report, progress, jobs, slots)
    return folder


def _plan(dist: Dist, chosen: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Slot → (target, architecture as typed), each once."""
    modules, targets, planned = all_targets(), dict(dist.manifest["targets"]), {}
    for name, arch in chosen:
        attributes = modules[name].attributes(arch)
        slot = slot_for(targets, name, attributes)
        targets[slot] = {"arch": attributes.name}
        planned[slot] = (name, arch)
    return planned


def ensure_compiled(
    model,
    quantization: str | None = None,
    target: str = "auto",
    dist_root: Path = Path("dist"),
    report: Report = silent,
) -> Path:
    """The dist folder of `model` with a usable library for `target`, made first where it is missing."""
    name, arch = parse_target(target)
    folder = _dist_folder(model, quantization, None, dist_root, report)
    dist = open_dist(folder)
    wanted = f"{name}:{arch}" if arch else name
    if has_library(dist, wanted):
        try:
            check_target(dist, pick(dist, wanted))
            return folder
        except MlcrtError as error:
            if is_dist(Path(model)):
                raise
            report(f"{error}; doing so")
    compile_target(dist, name, arch, report=report)
    return folder


def _dist_folder(model, quantization: str | None, out: Path | None, dist_root: Path, report: Report) -> Path:
    if is_dist(Path(model)):
        folder = Path(model)
        have = open_dist(folder).manifest["quantization"]
        if quantization not in (None, have):
            raise MlcrtError(f"{folder} is quantised as {have}; give the original model to get {quantization}")
        return folder
    return converted(model, quantization, out, dist_root, report)


@keep_interrupts()
def compile_target(
    dist: Dist,
    name: str,
    arch: str = "",
    dump_ir: Path | None = None,
    context: int | None = None,
    report: Report = silent,
    check: bool = False,
    slot: str | None = None,
    progress: Progress | None = None,
    table: Table | None = None,
    slots: int | None = None,
) -> str:
    """Compile an opened folder for one target; the slot. Its library and its entry in the manifest replace those there.

    With `check` they do only if the library computes what the reference does.
    """
    import tvm

    if tvm.base._RUNTIME_ONLY:
        raise MlcrtError(
            "this installation has TVM's runtime only (or TVM_USE_RUNTIME_LIB is set), and compiling needs its"
            " compiler; install apache-tvm whole, or compile elsewhere and copy the folder"
        )
    from .pipeline import compile_decoder, phases

    started = time.perf_counter()
    target = all_targets()[name]
    attributes = target.attributes(arch)
    slot = slot or slot_for(dist.manifest["targets"], name, attributes)
    if check:
        from .check import require_checkable

        require_checkable(name, getattr(attributes, "platform", DEFAULT))
    library = target.library(attributes, attributes.kv_dtype(float_kind(dist)))
    library.routed = dist.config.moe is not None
    if slots is not None:
        library.batch = min(library.batch, slots)
    schemes = dist.manifest["schemes"]
    total = len(phases(library)) + (3 if check else 2)
    done = []

    def scheme_of(parameter: str):
        return SCHEMES[schemes[parameter]].row_major()

    def phase(text: str) -> None:
        if progress is None:
            report(f"compiling for {name} ({attributes.name}): {text}")
        else:
            progress(slot, text, len(done) / total)
        done.append(text)

    executable, parameters, workspace = compile_decoder(
        dist.config, scheme_of, tvm.target.Target(attributes.tvm_target()), library, dump_ir, phase
    )
    _inspect(target, name, executable, report, table)
    with new_library(dist, slot) as (building, entry):
        phase("link")
        _require_space(building, OBJECT_SPACE)
        file = building / getattr(attributes, "library_file", "lib.so")
        with tempfile.TemporaryDirectory(dir=building) as objects:
            executable.export_library(str(file), workspace_dir=objects, **target.export_options(attributes))
        entry |= {
            "library": f"{folder_of(slot)}/{file.name}",
            "sha256": sha256(file),
            "bytes": file.stat().st_size,
            "signature": dist.manifest["params"]["signature"],
            "abi": LIBRARY_ABI,
            "mlcrt": __version__,
            "tvm": tvm.__version__,
            "platform": platform_of(file),
            "arch": attributes.name,
            "features": list(attributes.features),
            "parameters": [p[0] for p in parameters],
            "chunk": library.chunk,
            "score_chunk": library.score_chunk,
            "kv_dtype": library.kv_dtype,
            "kv_block": library.kv_block,
            "kv_layout": library.kv_layout,
            "workspace_bytes": workspace,
            "batch": library.batch,
            "draws": library.draws,
        }
        if check:
            phase("check")
            _check(dist, slot, building, entry, report)
    if progress is not None:
        progress(slot, "done", 1.0)
    from mlcrt.runtime.memory import plan_memory

    report(f"compiled {dist.path / entry['library']} in {time.perf_counter() - started:.1f} s")
    report(plan_memory(dist, entry, context).text())
    return slot


def _check(dist: Dist, slot: str, building: Path, entry: dict, report: Report) -> None:
    """Check a library that is not in its place yet: for that its hidden folder is a dist of the same parameters."""
    from .check import check_target_numerics

    params = dist.manifest["params"]
    params = {**params, "files": [str((dist.path / file).resolve()) for file in params["files"]]}
    targets = {slot: {**entry, "library": Path(entry["library"]).name}}
    write_json(building / MANIFEST, {**dist.manifest, "params": params, "targets": targets})
    check_target_numerics(dist, slot, report, built=building)
    (building / MANIFEST).unlink()


def _inspect(target, name: str, executable, report: Report, table: Table | None) -> None:
    """Let the target check the code it made (MlcrtError refuses it), and hand on what it says of each kernel."""
    inspect = getattr(target, "inspect", None)
    if inspect is not None:
        rows = inspect(executable.mod, report)
        if table is not None:
            table(f"kernels for {name}", rows)
    elif table is not None:
        report(f"--report: nothing is known about the code for {name}")


def _require_space(folder: Path, size: int) -> None:
    """OSError unless `size` bytes fit in `folder`: LLVM ends the whole process when it cannot write an object."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
