"""TensorIR → AMDGPU assembly and code object, with pip packages alone: LLVM from tvm, the linker from ziglang.

TVM asks two global functions: one that links an object file to a code object, one that names LLVM files to link in.
The second hands in llvm/*.ll: the barrier that LDS needs (see llvm/barrier.ll) and matrix instructions.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm.support.rocm  # noqa: F401  registers TVM's own callbacks, which are replaced here
import tvm_ffi
from tvm import tirx

from mlcrt.errors import MlcrtError

_FOLDER = Path(__file__).parent / "llvm"
_state = {"libraries": (), "mend": False, "object": b""}


@dataclass(frozen=True)
class Assembly:
    """text: AMDGPU assembly with metadata notes; code: the linked code object (ELF)."""

    text: str
    code: bytes


@tvm_ffi.register_global_func("tvm_callback_rocm_link", override=True)
def _link(obj):
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "kernel.o"), Path(scratch, "kernel.hsaco")
        source.write_bytes(bytes(obj))
        linker = [sys.executable, "-m", "ziglang", "ld.lld", "--no-undefined", "-shared"]
        result = subprocess.run([*linker, str(source), "-o", str(target)], capture_output=True, text=True)
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
            raise MlcrtError(f"linking a GPU kernel failed ({lines[-1]}): is the ziglang package installed whole?")
        _state["object"] = target.read_bytes()
    return bytearray(_state["object"])


@tvm_ffi.register_global_func("tvm_callback_rocm_bitcode_path", override=True)
def _libraries(*_):
    return tvm.runtime.convert(list(_state["libraries"]))


@tirx.op.register_intrin_lowering("tirx.tvm_storage_sync", target="rocm", level=99)
def _barrier(call):
    if _state["mend"] and call.args[0].value == "shared":
        return tirx.call_extern("void", "mlcrt_barrier")
    return call


@contextmanager
def _using(mend: bool, libraries: Sequence[str]):
    names = (["barrier"] if mend else []) + list(libraries)
    old = dict(_state)
    _state.update(mend=mend, libraries=[str(_FOLDER / f"{n}.ll") for n in names])
    try:
        yield
    finally:
        _state.update(old)


def target(arch: str = "gfx1100", threads: int = 256) -> tvm.target.Target:
    """The TVM target of an RDNA chip (wave32)."""
    return tvm.target.Target(
        {
            "kind": "rocm", "mcpu": arch, "mtriple": "amdgcn-amd-amdhsa-hcc", "thread_warp_size": 32,
            "max_shared_memory_per_block": 65536, "max_num_threads": threads, "max_threads_per_block": threads,
        },
        host={"kind": "llvm"},
    )  # fmt: skip


def compile_assembly(
    function, arch: str = "gfx1100", mend_barriers: bool = True, libraries: Sequence[str] = ()
) -> Assembly:
    """Compile a PrimFunc (or IRModule) with bound threads.

    mend_barriers: replace TVM's bare barrier by one that orders LDS. libraries: further files of llvm/ ('wmma') whose
    functions the kernel calls.
    """
    with _using(mend_barriers, libraries):
        built = tvm.compile(function, target(arch))
        return Assembly(built.mod.imports[0].inspect_source("asm"), _state["object"])
