"""A package (see mlcrt.package) → a dist folder in the cache, unpacked and verified once.

Only the archives that mlcrt writes are read: regular files, in the order in which package.json lists them, each of the
listed size and hash, with nothing before, between or after them. Everything lands in a hidden folder that is renamed
when all of it is right. That says the archive is whole; it does not say who made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError
from mlcrt.scratch import locked, put_in_place, scratch_folder, sweep
from mlcrt.targets.native import cache_folder

from .package import FORMAT, INDEX, NAME, SUFFIX, TRAILER, VERSION

# Magic number, a descriptor that promises a checksum and nothing else, and the window of the level packages have.
_FRAME = bytes.fromhex("28b52ffd 04 58")
_STAMP = "stamp.json"  # beside the unpacked folder: size and time of each file when it was verified
_BLOCK, _RECORD = 512, 10240  # of tar
_PIECE = 1 << 20
_COMPRESSED = 4096  # bytes decompressed at a time: they can become 128 MB at most
_MOST_INDEX = 1 << 20  # bytes of package.json
_REMEDY = "fetch or package it again"


class _Damaged(Exception):
    """What is wrong with the archive."""


def is_package(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that calls itself a package or, whatever its name, begins as one."""
    if not Path(path).is_file():
        return False
    if str(path).endswith(SUFFIX):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(_FRAME)) == _FRAME
    except OSError:
        return False


def unpacked(path: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """The dist folder of a package, in the cache; unpacked now unless it is there already.

    MlcrtError if the archive is damaged, of a later version, or does not fit on the disk.
    """
    store = cache_folder() / "packages"
    try:
        known = _known(store, path)
        if known is not None:
            return known
        store.mkdir(parents=True, exist_ok=True)
        sweep(store)
        report(f"unpacking {path}")
        with scratch_folder(store, "new") as beside:
            digest, top = _unpack(path, beside)
            place = store / digest
            with locked(store):
                if not _intact(place):  # else another process was faster, or the file is a copy
                    put_in_place(beside, place)
            _remember(store, path, digest)
        return place / top
    except _Damaged as problem:
        raise MlcrtError(f"{path} is not a whole mlcrt package ({problem}); {_REMEDY}") from None
    except OSError as error:
        where = error.filename or store
        raise MlcrtError(
            f"{path} cannot be unpacked to {store}: {where}: {error.strerror or error};"
            " make room, or set MLCRT_CACHE to another folder"
        ) from None


def _unpack(path: Path, folder: Path) -> tuple[str, str]:
    """(SHA-256 of the archive, name of the folder inside), with the verified files in `folder`."""
    with open(path, "rb") as file:
        archive = _Archive(file)
        name, size = archive.header()
        top, _, rest = name.partition("/")
        if rest != INDEX or not NAME.fullmatch(top) or size > _MOST_INDEX:
            raise _Damaged(f"it does not begin with {INDEX}")
        listed = _listed(archive.read(size))
        archive.skip_padding(size)
        total, free = sum(entry["bytes"] for entry in listed.values()), shutil.disk_usage(folder).free
        if total > free:
            raise MlcrtError(
                f"{path} takes {total / 1e9:.1f} GB unpacked, and {free / 1e9:.1f} GB are free in {folder.parent};"
                " make room, or set MLCRT_CACHE to another folder"
            )
        stamp = {}
        for name, entry in listed.items():
            if archive.header() != (f"{top}/{name}", entry["bytes"]):
                raise _Damaged(f"{name} is not where {INDEX} says")
            target = folder / top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                digest = archive.copy(entry["bytes"], out)
                out.flush()
                os.fsync(out.fileno())
            if digest != entry["sha256"]:
                raise _Damaged(f"the hash of {name} differs")
            archive.skip_padding(entry["bytes"])
            status = target.stat()
            stamp[f"{top}/{name}"] = [status.st_size, status.st_mtime_ns]
        archive.finish()
        _check_manifest(folder / top, listed)
        (folder / _STAMP).write_text(json.dumps({"top": top, "files": stamp}))
        return archive.digest.hexdigest(), top


def _listed(data: bytes) -> dict[str, dict[str, Any]]:
    """The files that package.json lists, checked."""
    try:
        index = json.loads(data)
        kind, version = index["format"], index["version"]
        if kind == FORMAT and version != VERSION:
            raise MlcrtError(f"this package has version {version}, and this mlcrt reads {VERSION}; update mlcrt")
        files = dict(index["files"])
        right = kind == FORMAT and list(files) == sorted(files) and files
        for name, entry in files.items():
            parts = name.split("/")
            if not all(NAME.fullmatch(part) for part in parts) or len(parts) > 2:
                raise _Damaged(f"it has a file named {name!r}")
            right = right and type(entry["bytes"]) is int and entry["bytes"] >= 0 and len(entry["sha256"]) == 64
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise _Damaged(f"its {INDEX} cannot be read")
    return files


def _check_manifest(folder: Path, listed: dict[str, Any]) -> None:
    """The manifest may name files of the package only."""
    try:
        manifest = open_dist(folder).manifest
        named = [*manifest["params"]["files"], *(entry["library"] for entry in manifest["targets"].values())]
    except (MlcrtError, KeyError, TypeError, AttributeError):
        raise _Damaged("its mlcrt.json is not one, or files that it names are missing") from None
    for name in named:
        if name not in listed:
            raise _Damaged(f"its mlcrt.json names {name!r}, which is not in it")


class _Archive:
    """The tar stream inside the zstd frame of an open file; `digest` hashes the compressed bytes.

    The hash at the end of the file is compared when all is read: a bit may differ that decompressing does not notice.
    """

    def __init__(self, file):
        import zstandard

        self.file, self.digest, self.data = file, hashlib.sha256(), bytearray()
        self.left = os.fstat(file.fileno()).st_size - len(TRAILER) - hashlib.sha256().digest_size
        head = self._read(len(_FRAME))
        if head != _FRAME:
            raise _Damaged("it does not begin as one")
        self._error = zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._feed(head)

    def _read(self, size: int) -> bytes:
        """The next bytes before the trailer."""
        data = self.file.read(min(size, max(0, self.left)))
        self.left -= len(data)
        return data

    def _feed(self, compressed: bytes) -> None:
        self.digest.update(compressed)
        try:
            self.data += self._frame.decompress(compressed)
        except self._error:
            raise _Damaged("the compressed data is damaged") from None
        if self._frame.unused_data:
            raise _Damaged("there is more after its end")

    def _fill(self, size: int) -> bool:
        """Have `size` bytes in `data`; false if the archive ends before."""
        while len(self.data) < size:
            if self._frame.eof:
                return False
            compressed = self._read(_COMPRESSED)
            if not compressed:
                raise _Damaged("it is cut off")
            self._feed(compressed)
        return True

    def read(self, size: int) -> bytes:
        if not self._fill(size):
            raise _Damaged("it ends too early")
        data = bytes(self.data[:size])
        del self.data[:size]
        return data

    def copy(self, size: int, out) -> str:
        """Write the next `size` bytes to `out`; their SHA-256."""
        digest = hashlib.sha256()
        while size:
            piece = self.read(min(size, _PIECE))
            size -= len(piece)
            digest.update(piece)
            out.write(piece)
        return digest.hexdigest()

    def header(self) -> tuple[str, int]:
        """Name and size of the next member, which has to be a regular file as mlcrt writes it."""
        block = self.read(_BLOCK)
        stated = block[148:156]
        summed = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
        size = block[124:136]
        try:
            if int(stated.rstrip(b"\0 "), 8) != summed:
                raise ValueError
            name = block[:100].rstrip(b"\0").decode("ascii")
            count = int.from_bytes(size[1:], "big") if size[0] == 0x80 else int(size.rstrip(b"\0 "), 8)
        except ValueError:
            raise _Damaged("a header in it is damaged") from None
        if block[156:157] != b"0" or block[257:265] != b"ustar  \0" or any(block[157:257]) or any(block[345:]):
            raise _Damaged(f"{name!r} in it is no regular file")
        return name, count

    def skip_padding(self, size: int) -> None:
        if any(self.read(-size % _BLOCK)):
            raise _Damaged("there is something between its files")

    def finish(self) -> None:
        """Nothing but the zeros of tar's last record may follow."""
        zeros = 0
        while self._fill(1):
            zeros += len(self.data)
            if zeros > 2 * _RECORD or any(self.data):
                raise _Damaged("there is more after its files")
            self.data.clear()
        if self.left or self.file.read() != TRAILER + self.digest.digest():
            raise _Damaged("it does not end with its hash")


def _fingerprint(path: Path) -> list:
    status = os.stat(path)
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]


def _note(store: Path, path: Path) -> Path:
    return store / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _known(store: Path, path: Path) -> Path | None:
    """The folder that this very file was unpacked to, if nothing touched either since."""
    try:
        note = json.loads(_note(store, path).read_text())
        if note["file"] != _fingerprint(path):
            return None
        place = store / note["digest"]
        return place / _intact(place) if _intact(place) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(store: Path, path: Path, digest: str) -> None:
    note = _note(store, path)
    beside = note.with_name(f".{note.name}.{os.getpid()}")
    beside.write_text(json.dumps({"file": _fingerprint(path), "digest": digest}))
    os.replace(beside, note)


def _intact(place: Path) -> str | None:
    """The name of the folder in `place`, if its files have the sizes and times they had when they were verified."""
    try:
        stamp = json.loads((place / _STAMP).read_text())
        for name, (size, time) in stamp["files"].items():
            status = os.stat(place / name)
            if (status.st_size, status.st_mtime_ns) != (size, time):
                return None
        return stamp["top"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
