"""Which AMD architectures a library holds code for, and what their chips have.

Numbers are those of AMD's public ISA guides and of LLVM's "User Guide for AMDGPU Backend".
"""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError
from mlcrt.targets import host_machine


@dataclass(frozen=True)
class Chip:
    """One gfx architecture.

    lanes: of a wave; registers: 32-bit VGPRs of a lane that the waves of one SIMD share; granule: VGPRs are allocated
    in multiples of it; waves: most waves of one SIMD; simds: that share one LDS; lds: bytes of that LDS; cus: compute
    units of the largest product; matrix: the matrix instruction that kernels use (llvm/matrix-*.ll); dot2: has
    v_dot2_f32_f16; family: which of llvm/exchange-*.ll fits.
    """

    name: str
    lanes: int
    registers: int
    granule: int
    waves: int
    simds: int
    lds: int
    cus: int
    matrix: str | None
    dot2: bool
    family: str


def _rdna(names: str, registers: int, granule: int, cus: int, matrix: str | None = None, waves: int = 16, dot2=True):
    return {n: Chip(n, 32, registers, granule, waves, 4, 131072, cus, matrix, dot2, "gfx10") for n in names.split()}


def _cdna(name: str, registers: int, granule: int, cus: int, waves: int, matrix: str | None = "mfma"):
    return {name: Chip(name, 64, registers, granule, waves, 4, 65536, cus, matrix, True, "gfx9")}


CHIPS: dict[str, Chip] = {
    **_cdna("gfx906", 256, 4, 60, 10, None),  # MI50
    **_cdna("gfx908", 256, 4, 120, 10),  # MI100; its accumulation registers are a file of their own
    **_cdna("gfx90a", 512, 8, 110, 8),  # MI200, one of its two dies
    **_cdna("gfx942", 512, 8, 304, 8),  # MI300X
    **_rdna("gfx1010", 1024, 8, 40, waves=20, dot2=False),  # RX 5700
    **_rdna("gfx1012", 1024, 8, 22, waves=20),  # RX 5500
    **_rdna("gfx1030", 1024, 16, 80),  # RX 6800, 6900
    **_rdna("gfx1031", 1024, 16, 40),  # RX 6700
    **_rdna("gfx1032 gfx1034", 1024, 16, 32),  # RX 6600, 6500
    **_rdna("gfx1035 gfx1036", 1024, 16, 12),  # 680M and smaller APUs
    **_rdna("gfx1100", 1536, 24, 96, "wmma"),  # RX 7900
    **_rdna("gfx1101", 1536, 24, 60, "wmma"),  # RX 7800, 7700
    **_rdna("gfx1102", 1024, 16, 32, "wmma"),  # RX 7600
    **_rdna("gfx1103", 1024, 16, 12, "wmma"),  # 780M
    **_rdna("gfx1150 gfx1152 gfx1153", 1024, 16, 16, "wmma"),  # 890M and smaller APUs
    **_rdna("gfx1151", 1536, 24, 40, "wmma"),  # 8060S
    **_rdna("gfx1200", 1536, 24, 32, "wmma12"),  # RX 9060
    **_rdna("gfx1201", 1536, 24, 64, "wmma12"),  # RX 9070
}
DEFAULT = ("gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1151", "gfx1200", "gfx1201")
CODE_OBJECTS = (4, 5, 6)
CODE_OBJECT = 5  # ROCm 6.0 and later load it; 6 needs ROCm 6.3 or later


@dataclass(frozen=True)
class RocmArch:
    """name: what the user typed, resolved; chips: code is made for each; code_object: version of the code objects."""

    name: str
    chips: tuple[Chip, ...]
    code_object: int = CODE_OBJECT

    @property
    def features(self) -> tuple[str, ...]:
        """The GPU has to be one of these (see missing_features)."""
        return tuple(chip.name for chip in self.chips)

    @property
    def lanes(self) -> int:
        """Lanes that kernels take as one subgroup: of the smallest wave, so that one kernel serves every chip."""
        return min(c.lanes for c in self.chips)

    def kv_dtype(self, wanted: str) -> str:
        return wanted

    def tvm_target(self):
        """What kernels are lowered for; `keys` carries the list of chips to targets/rocm/assembly.py."""
        from .assembly import quiet_target

        return quiet_target({**chip_target(self.chips[0], self.lanes, self.code_object, self.chips), "host": _host()})


def chip_target(chip: Chip, lanes: int, code_object: int, chips: tuple[Chip, ...] = ()) -> dict:
    """TVM's description of one chip. 256 threads: what TVM's code generator allows without a ROCm device."""
    return {
        "kind": "rocm",
        "keys": ["rocm", "gpu", f"cov{code_object}", *(c.name for c in chips)],
        "mcpu": chip.name,
        "mtriple": "amdgcn-amd-amdhsa-hcc",
        "thread_warp_size": lanes,
        "max_shared_memory_per_block": 65536,
        "max_num_threads": 256,
        "max_threads_per_block": 256,
    }


def _host() -> dict:
    return {"kind": "llvm", "mtriple": f"{host_machine()}-unknown-linux-gnu"}


def attributes(arch: str = "") -> RocmArch:
    """Architectures by name, separated by '+' or ',', and @covN for the code object version: gfx1030,gfx1100@cov6.

    '' is RDNA2 to RDNA4 or, where this machine has an AMD GPU that is none of these, the GPUs it has; a number is the
    architecture of that GPU of this machine, as `mlcrt devices` counts them.
    """
    listed, _, version = arch.partition("@")
    if names_device(listed):
        listed = _of_gpu(int(listed))
    if version and version not in [f"cov{v}" for v in CODE_OBJECTS]:
        known = ", ".join(f"@cov{v}" for v in CODE_OBJECTS)
        raise UsageError(f"unknown code object version '@{version}': choose from {known}")
    names = tuple(dict.fromkeys(a for a in listed.replace("+", ",").split(",") if a)) or _usual()
    for name in names:
        if name not in CHIPS:
            raise UsageError(f"unknown ROCm architecture '{name}': choose from {', '.join(CHIPS)}")
    code_object = int(version.removeprefix("cov")) if version else CODE_OBJECT
    return RocmArch("+".join(names) + f"@cov{code_object}", tuple(CHIPS[n] for n in names), code_object)


def names_device(where: str) -> bool:
    """Whether what follows 'rocm:' is the number of a GPU and not a choice of architectures."""
    return where.isdecimal()


def missing_features(features: list[str], where: str = "") -> list[str]:
    """What is missing to run code for the architectures `features` on the GPU with the number `where`, or on any.
    Nothing where no GPU is found: the runtime says that better."""
    from .device import gpus

    here = [(i, arch) for i, arch in enumerate(gpus()) if where in ("", str(i)) and arch]
    if not features or not here or any(arch in features for _, arch in here):
        return []
    return [f"a GPU of {' or '.join(features)} ({', '.join(f'rocm:{i} is {arch}' for i, arch in here)})"]


def rank(features: list[str]) -> int:
    """Of two libraries that run here the one for fewer architectures is the better: it was made for this GPU."""
    return -len(features) if features else -len(CHIPS) - 1


def _of_gpu(index: int) -> str:
    from .device import gpus

    found = gpus()
    if index < len(found) and found[index] in CHIPS:
        return found[index]
    have = ", ".join(f"rocm:{i} is {arch or 'unknown'}" for i, arch in enumerate(found)) or "there are none"
    raise UsageError(
        f"there is no AMD GPU {index} on this machine that mlcrt knows ({have}); to compile for another machine's, "
        "name its architecture, as in rocm:gfx1100"
    )


def _usual() -> tuple[str, ...]:
    from .device import gpus

    here = tuple(dict.fromkeys(arch for arch in gpus() if arch in CHIPS))
    return DEFAULT if set(here) <= set(DEFAULT) else here
