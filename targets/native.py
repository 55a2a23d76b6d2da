"""C++ sidecars: device runtimes that the stock TVM wheel does not have, compiled on this machine against its headers.

A sidecar is built once per source text, TVM version and compiler, into a cache (MLCRT_CACHE, else the user's cache
folder), and loaded with its symbols global. `python -m mlcrt.targets.native` builds all of them, which is what an
installation does when there is a compiler; otherwise the first use builds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlcrt.errors import MlcrtError

_LOADED: dict[str, ctypes.CDLL] = {}


@dataclass(frozen=True)
class Sidecar:
    """name: file stem of the library; folder: its C++ sources (*.cc, *.h); flags: more options for the compiler."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ()

    @property
    def sources(self) -> list[Path]:
        return sorted(self.folder.glob("*.cc"))


def cache_folder() -> Path:
    """Where things that can be made again are kept."""
    chosen = os.environ.get("MLCRT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlcrt"


def compiler() -> str | None:
    """CXX, g++, clang++ or c++: one with the wheel's standard library (libstdc++), whose exceptions cross it."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def native_missing(sidecar: Sidecar) -> str | None:
    """Why the sidecar can neither be loaded nor built, if so: one sentence."""
    if _library_file(sidecar).is_file() or compiler():
        return None
    return f"the {sidecar.name} runtime is C++ and is compiled at first use, and there is no C++ compiler; install g++"


def build_native(sidecar: Sidecar) -> Path:
    """The compiled sidecar, built first unless the cache has it. MlcrtError without a compiler or when it fails."""
    library = _library_file(sidecar)
    if library.is_file():
        return library
    missing = native_missing(sidecar)
    if missing:
        raise MlcrtError(missing)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            beside = Path(scratch, library.name)
            result = subprocess.run([compiler(), *_flags(sidecar), "-o", str(beside)], capture_output=True, text=True)
            if result.returncode:
                lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
                raise MlcrtError(f"the {sidecar.name} runtime does not compile here: {lines[0]}")
            os.replace(beside, library)
    except OSError as error:
        reason = error.strerror or error
        raise MlcrtError(f"{library.parent} cannot be written ({reason}); set MLCRT_CACHE to another folder") from None
    return library


def load_native(sidecar: Sidecar) -> ctypes.CDLL:
    """The sidecar, loaded once per process; loading registers what it offers with TVM."""
    if sidecar.name not in _LOADED:
        import tvm  # noqa: F401  the sidecar finds TVM's libraries already in the process

        path = build_native(sidecar)
        try:
            _LOADED[sidecar.name] = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MlcrtError(f"{path} cannot be loaded ({error}); delete it and try again") from None
    return _LOADED[sidecar.name]


def _library_file(sidecar: Sidecar) -> Path:
    import tvm
    import tvm_ffi

    digest = hashlib.sha256(f"{tvm.__version__} {tvm_ffi.__version__} {sidecar.flags}".encode())
    for file in sorted(sidecar.folder.glob("*.[ch]*")):
        digest.update(file.name.encode() + file.read_bytes())
    return cache_folder() / "native" / f"lib{sidecar.name}-{digest.hexdigest()[:16]}.so"


def _flags(sidecar: Sidecar) -> list[str]:
    import tvm
    from tvm_ffi import libinfo

    tvm_folder = Path(tvm.__file__).parent
    includes = [tvm_folder / "include", *map(Path, libinfo.include_paths())]
    return [
        *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall"),
        *(f"-I{folder}" for folder in includes),
        *sidecar.flags,
        *map(str, sidecar.sources),
        *(f"-L{tvm_folder / 'lib'}", "-ltvm_runtime"),
        *(f"-L{Path(libinfo.find_libtvm_ffi()).parent}", "-ltvm_ffi", "-ldl"),
    ]


def _all_sidecars() -> list[Sidecar]:
    from mlcrt.targets import all_targets

    return [s for module in all_targets().values() if (s := getattr(module, "SIDECAR", None))]


def main() -> int:
    """Build every target's sidecar; a missing compiler is said and is no failure."""
    for sidecar in _all_sidecars():
        try:
            print(f"built {build_native(sidecar).name}", file=sys.stderr)
        except MlcrtError as error:
            print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
