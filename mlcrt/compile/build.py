"""`mlcrt compile`: a dist folder's decoder → one library per target inside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlcrt.dist import LIBRARY_ABI, Dist, check_target, is_dist, open_dist, put_in_place, sha256
from mlcrt.errors import MlcrtError
from mlcrt.quant.model import converted, float_kind, silent
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets import all_targets, parse_target, parse_targets
from mlcrt.version import __version__

from .interrupt import keep_interrupts

OBJECT_SPACE = 32 << 20  # bytes that a library and its objects surely fit; they take about 1 MB
Report = Callable[[str], None]
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
    table: Table | None = None,
) -> Path:
    """Convert `model` unless that is done, and compile it for every target of the comma-separated list; the folder.

    table(title, rows) is called with one dictionary per kernel for each target that can look into its code.
    """
    chosen = parse_targets(targets)
    folder = _dist_folder(model, quantization, out, dist_root, report)
    for name, arch in chosen:
        compile_target(open_dist(folder), name, arch, dump_ir, context, report, table)
        if check:
            from .check import check_target_numerics

            check_target_numerics(open_dist(folder), name, report)
    return folder


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
    if name in dist.manifest["targets"]:
        try:
            check_target(dist, name)
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
    table: Table | None = None,
) -> None:
    """Compile an opened folder for one target; its library and its entry in the manifest replace those there."""
    import tvm

    if tvm.base._RUNTIME_ONLY:
        raise MlcrtError(
            "this installation has TVM's runtime only (or TVM_USE_RUNTIME_LIB is set), and compiling needs its"
            " compiler; install apache-tvm whole, or compile elsewhere and copy the folder"
        )
    from .pipeline import compile_decoder

    started = time.perf_counter()
    target = all_targets()[name]
    attributes = target.attributes(arch)
    library = target.library(attributes, attributes.kv_dtype(float_kind(dist)))
    schemes = dist.manifest["schemes"]

    def scheme_of(parameter: str):
        return SCHEMES[schemes[parameter]].row_major()

    executable, parameters, workspace = compile_decoder(
        dist.config,
        scheme_of,
        tvm.target.Target(attributes.tvm_target()),
        library,
        dump_ir,
        lambda phase: report(f"compiling for {name} ({attributes.name}): {phase}"),
    )
    _inspect(target, name, executable, report, table)
    with _target_folder(dist, name) as building:
        _require_space(building, OBJECT_SPACE)
        file = building / "lib.so"
        with tempfile.TemporaryDirectory(dir=building) as objects:
            executable.export_library(str(file), workspace_dir=objects, **target.export_options(attributes))
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
            "chunk": library.chunk,
            "score_chunk": library.score_chunk,
            "kv_dtype": library.kv_dtype,
            "kv_block": library.kv_block,
            "kv_layout": library.kv_layout,
            "workspace_bytes": workspace,
        }
        dist.manifest["targets"][name] = entry
    from mlcrt.runtime.memory import plan_memory

    report(f"compiled {dist.path / entry['library']} in {time.perf_counter() - started:.1f} s")
    report(plan_memory(dist, entry, context).text())


def _inspect(target, name: str, executable, report: Report, table: Table | None) -> None:
    """Let the target check the code it made (MlcrtError refuses it), and hand on what it says of each kernel."""
    inspect = getattr(target, "inspect", None)
    if inspect is not None:
        rows = inspect(executable.mod)
        if table is not None:
            table(f"kernels for {name}", rows)
    elif table is not None:
        report(f"--report: nothing is known about the code for {name}")


@contextlib.contextmanager
def _target_folder(dist: Dist, name: str) -> Iterator[Path]:
    """Fill a folder beside; it replaces dist/name, and the manifest is saved, when the block succeeds."""
    place = dist.path / name
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=dist.path))
    except OSError as error:
        raise MlcrtError(f"{dist.path} cannot be written: {error.strerror or error}") from None
    try:
        os.chmod(beside, 0o755)
        yield beside
        put_in_place(beside, place, dist.save)
    except OSError as error:
        raise MlcrtError(f"{place} cannot be written: {error.strerror or error}; nothing was changed") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _require_space(folder: Path, size: int) -> None:
    """OSError unless `size` bytes fit in `folder`: LLVM ends the whole process when it cannot write an object."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
