"""`mlcrt package`: a dist folder with chosen libraries as one file, whose bytes depend on its contents alone.

A tar archive (GNU format: https://www.gnu.org/software/tar/manual/html_node/Standard.html) in one zstd frame with a
checksum, and a skippable frame with the SHA-256 of all before it (https://www.rfc-editor.org/rfc/rfc8878). All files
lie in one folder that works when it is unpacked by hand. The first is package.json, with the size and SHA-256 of the
others, which follow in order of their names. Owners, times and modes are fixed; what only the machine that converted
knows (which source files, when) is left out.
`mlcrt.unpack` reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from mlcrt.dist import MANIFEST, Dist, compile_again, open_dist, sha256
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.scratch import scratch_folder, sweep
from mlcrt.select import slots_of
from mlcrt.targets import all_targets, split_targets

FORMAT, VERSION = "mlcrt package", 1
INDEX = "package.json"
SUFFIX = ".tar.zst"
LEVEL = 3  # of zstd, on one thread: more takes long and quantised weights hardly shrink
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
NAME = re.compile(r"[A-Za-z0-9_+=@,-][A-Za-z0-9_.+=@,-]*")  # of a folder or file inside
TRAILER = bytes.fromhex("502a4d18 20000000")  # a skippable frame of 32 bytes, which other programs pass over
_BLOCK = 1 << 20
_LONGEST_NAME = 100  # what a tar header holds without extensions


def write_package(
    folder: Path,
    targets: str | None = None,
    output: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Pack the dist `folder` with the libraries of `targets` (a list as for compile; all of them by default).

    The file is `output` or FOLDER.tar.zst here. Raises MlcrtError, having written nothing, for a library that is not
    there or is not the one that was compiled, and if the output cannot be written.
    """
    dist = open_dist(folder)
    slots = chosen_slots(dist, targets)
    output = Path(output) if output else Path(f"{dist.path.resolve().name}{SUFFIX}")
    manifest = {k: v for k, v in dist.manifest.items() if k != "source"}
    manifest["targets"] = {slot: dist.manifest["targets"][slot] for slot in slots}
    contents: dict[str, bytes | Path] = {MANIFEST: _json(manifest)}
    names = [*TOKENIZER, *dist.manifest["params"]["files"], *(_checked_library(dist, slot) for slot in slots)]
    contents |= {name: dist.path / name for name in names if name not in TOKENIZER or (dist.path / name).is_file()}
    index = {"format": FORMAT, "version": VERSION, "files": {}}
    for name in sorted(contents):
        data = contents[name]
        if isinstance(data, bytes):
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        else:
            entry = {"bytes": data.stat().st_size, "sha256": sha256(data)}
        index["files"][name] = entry
    top = _top(dist, names)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep(output.parent)
        with scratch_folder(output.parent, output.name) as beside:
            with open(beside / output.name, "wb") as file:
                hashed = _Hashed(file)
                _write(hashed, top, index, contents, report)
                file.write(TRAILER + hashed.digest.digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside / output.name, output)
    except OSError as error:
        raise MlcrtError(f"{output} cannot be written: {error.strerror or error}") from None
    report(f"packed {len(contents)} files, {', '.join(slots)}: {output.stat().st_size / 1e6:,.1f} MB")
    return output


def chosen_slots(dist: Dist, targets: str | None) -> list[str]:
    """The slots of a list such as 'metal,cpu' or 'cpu:aarch64-linux': all of a target, or an architecture's."""
    have = dist.manifest["targets"]
    if not have:
        raise MlcrtError(f"{dist.path} has no library to package; make one with mlcrt compile {dist.path} --target T")
    if targets is None:
        return sorted(have)
    chosen: set[str] = set()
    for name, arch in split_targets(targets):
        if name == "auto":
            raise UsageError("a package is for machines unknown here: name its targets instead of --target auto")
        slots = slots_of(have, name)
        if arch:
            wanted = all_targets()[name].attributes(arch).name
            slots = [slot for slot in slots if have[slot].get("arch") == wanted]
        if not slots:
            asked = f"{name}:{arch}" if arch else name
            raise MlcrtError(
                f"{dist.path} has no library for {asked} (it has: {', '.join(have)}); add it with"
                f" mlcrt compile {dist.path} --target {asked}"
            )
        chosen.update(slots)
    return sorted(chosen)


def _checked_library(dist: Dist, slot: str) -> str:
    entry = dist.manifest["targets"][slot]
    again = compile_again(dist, slot)
    library = dist.path / entry["library"]
    if not library.is_file():
        raise MlcrtError(f"{library} is missing; {again}")
    if sha256(library) != entry["sha256"]:
        raise MlcrtError(f"{library} is not the file that was compiled (its hash differs); {again}")
    if entry["signature"] != dist.manifest["params"]["signature"]:
        raise MlcrtError(f"{library} was made for other parameters than those in {dist.path}; {again}")
    return entry["library"]


def _top(dist: Dist, names: list[str]) -> str:
    """The folder inside: named as the one on disk, if that is a plain name that leaves room for its files' names."""
    name = dist.path.resolve().name
    fits = len(name) + 1 + max(map(len, [*names, INDEX])) <= _LONGEST_NAME
    return name if NAME.fullmatch(name) and fits else "model"


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _write(file, top: str, index: dict, contents: dict[str, bytes | Path], report: Callable[[str], None]) -> None:
    import zstandard

    total = sum(entry["bytes"] for entry in index["files"].values())
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=False)
    done, told = 0, 0
    with (
        compressor.stream_writer(file, closefd=False, write_size=_BLOCK) as frame,
        tarfile.open(fileobj=frame, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_BLOCK) as archive,
    ):
        _add(archive, f"{top}/{INDEX}", io.BytesIO(data := _json(index)), len(data))
        for name, entry in index["files"].items():
            data = contents[name]
            with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as source:
                hashed = _Hashed(source)
                _add(archive, f"{top}/{name}", hashed, entry["bytes"])
            if hashed.digest.hexdigest() != entry["sha256"]:
                raise MlcrtError(f"{contents[name]} changed while it was packed; try again")
            done += entry["bytes"]
            if total > 100e6 and done * 10 // total > told:
                told = done * 10 // total
                report(f"packing: {done / total:.0%}")


def _add(archive: tarfile.TarFile, name: str, source, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    archive.addfile(info, source)


class _Hashed:
    """A file whose bytes are hashed as they are read or written."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)
