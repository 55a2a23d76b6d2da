"""Hidden folders in which things are made before they take their place, and what becomes of those left behind.

A process that fills a folder holds a lock on it (flock), which ends with the process however it ends. So a hidden
folder that nobody holds belongs to nobody, on this machine or in another container of it, and the next run removes it.
Where there are no such locks (Windows, some network file systems) nothing is ever taken for abandoned.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_SUFFIX, _OLD = ".building", ".old"
_PATTERN = re.compile(rf"\.(?P<name>.+)\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}(?P<old>{re.escape(_OLD)})?")

_OWN: set[tuple[int, int] | None] = set()  # the scratch folders this process holds


@contextlib.contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `parent`, meant to become parent/name, locked and at last removed. Raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_SUFFIX, dir=parent))
        lock = _lock(folder, wait=True)
        if folder.exists():  # a sweep may have come between the two lines above
            break
        _unlock(lock)
    own = _identity(folder)
    _OWN.add(own)
    try:
        os.chmod(folder, 0o755)
        yield folder
    finally:
        _OWN.discard(own)
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold `folder` against others that ask for the same; false if this file system has no such locks."""
    if _identity(folder) in _OWN:  # a scratch folder is a parent too while something is made in it
        yield True
        return
    lock = _lock(folder, wait=True)
    try:
        yield lock is not None
    finally:
        _unlock(lock)


def put_in_place(beside: Path, path: Path, commit: Callable[[], None] = lambda: None) -> None:
    """Rename folder `beside` to `path`. Whatever stops it before `commit` has returned leaves what was at `path`.

    To be called under `locked(path.parent)`.
    """
    old = beside.with_name(f"{beside.name}{_OLD}")
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
        commit()
    except BaseException:  # an interrupt may have come between any two of these: look what was done
        if not beside.exists():
            os.replace(path, beside)
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sweep(parent: Path, good: Callable[[Path, str], bool] | None = None) -> None:
    """Remove what processes that are gone left in `parent`.

    A folder that one of them had moved aside goes back if nothing took its place, or if `good(folder, name)` says that
    what did is not the one to keep. Never raises: a folder that cannot be removed stays.
    """
    with contextlib.suppress(OSError), locked(parent) as sure:
        if not sure:
            return
        for path in sorted(parent.iterdir()):
            found = _PATTERN.fullmatch(path.name)
            if found is None or path.is_symlink() or not path.is_dir():
                continue
            if found["old"]:  # moved aside under the lock that is ours now, so its owner is gone
                place = parent / found["name"]
                if place.exists() and (good is None or good(place, place.name) or not good(path, place.name)):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    shutil.rmtree(place, ignore_errors=True)
                    os.replace(path, place)
                continue
            lock = _lock(path, wait=False)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                _unlock(lock)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock; None if another has it, or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
