"""A dist folder: parameters, tokenizer, one library per target, and `mlcrt.json`, the only configuration there is.

    dist/NAME-QUANTIZATION/
        mlcrt.json  params-*.safetensors  tokenizer.json  tokenizer_config.json
        TARGET/lib.so                      the library for a target, as compiled first
        TARGET-ARCH/lib.so                 those for other architectures of it (lib.dll, lib.dylib for other systems)

In mlcrt.json, "targets" maps a library's slot, TARGET or TARGET:ARCH, to its entry. Folders appear whole: they are
filled under a hidden name beside and renamed; mlcrt.json is replaced in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mlcrt.errors import MlcrtError
from mlcrt.models import DecoderConfig
from mlcrt.scratch import locked, put_in_place, scratch_folder, sweep
from mlcrt.version import __version__

FORMAT = 1  # of mlcrt.json and the parameter files
LIBRARY_ABI = 3  # of the functions in a library and the state they share with the engine
MANIFEST = "mlcrt.json"
_ENTRY = {  # what the engine reads of a target's entry in the manifest
    "library", "sha256", "signature", "abi", "mlcrt", "tvm", "arch", "features", "parameters", "chunk", "kv_dtype",
    "kv_block", "kv_layout", "score_chunk", "workspace_bytes", "batch",
}  # fmt: skip


@dataclass
class Dist:
    """An opened dist folder: `manifest` is mlcrt.json as a dictionary."""

    path: Path
    manifest: dict

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_dict(self.manifest["config"])

    @property
    def name(self) -> str:
        return self.manifest["name"]

    def save(self) -> None:
        write_json(self.path / MANIFEST, self.manifest)


def is_dist(path: Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def open_dist(path: Path) -> Dist:
    """Read and check mlcrt.json; MlcrtError says what does not fit and what to do."""
    path = Path(path)
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"]
    except FileNotFoundError:
        raise MlcrtError(f"{path} is not a compiled model (no {MANIFEST}); make one with mlcrt compile") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(file) from None
    if found != FORMAT:
        raise MlcrtError(
            f"{path} was made by mlcrt {manifest.get('mlcrt', '?')} in format {found}, and mlcrt {__version__} reads"
            f" format {FORMAT}; make it again with mlcrt compile"
        )
    for name in ("name", "config", "schemes", "params", "targets"):
        if name not in manifest:
            raise MlcrtError(f"{file} lacks '{name}'; make the folder again with mlcrt compile")
    dist = Dist(path, manifest)
    try:
        files = [path / name for name in manifest["params"]["files"]]
        complete = dist.config and manifest["params"]["signature"]
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete or not isinstance(manifest["targets"], dict) or not isinstance(manifest["schemes"], dict):
        raise _damaged(file)
    for name in files:
        if not name.is_file():
            raise MlcrtError(f"{name} is missing; make the folder again with mlcrt convert")
    return dist


def _damaged(file: Path) -> MlcrtError:
    return MlcrtError(f"{file} is damaged; make the folder again with mlcrt compile")


def compile_again(dist: Dist, slot: str) -> str:
    """What to do about a library that cannot be used, the end of a sentence."""
    return f"compile again with mlcrt compile {dist.path} --target {slot}"


def check_target(dist: Dist, target: str) -> dict:
    """The manifest's entry of a slot, after checking that its library fits the params and this runtime."""
    entry = dist.manifest["targets"].get(target)
    again = compile_again(dist, target)
    if entry is None:
        have = ", ".join(dist.manifest["targets"]) or "none"
        raise MlcrtError(f"{dist.path} has no library for {target} (it has: {have}); {again}")
    try:
        library, maker, abi = dist.path / entry["library"], entry["mlcrt"], entry["abi"]
        complete = abi != LIBRARY_ABI or entry.keys() >= _ENTRY
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise _damaged(dist.path / MANIFEST)
    if abi != LIBRARY_ABI:
        raise MlcrtError(f"{library} was made by another mlcrt ({maker}, this is {__version__}); {again}")
    if not library.is_file():
        raise MlcrtError(f"{library} is missing; {again}")
    installed = metadata.version("apache-tvm")  # without importing it: the caller may want its runtime alone
    if entry["tvm"] != installed:
        raise MlcrtError(f"{library} needs apache-tvm {entry['tvm']}, installed is {installed}; {again}")
    if entry["signature"] != dist.manifest["params"]["signature"]:
        raise MlcrtError(f"{library} was made for other parameters than those in {dist.path}; {again}")
    if sha256(library) != entry["sha256"]:
        raise MlcrtError(f"{library} is not the file that was compiled (its hash differs); {again}")
    return entry


def signature(specs: list, config: DecoderConfig) -> str:
    """A hash of what a library and its parameters have to agree on: names, shapes, dtypes and the architecture."""
    shapes = sorted([name, list(shape), dtype] for name, shape, dtype in specs)
    settings = config.to_dict()
    text = json.dumps([FORMAT, shapes, settings], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, data: dict) -> None:
    """Replace `path` in one step; a full disk leaves the old file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its place (replacing what was there) if the block succeeds."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
    except OSError as error:
        raise MlcrtError(f"{path} cannot be created: {error.strerror or error}") from None
    try:
        with scratch_folder(path.parent, path.name) as beside:
            yield beside
            with locked(path.parent):
                put_in_place(beside, path)
    except OSError as error:
        raise MlcrtError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from None


@contextlib.contextmanager
def new_library(dist: Dist, slot: str) -> Iterator[tuple[Path, dict]]:
    """A hidden folder for a library's files, and an empty entry of the manifest, both for the block to fill.

    If it succeeds, the folder replaces that of `slot` and the manifest has the entry. The manifest is read anew for
    that: another process may have added a library to the same folder meanwhile.
    """
    place = dist.path / folder_of(slot)
    try:
        sweep_libraries(dist)
        with scratch_folder(dist.path, place.name) as beside:
            entry: dict = {}
            yield beside, entry
            with locked(dist.path):
                now = open_dist(dist.path)
                if now.manifest["params"]["signature"] != dist.manifest["params"]["signature"]:
                    raise MlcrtError(f"{dist.path} was converted anew while {slot} was compiled; compile it again")
                now.manifest["targets"][slot] = entry
                put_in_place(beside, place, now.save)
                dist.manifest["targets"][slot] = entry
    except OSError as error:
        raise MlcrtError(f"{place} cannot be written: {error.strerror or error}; nothing was changed") from None


def sweep_libraries(dist: Dist) -> None:
    """Remove what broken-off compilations left in the folder; a library moved aside comes back if it is the one the
    manifest means."""
    entries = {folder_of(slot): entry for slot, entry in dist.manifest["targets"].items()}

    def good(folder: Path, name: str) -> bool:
        with contextlib.suppress(OSError, KeyError, TypeError):
            return sha256(folder / Path(entries[name]["library"]).name) == entries[name]["sha256"]
        return False

    sweep(dist.path, good)
    with contextlib.suppress(OSError), locked(dist.path) as sure:  # who writes the manifest holds this lock
        for file in dist.path.glob(f".{MANIFEST}.*") if sure else ():
            file.unlink()


def folder_of(slot: str) -> str:
    """The folder of a library: 'cpu:aarch64-linux' → 'cpu-aarch64-linux'."""
    return slot.replace(":", "-")
