"""What a CPU library may assume of the machine it runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine
from mlcrt.targets.platforms import DEFAULT, PLATFORMS, host_platform, host_system

from .amx import tile_registers

AMX = "x86-64-v4-amx"
AMX_PRODUCT = "amx_bf16"  # the flag of products of bfloat16 tiles
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
    AMX: {  # no level of the ABI, but worth kernels of its own: Xeons since Sapphire Rapids, under Linux
        "avx512_bf16": "avx512bf16", "amx_tile": "amx-tile", "amx_bf16": "amx-bf16",
    },
}  # fmt: skip
# Beyond the levels: what `native` adds when the machine has it.
_EXTRAS = {
    "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg", "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni", "gfni": "gfni", "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq", "amx_int8": "amx-int8",
}  # fmt: skip
SYSTEMS = ("linux", "windows", "macos")
_WINDOWS = tuple(f"{level}-windows" for level in _LEVELS if level != AMX)
NAMES = (*_LEVELS, "aarch64", "aarch64-linux", "aarch64-macos", *_WINDOWS)


@dataclass(frozen=True)
class CpuArch:
    """name: what the user typed, resolved; features: cpuinfo flags the library needs; lanes: float32 per register.

    level: LLVM's name of the CPU; platform: a key of PLATFORMS.
    """

    name: str
    level: str
    features: tuple[str, ...]
    llvm_features: tuple[str, ...]
    lanes: int
    registers: int
    platform: str = DEFAULT

    @property
    def amx(self) -> bool:
        """Whether there are tile registers with products of bfloat16."""
        return AMX_PRODUCT in self.features

    @property
    def native_f16(self) -> bool:
        """Whether float16 loads convert in hardware (F16C; every ARM64 can)."""
        return "f16c" in self.features or self.platform.startswith("aarch64")

    @property
    def library_file(self) -> str:
        return PLATFORMS[self.platform].library

    @property
    def cross(self) -> bool:
        """Whether this is for another system than the one that compiles."""
        return self.platform != host_platform()

    def kv_dtype(self, wanted: str) -> str:
        """float16 KV needs the conversion in hardware; without it the cache stays float32."""
        return wanted if self.native_f16 else "float32"

    def tvm_target(self) -> dict:
        mattr = [f"+{f}" for f in self.llvm_features]
        if self.lanes == 16:
            mattr.append("-prefer-256-bit")  # LLVM's v4 tuning would split the 512-bit vectors the kernels ask for
        return {"kind": "llvm", "mtriple": PLATFORMS[self.platform].triple, "mcpu": self.level, "mattr": mattr}


def attributes(arch: str = "") -> CpuArch:
    """'' (the highest level this machine has), 'native' (every feature it has), or a name of NAMES, cross or not.

    A name without a system (aarch64) is for the system of this machine.
    """
    if arch in ("", "native"):
        return _here(arch)
    level, _, system = arch.rpartition("-")
    if system not in SYSTEMS:
        level, system = arch, host_system()
    machine = "aarch64" if level == "aarch64" else "x86_64" if level in _LEVELS else None
    if machine is None:
        raise UsageError(f"unknown CPU architecture '{arch}': choose native, {', '.join(NAMES)}")
    platform = f"{machine}-{system}"
    if platform not in PLATFORMS:
        have = ", ".join(p.text for p in PLATFORMS.values())
        raise UsageError(f"CPU architecture '{arch}' would be for {machine} {system}: there is {have}")
    if level == AMX and platform != DEFAULT:
        raise UsageError(f"{AMX} is for Linux: choose x86-64-v4 for {PLATFORMS[platform].text}")
    return _arm64(platform) if machine == "aarch64" else _x86_64(level, {}, platform)


def _here(arch: str) -> CpuArch:
    """The best for this machine."""
    platform = host_platform()
    if platform not in PLATFORMS:
        raise UsageError(f"this machine ({platform}) is no CPU target: name another, such as cpu:aarch64-linux")
    if host_machine() == "aarch64":
        return _arm64(platform)
    flags = host_flags()
    level = _highest_level(flags)
    extras = {f: n for f, n in _EXTRAS.items() if f in flags} if arch == "native" else {}
    return _x86_64(level, extras, platform)


def missing_features(features: list[str]) -> list[str]:
    """Which of the needed cpuinfo flags this machine lacks."""
    flags = host_flags()
    return [f for f in features if f not in flags]


def _x86_64(level: str, extras: dict[str, str], platform: str) -> CpuArch:
    needed: dict[str, str] = {}
    for each, features in _LEVELS.items():
        needed.update(features)
        if each == level:
            break
    needed.update(extras)
    name, cpu = _named("native" if extras else level, platform), level.removesuffix("-amx")
    lanes = {"x86-64-v4": 16, "x86-64-v3": 8}.get(cpu, 4)
    return CpuArch(name, cpu, tuple(needed), tuple(needed.values()), lanes, 32 if lanes == 16 else 16, platform)


def _arm64(platform: str) -> CpuArch:
    """Armv8.0-A with NEON, which every 64-bit ARM has: 32 registers of 4 lanes. Macs begin with the M1."""
    cpu = "apple-m1" if platform.endswith("macos") else "generic"
    return CpuArch(f"aarch64-{platform.split('-')[1]}", cpu, (), ("neon",), 4, 32, platform)


def _named(level: str, platform: str) -> str:
    """x86-64 Linux, the first there was, goes without its system."""
    return level if platform == DEFAULT else f"{level}-{platform.split('-')[1]}"


def _highest_level(flags: frozenset[str]) -> str:
    best = "x86-64"
    for level, features in _LEVELS.items():
        if not all(f in flags for f in features):
            break
        best = level
    return best


@lru_cache(maxsize=1)
def host_flags() -> frozenset[str]:
    """The flags line of /proc/cpuinfo, or what Windows tells; empty elsewhere (then only the base level is sure).

    Those of AMX are among them if this process may use it, for which it is asked here.
    """
    if host_system() == "windows":
        import ctypes

        return windows_flags(ctypes.windll.kernel32.IsProcessorFeaturePresent)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = frozenset(line.split(":", 1)[1].split())
                return flags if "amx_tile" in flags and tile_registers() else flags - _LEVELS[AMX].keys()
    except OSError:
        pass
    return frozenset()


def windows_flags(present: Callable[[int], int]) -> frozenset[str]:
    """Flags of the levels that a Windows machine has, by its IsProcessorFeaturePresent.

    It knows SSE4.2 (38), AVX2 (40) and AVX512F (41): https://learn.microsoft.com/windows/win32/api/processthreadsapi.
    Each came with the rest of its level in every processor that Windows 10 and later run on.
    """
    flags: set[str] = set()
    for level, number in (("x86-64-v2", 38), ("x86-64-v3", 40), ("x86-64-v4", 41)):
        if not present(number):
            break
        flags.update(_LEVELS[level])
    return frozenset(flags)
