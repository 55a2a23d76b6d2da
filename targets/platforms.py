"""The systems that a library's host code can be for: instruction set and operating system."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from mlcrt.targets import host_machine


@dataclass(frozen=True)
class Platform:
    """triple: as LLVM takes it; library: file name of a shared library there; text: as a person says it."""

    triple: str
    library: str
    text: str


PLATFORMS = {
    "x86_64-linux": Platform("x86_64-unknown-linux-gnu", "lib.so", "x86-64 Linux"),
    "aarch64-linux": Platform("aarch64-unknown-linux-gnu", "lib.so", "ARM64 Linux"),
    "x86_64-windows": Platform("x86_64-pc-windows-msvc", "lib.dll", "x86-64 Windows"),
    "aarch64-macos": Platform("arm64-apple-macos13", "lib.dylib", "ARM64 macOS"),
}
DEFAULT = "x86_64-linux"  # of manifests written before there was another
_SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}


def platform_of(library: Path) -> str:
    """The platform that a shared library is for, by its first bytes; DEFAULT if they are of none of PLATFORMS."""
    with open(library, "rb") as file:
        head = file.read(1024)
    if head[:8] == bytes.fromhex("cffaedfe 0c000001"):  # MH_MAGIC_64, CPU_TYPE_ARM64
        return "aarch64-macos"
    if head[:2] == b"MZ":  # the machine is not asked: there is one Windows
        return "x86_64-windows"
    if head[:4] == b"\x7fELF" and head[18:20] == b"\xb7\x00":  # EM_AARCH64
        return "aarch64-linux"
    return DEFAULT


def host_system() -> str:
    """linux, macos or windows; another system's own name in lower case."""
    return _SYSTEMS.get(platform.system(), platform.system().lower())


def host_platform() -> str:
    """This machine as a key of PLATFORMS; not one of them where nothing can run."""
    return f"{host_machine()}-{host_system()}"


def foreign(entry: dict) -> str | None:
    """Why the host code of a library (its entry in the manifest) cannot run here, or None: 'is for … and …'."""
    made, here = entry.get("platform", DEFAULT), host_platform()
    if made == here:
        return None
    return f"is for {_text(made)} and this machine is {_text(here)}"


def _text(name: str) -> str:
    return PLATFORMS[name].text if name in PLATFORMS else str(name)
