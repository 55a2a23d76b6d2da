"""AMD GPUs, RDNA and CDNA, through LLVM's amdgcn back end: kernels as machine code, made without ROCm or a GPU."""

from __future__ import annotations

from .architecture import RocmArch, attributes, missing_features, names_device, rank
from .device import SIDECAR, named_runtime, probe, runtime

__all__ = [
    "SIDECAR",
    "RocmArch",
    "attributes",
    "compiler_missing",
    "export_options",
    "inspect",
    "library",
    "missing_features",
    "named_runtime",
    "names_device",
    "probe",
    "rank",
    "runtime",
]


def compiler_missing() -> str | None:
    """Nothing is: LLVM comes with TVM, the linker with ziglang."""
    return None


def export_options(_arch: RocmArch) -> dict:
    """Arguments for TVM's export_library."""
    from mlcrt.targets.cpu.link import link

    return {"fcompile": link, "fpack_imports": _pack_imports}


def inspect(module, report) -> list[dict]:
    """One row per kernel and chip of a built module, for `mlcrt compile --report`; MlcrtError for what may not be
    (see inspection), report(line) for what should not."""
    from .inspection import rows

    return rows(module, report)


def _pack_imports(module, _is_system_lib, prefix: str, workspace: str) -> str:
    """The serialised import tree as an object file, made without a C compiler."""
    from pathlib import Path

    import tvm_ffi

    from mlcrt.targets.cpu.link import binary_object

    tree = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
    return binary_object(tree, f"{prefix}__tvm_ffi__library_bin", Path(workspace))


def library(arch: RocmArch, kv_dtype: str):
    """The kernel library; imported late, because kernels need TVM's compiler and running does not."""
    from .tiles import library as build

    return build(arch, kv_dtype)
