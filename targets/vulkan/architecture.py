"""Which kinds of Vulkan device a library holds kernels for."""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine

SIZES = (8, 16, 32, 64)  # lanes of a subgroup: CPUs, Intel and Arm, NVIDIA and AMD, older AMD and Adreno
_DEFAULT = ("s8", "s16", "s32", "s32m", "s64")
# m, n, k of a variant's cooperative matrices: Intel's at 16 lanes, NVIDIA's (which also has 16x8x16) and AMD's at 32
_MATRICES = {"s16m": (8, 16, 16), "s32m": (16, 16, 16)}
_KNOWN = (*(f"s{size}{kind}" for size in SIZES for kind in ("", "f")), *_MATRICES)


@dataclass(frozen=True)
class Variant:
    """One set of kernels: lanes of a subgroup; half: whether it computes in float16, which not every device does;
    matrices: prefill with cooperative matrices, everything else as without."""

    tag: str

    @property
    def lanes(self) -> int:
        return int(self.tag.strip("sfm"))

    @property
    def matrices(self) -> bool:
        return self.tag.endswith("m")

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Sizes m, n, k of its matrices."""
        return _MATRICES[self.tag]

    @property
    def half(self) -> bool:
        return not self.tag.endswith("f")


@dataclass(frozen=True)
class VulkanArch:
    """name: what the user typed, resolved; variants: sets of kernels in the library, of which a device takes one."""

    name: str
    variants: tuple[Variant, ...]
    features: tuple[str, ...] = ()  # the runtime checks each kernel's own needs, so nothing is asked of all

    def kv_dtype(self, wanted: str) -> str:
        return wanted

    def tvm_target(self) -> dict:
        """thread_warp_size stays 1: with more, TVM drops barriers that a subgroup still needs on Vulkan."""
        return {
            "kind": "vulkan",
            "max_threads_per_block": 256,
            "max_num_threads": 256,
            "max_shared_memory_per_block": 32768,
            "host": {"kind": "llvm", "mtriple": f"{host_machine()}-unknown-linux-gnu"},
        }


def attributes(arch: str = "") -> VulkanArch:
    """'' (kernels for every device), kinds by name separated by '+' or ',' (s8+s32: subgroups of 8 and of 32 lanes,
    s32f: without float16 arithmetic, s32m: with cooperative matrices), or a device of this machine by number or part
    of its name."""
    names = _split(arch)
    if is_kinds(arch):
        whole = {n for n in names} | {n.removesuffix("m") for n in names}
        ordered = tuple(sorted(map(Variant, whole), key=lambda v: (v.matrices, v.lanes, not v.half)))
        return VulkanArch("+".join(v.tag for v in ordered), ordered)
    if names:
        from .device import find_device  # a device, or a UsageError that says what there is

        find_device(arch)
    return attributes("+".join(_DEFAULT))


def _split(arch: str) -> tuple[str, ...]:
    return tuple(a for a in arch.replace("+", ",").split(",") if a)


def is_kinds(arch: str) -> bool:
    """Whether `arch` names kinds of kernels (s8+s32)."""
    return bool(arch) and all(n in _KNOWN for n in _split(arch))


def names_device(where: str) -> bool:
    """Whether what follows 'vulkan:' is a device and not a choice of kernels."""
    return bool(where) and not is_kinds(where)


def unknown(arch: str, devices: list[str]) -> UsageError:
    """The error for a name that is neither a kind of kernels nor a device."""
    have, kinds = "; ".join(devices) or "there are none", ", ".join(_KNOWN)
    return UsageError(
        f"vulkan has no kernels or device '{arch}': choose from {kinds}, or a device of this machine ({have})"
    )
