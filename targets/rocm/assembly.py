"""TensorIR → AMDGPU assembly and code objects, with pip packages alone: LLVM from tvm, the linker from ziglang.

TVM asks three global functions, which are replaced here: one builds a device module, one links an object file to a code
object, one names LLVM files to link in. The last hands in llvm/*.ll: the barrier that LDS needs, the exchange of lanes,
packed dot products, matrix instructions, the code object version. The first builds a module once for every chip that
the target's keys name and puts the code objects into one bundle.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
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
from mlcrt.kernels.simt.staging import WIDE

from .architecture import CHIPS, CODE_OBJECT, Chip, chip_target
from .bundle import bundle

_FOLDER = Path(__file__).parent / "llvm"
_NOISE = re.compile(
    rb"^\[[\d:]+\] \S+(target_kind|codegen_amdgpu)\.cc:\d+: Warning: .*(ROCm version|number of threads)"
)
_KEPT = 64  # listings
_state = {"libraries": (), "mend": True, "object": b"", "others": None}
_listings: dict[str, Listing] = {}  # by the hash of a code object, the latest last


@dataclass(frozen=True)
class Assembly:
    """text: AMDGPU assembly with metadata notes; code: the linked code object (ELF)."""

    text: str
    code: bytes


@dataclass(frozen=True)
class Listing:
    """What a device module was made of. texts: assembly by chip; tags: per kernel what its launch arguments after its
    own mean (blockIdx.x …); threads: per kernel the size of its workgroups, where it is fixed; gemvs: of kernels that
    multiply one token by a weight, bits of a code, and whether every load of the weight should have 16 bytes."""

    texts: dict[str, str]
    tags: dict[str, list[str]]
    threads: dict[str, int]
    gemvs: dict[str, tuple[int, bool]]


def listing(code: bytes) -> dict[str, str]:
    """{architecture: assembly} of a code object or bundle that this process made. KeyError for any other."""
    return _listings[hashlib.sha256(code).hexdigest()].texts


def listings(module) -> list[Listing]:
    """What the ROCm modules in a built tvm module and its imports were made of."""
    found = [_of(module)] if module.kind in ("hip", "rocm") else []
    return found + [each for imported in module.imports for each in listings(imported)]


def _of(module) -> Listing:
    text = module.inspect_source("asm")
    return next(known for known in reversed(_listings.values()) if text in known.texts.values())


def launch_tags(module) -> dict[str, list[str]]:
    """`tags` of a built ROCm module."""
    return _of(module).tags


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
    if _state["others"]:
        name, others = _state["others"]
        _state["object"] = bundle({name: _state["object"], **others})
    return bytearray(_state["object"])


@tvm_ffi.register_global_func("tvm_callback_rocm_bitcode_path", override=True)
def _libraries(*_):
    return tvm.runtime.convert(list(_state["libraries"]))


@tirx.op.register_intrin_lowering("tirx.tvm_storage_sync", target="rocm", level=99)
def _barrier(call):
    if _state["mend"] and call.args[0].value == "shared":
        return tirx.call_extern("void", "mlcrt_barrier")
    return call


def _without_aliases(mod):
    """Give buffers that StorageRewrite made share an allocation the allocation's own name.

    TVM's LLVM code generator for GPUs takes the address of such an alias to be undefined, and the kernel then writes to
    whatever address a register happens to hold. The emulator finds this as an access out of bounds.
    """

    def direct(function):
        owners = {}

        def note(declaration):
            alias, data = declaration.buffer, declaration.data
            if isinstance(data, tirx.Var) or not str(alias.scope()).startswith("shared"):
                return
            owner = data.args[0]
            if owner.dtype != alias.dtype:
                raise MlcrtError(f"{alias.dtype} and {owner.dtype} share LDS, which TVM's code generator mixes up")
            owners[hash(alias)] = owners.get(hash(owner), owner)

        def drop(declaration):
            known = any(declaration.buffer.same_as(owner) for owner in owners.values())
            return tirx.Evaluate(0) if known else declaration

        tvm_ffi.structural_walk(function.body, (tirx.DeclBuffer, note), order="pre")
        if not owners:
            return function
        rename = (tirx.Var, lambda var: owners.get(hash(var), var))
        return function.with_body(tvm_ffi.structural_map(function.body, [rename, (tirx.DeclBuffer, drop)]))

    return tvm.IRModule({var: direct(function) for var, function in mod.functions_items()}, attrs=mod.attrs)


_stock_build = tvm_ffi.get_global_func("target.build.rocm")


@tvm_ffi.register_global_func("target.build.rocm", override=True)
def _build(mod, wanted):
    """A device module for the chips in the target's keys, or for its mcpu alone."""
    keys = [str(k) for k in wanted.keys]
    chips = [CHIPS[k] for k in keys if k in CHIPS] or [CHIPS[str(wanted.attrs["mcpu"])]]
    version = next((int(k[3:]) for k in keys if re.fullmatch(r"cov\d", k)), CODE_OBJECT)
    lanes = int(wanted.attrs["thread_warp_size"])
    texts, others = {}, {}
    mod = _without_aliases(mod)
    for chip in (*chips[1:], chips[0]):  # the module that is kept comes last, with what the others made
        target = tvm.target.Target(chip_target(chip, lanes, version))
        with _using(_files(chip, version), (chip.name, others) if others and chip is chips[0] else None):
            module = _stock_build(mod, target)
            texts[chip.name] = module.inspect_source("asm")
            if chip is not chips[0]:
                others[chip.name] = _state["object"]
    texts = {chip.name: texts[chip.name] for chip in chips}
    functions = {var.name_hint: function for var, function in mod.functions_items()}
    tags = {name: [str(tag) for tag in f.attrs["tirx.kernel_launch_params"]] for name, f in functions.items()}
    threads = {name: size for name, f in functions.items() if (size := _threads(f))}
    gemvs = {name: found for name, f in functions.items() if (found := _gemv(f))}
    made = Listing(texts, tags, threads, gemvs)
    digest = hashlib.sha256(_state["object"]).hexdigest()
    _listings.pop(digest, None)
    _listings[digest] = made
    while len(_listings) > _KEPT:
        del _listings[next(iter(_listings))]
    return module


def _threads(function) -> int | None:
    """Threads of a workgroup, if the function fixes them."""
    extents = {}

    def note(statement):
        if statement.attr_key == "thread_extent" and str(statement.node.thread_tag).startswith("threadIdx"):
            extents[str(statement.node.thread_tag)] = statement.value

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, note), order="pre")
    sizes = [getattr(v, "value", None) for v in extents.values()]
    return None if None in sizes else math.prod(map(int, sizes))


def _gemv(function) -> tuple[int, bool] | None:
    """What the kernel says of its loads (simt.staging.WIDE)."""
    found = []

    def note(statement):
        if statement.attr_key == WIDE:
            found.append((int(statement.node.value), bool(int(statement.value.value))))

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, note), order="pre")
    return found[0] if found else None


def _files(chip: Chip, version: int) -> list[str]:
    barrier = {"gfx11": "gfx11", "gfx12": "gfx12"}.get(chip.name[:5], "gfx9")
    dot2 = "dot2-native" if chip.dot2 else "dot2-fma"
    names = [f"barrier-{barrier}", f"exchange-{chip.family}", "divide", "dot8", "dot32", dot2, f"cov{version}"]
    if chip.lanes == 32:
        names.append("fragments-gfx12" if chip.matrix == "wmma12" else "fragments-gfx10")
    if chip.lanes == 32 or chip.matrix:
        names.append(f"matrix-{chip.matrix or ('dot2' if chip.dot2 else 'fma')}")
    return names


@contextmanager
def _using(libraries: Sequence[str], others: tuple | None):
    old = {k: v for k, v in _state.items() if k != "object"}
    _state.update(libraries=[str(_FOLDER / f"{n}.ll") for n in libraries], others=others)
    try:
        with quiet():
            yield
    finally:
        _state.update(old)


@contextmanager
def quiet():
    """Drop two warnings of TVM's about a ROCm installation that is neither there nor needed; keep everything else."""
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            kept.seek(0)
            for line in kept:
                if not _NOISE.match(line):
                    os.write(saved, line)
            os.close(saved)


@contextmanager
def stock_barriers():
    """Compile with TVM's own barrier, which does not order LDS: for showing that it races."""
    old = _state["mend"]
    _state["mend"] = False
    try:
        yield
    finally:
        _state["mend"] = old


def quiet_target(description: dict) -> tvm.target.Target:
    with quiet():
        return tvm.target.Target(description)


def target(arch: str = "gfx1100", code_object: int = CODE_OBJECT) -> tvm.target.Target:
    """The TVM target of one chip."""
    with quiet():
        device = chip_target(CHIPS[arch], CHIPS[arch].lanes, code_object, (CHIPS[arch],))
        return tvm.target.Target(device, host={"kind": "llvm"})


def compile_assembly(function, arch: str = "gfx1100", mend_barriers: bool = True) -> Assembly:
    """Compile a PrimFunc (or IRModule) with bound threads.

    mend_barriers: replace TVM's bare barrier by one that orders LDS.
    """
    if mend_barriers:
        built = tvm.compile(function, target(arch))
    else:
        with stock_barriers():
            built = tvm.compile(function, target(arch))
    return Assembly(built.mod.imports[0].inspect_source("asm"), _state["object"])
