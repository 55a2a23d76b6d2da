"""Which Macs a library is for."""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError

MACOS = "13.0"  # the oldest macOS that loads a library: the first with Metal 3
THREADGROUP_BYTES = 32 << 10  # threadgroup memory of every Apple GPU (Metal feature set tables, Apple7 and later)
_NAME = "apple-m1"  # its instructions and its GPU family (Apple7: simdgroup matrices) are those of every later chip


@dataclass(frozen=True)
class MetalArch:
    """name: the oldest chip the library runs on."""

    name: str = _NAME
    features: tuple[str, ...] = ()
    library_file: str = "lib.dylib"

    def kv_dtype(self, wanted: str) -> str:
        return wanted

    def tvm_target(self) -> dict:
        return {
            "kind": "metal",
            "max_threads_per_block": 1024,
            "max_num_threads": 256,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": THREADGROUP_BYTES,
            "max_function_args": 31,
            "host": {"kind": "llvm", "mtriple": f"arm64-apple-macos{MACOS}", "mcpu": self.name},
        }


def attributes(arch: str = "") -> MetalArch:
    """'' or 'apple-m1': any Mac with Apple silicon."""
    if arch not in ("", _NAME):
        raise UsageError(f"unknown Metal architecture '{arch}': choose {_NAME}, which every Apple-silicon Mac runs")
    return MetalArch()


def missing_features(features: list[str]) -> list[str]:
    return []
