"""Which NVIDIA architectures a library holds code for."""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine

_KNOWN = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_103", "sm_120")
WARPGROUPS = "sm_90a"
_DEFAULT = ("sm_80", "sm_86", "sm_89", "sm_90")


@dataclass(frozen=True)
class CudaArch:
    """name: what the user typed, resolved; sms: architectures with machine code, the newest also as PTX.

    sm_90a, Hopper's own instructions, runs on Hopper alone (CUDA C++ Programming Guide, "Architecture-specific
    features"), so it comes without PTX and without others.
    """

    name: str
    sms: tuple[str, ...]
    features: tuple[str, ...] = ()

    @property
    def warpgroups(self) -> bool:
        """Whether all the code may use Hopper's warpgroup instructions."""
        return self.sms == (WARPGROUPS,)

    @property
    def oldest(self) -> int:
        """Number of the oldest architecture."""
        return min(map(number, self.sms))

    def kv_dtype(self, wanted: str) -> str:
        return wanted

    def tvm_target(self) -> dict:
        """Kernels are generated for the oldest architecture; its instructions run on all the others."""
        return {
            "kind": "cuda",
            "arch": f"sm_{self.oldest}",
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": 49152,
            "host": {"kind": "llvm", "mtriple": f"{host_machine()}-unknown-linux-gnu"},
        }


def number(sm: str) -> int:
    return int(sm.removeprefix("sm_").rstrip("a"))


def portable(sm: str) -> bool:
    """Whether PTX of an architecture runs on later ones."""
    return not sm.endswith("a")


def attributes(arch: str = "") -> CudaArch:
    """Architectures by name, separated by '+' or ',': sm_80,sm_90. '' is what this machine's GPUs are or, where it has
    none that is known, Ampere to Hopper."""
    names = tuple(dict.fromkeys(a for a in arch.replace("+", ",").split(",") if a)) or _here() or _DEFAULT
    for name in names:
        if name not in _KNOWN:
            raise UsageError(f"unknown CUDA architecture '{name}': choose from {', '.join(_KNOWN)}")
    if WARPGROUPS in names and len(names) > 1:
        raise UsageError(f"{WARPGROUPS} needs a library of its own: give it as a target, cuda:{WARPGROUPS}")
    return CudaArch("+".join(names), names, names)


def _here() -> tuple[str, ...]:
    """The architectures of this machine's GPUs; Hopper's own where there is nothing else."""
    from .device import probe

    found = tuple(sorted({device["arch"] for device in probe().devices} & set(_KNOWN), key=number))
    return (WARPGROUPS,) if found == (WARPGROUPS.rstrip("a"),) else found


def missing_features(features: list[str]) -> list[str]:
    """What is missing to run code for the architectures `features` on this machine's GPUs. Machine code runs on later
    GPUs of the same major number, PTX of the newest on all later ones. Nothing where no GPU is found: the runtime says
    that better."""
    from .device import probe

    here = [(found["id"], found["arch"]) for found in probe().devices]
    if not features or not here or any(_runs(features, arch) for _, arch in here):
        return []
    return [f"a GPU that runs {' or '.join(features)} ({', '.join(f'{i} is {arch}' for i, arch in here)})"]


def _runs(features: list[str], arch: str) -> bool:
    if WARPGROUPS in features:
        return arch == WARPGROUPS.rstrip("a")
    gpu, newest = number(arch), max(map(number, features))
    same_major = (sm for sm in map(number, features) if sm // 10 == gpu // 10)
    return newest <= gpu or any(sm <= gpu for sm in same_major)


def rank(features: list[str]) -> int:
    """Of two libraries that run here the one whose oldest architecture is the newer: kernels are made for that."""
    return 2 * min(map(number, features)) + (WARPGROUPS in features) if features else 0
