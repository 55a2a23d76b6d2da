"""What a CPU library may assume of the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine

# Flags as Linux prints them in /proc/cpuinfo → the name LLVM gives the feature.
_LEVELS = {
    "x86-64": {},
    "x86-64-v2": {
        "cx16": "cx16", "lahf_lm": "sahf", "popcnt": "popcnt", "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
    },
    "x86-64-v3": {
        "avx": "avx", "avx2": "avx2", "bmi1": "bmi", "bmi2": "bmi2", "f16c": "f16c", "fma": "fma", "abm": "lzcnt",
        "movbe": "movbe", "xsave": "xsave",
    },
    "x86-64-v4": {
        "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
    },
}  # fmt: skip
# Beyond the levels: what `native` adds when the machine has it.
_EXTRAS = {
    "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg", "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni", "gfni": "gfni", "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq", "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
}  # fmt: skip


@dataclass(frozen=True)
class CpuArch:
    """name: what the user typed, resolved; features: cpuinfo flags the library needs; lanes: float32 per register."""

    name: str
    level: str
    features: tuple[str, ...]
    llvm_features: tuple[str, ...]
    lanes: int
    registers: int

    @property
    def native_f16(self) -> bool:
        """Whether float16 loads convert in hardware (F16C)."""
        return "f16c" in self.features

    def kv_dtype(self, wanted: str) -> str:
        """float16 KV needs F16C; without it the cache stays float32."""
        return wanted if self.native_f16 else "float32"

    def tvm_target(self) -> dict:
        mattr = [f"+{f}" for f in self.llvm_features]
        if self.lanes == 16:
            mattr.append("-prefer-256-bit")  # LLVM's v4 tuning would split the 512-bit vectors the kernels ask for
        return {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": self.level, "mattr": mattr}


def attributes(arch: str = "") -> CpuArch:
    """'' (the highest level this machine has), 'native' (every feature it has) or a level by name."""
    if host_machine() != "x86_64" and arch in ("", "native"):
        raise UsageError(f"this {host_machine()} machine is not supported as a CPU target yet: name cpu:x86-64-v3")
    flags = host_flags()
    if arch in ("", "native"):
        level = _highest_level(flags)
        extras = {f: n for f, n in _EXTRAS.items() if f in flags} if arch == "native" else {}
        return _describe("native" if extras else level, level, extras)
    if arch in _LEVELS:
        return _describe(arch, arch, {})
    raise UsageError(f"unknown CPU architecture '{arch}': choose native, {', '.join(_LEVELS)}")


def missing_features(features: list[str]) -> list[str]:
    """Which of the needed cpuinfo flags this machine lacks."""
    flags = host_flags()
    return [f for f in features if f not in flags]


def _describe(name: str, level: str, extras: dict[str, str]) -> CpuArch:
    needed: dict[str, str] = {}
    for each, features in _LEVELS.items():
        needed.update(features)
        if each == level:
            break
    needed.update(extras)
    lanes = {"x86-64-v4": 16, "x86-64-v3": 8}.get(level, 4)
    return CpuArch(name, level, tuple(needed), tuple(needed.values()), lanes, 32 if lanes == 16 else 16)


def _highest_level(flags: frozenset[str]) -> str:
    best = "x86-64"
    for level, features in _LEVELS.items():
        if not all(f in flags for f in features):
            break
        best = level
    return best


@lru_cache(maxsize=1)
def host_flags() -> frozenset[str]:
    """The flags line of /proc/cpuinfo; empty where there is none (then only the base level is sure)."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
