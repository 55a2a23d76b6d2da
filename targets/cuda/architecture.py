"""Which NVIDIA architectures a library holds code for."""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine

_KNOWN = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
_DEFAULT = ("sm_80", "sm_86", "sm_89", "sm_90")


@dataclass(frozen=True)
class CudaArch:
    """name: what the user typed, resolved; sms: architectures with machine code, the newest also as PTX."""

    name: str
    sms: tuple[str, ...]
    features: tuple[str, ...] = ()

    @property
    def oldest(self) -> int:
        """Number of the oldest architecture."""
        return min(map(_number, self.sms))

    def kv_dtype(self, wanted: str) -> str:
        return wanted

    def tvm_target(self) -> dict:
        """Kernels are generated for the oldest architecture; its instructions run on all the others."""
        return {
            "kind": "cuda",
            "arch": min(self.sms, key=_number),
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": 49152,
            "host": {"kind": "llvm", "mtriple": f"{host_machine()}-unknown-linux-gnu"},
        }


def _number(sm: str) -> int:
    return int(sm.removeprefix("sm_"))


def attributes(arch: str = "") -> CudaArch:
    """'' (Ampere to Hopper) or architectures by name, separated by '+' or ',': sm_80,sm_90."""
    names = tuple(a for a in arch.replace("+", ",").split(",") if a) or _DEFAULT
    for name in names:
        if name not in _KNOWN:
            raise UsageError(f"unknown CUDA architecture '{name}': choose from {', '.join(_KNOWN)}")
    return CudaArch("+".join(names), names)


def missing_features(features: list[str]) -> list[str]:
    return []
