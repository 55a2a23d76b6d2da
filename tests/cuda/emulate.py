"""CUDA kernels without a GPU: the source that TVM generates, compiled by the C++ compiler there is and run on the CPU.

`emulated/cuda.h` gives the language, `ptx.py` and `emulated/ptx.h` the inline assembly, `emulated/machine.cc` runs the
blocks; see there for what each catches.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import struct
import subprocess
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import imported
import numpy as np
import ptx
import tvm
import tvm_ffi

from mlcrt.targets import cpu, cuda, native
from mlcrt.targets.cuda import fatbin

HERE = Path(__file__).parent
INCLUDE = (f"-I{HERE / 'emulated'}", f"-I{HERE.parent / 'emulated'}")
LEVEL = "x86-64-v3"  # of what runs here; v3 converts half floats in hardware
_COMMON = ("-std=c++17", f"-march={LEVEL}", "-fPIC", "-fvisibility=hidden", "-w", *INCLUDE)
_MACHINE = ("-O2", "-ffast-math", "-fno-finite-math-only")
_KERNELS = ("-O0", "-D__CUDA_ARCH__=900", "-D__CUDACC_VER_MAJOR__=13", "-ftrivial-auto-var-init=pattern",
            "-fsanitize=bounds,alignment", "-fsanitize-undefined-trap-on-error")  # fmt: skip
_HEAD = """struct Any { int kind; int padding; union { long number; void *pointer; }; };
extern "C" int cuda_launch(const char *, void (*)(void **), void **, uint3, uint3, unsigned);
"""
DYNAMIC = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Kernel:
    """One kernel: the type codes of its arguments (3: a pointer) and the launch's extents in order."""

    name: str
    codes: tuple[int, ...]
    tags: tuple[str, ...]


def missing() -> str | None:
    """Why kernels cannot be emulated here, if so."""
    if native.compiler() is None:
        return "CUDA kernels are executed on the CPU by a C++ compiler, and there is none; install g++"
    features = cpu.missing_features(list(cpu.attributes(LEVEL).features))
    return f"CUDA kernels are executed on {LEVEL}, and this machine lacks {', '.join(features)}" if features else None


def kernels_of(module) -> tuple[list[Kernel], str]:
    """The CUDA kernels that a compiled module imports, and their source as CUDA's compiler gets it."""
    tree = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
    sources: list[bytes] = []
    packed = fatbin.replace_cuda_source(tree, lambda source: sources.append(source) or b"")
    mark = struct.pack("<Q", 6) + b"fatbin"
    reader, found = fatbin._Reader(packed[packed.index(mark) + len(mark) :]), []
    for _ in range(reader.u64()):
        name = reader.text().decode()
        reader.text()
        codes = tuple(reader.vector(4)[8::4])
        tags = tuple(reader.text().decode() for _ in range(reader.u64()))
        found.append(Kernel(name, codes, tuple(t for t in tags if t != fatbin.OVERLAP_TAG.decode())))
        reader.vector(4)
    (source,) = sources
    return found, fatbin.finished_source(source).decode()


def as_cpp(source: str) -> str:
    """The source in C++: inline assembly as calls, shared memory as the machine lays it out."""
    # Operands in registers are read while a product is under way, so they have to be the caller's.
    source = re.sub(
        r"(void mlcrt_warpgroup_mma\d+\(float \*c), unsigned a0, unsigned a1, unsigned a2, unsigned a3,",
        r"\1, unsigned &a0, unsigned &a1, unsigned &a2, unsigned &a3,",
        source,
    )
    assert source.count("unsigned &a0") == source.count("wgmma.mma_async")
    source = re.sub(r"\b__shared__ (alignas\(\d+\)) (\w[^;]*;)", r"\1 CUDA_SHARED \2", source)
    source = re.sub(
        r"\bextern __shared__ __align__\((\d+)\) (\w+) (\w+)\[\];", r"\2 *const \3 = (\2 *)cuda_dynamic(\1);", source
    )
    assert "__shared__ " not in source
    return ptx.translate(source)


def _entry(kernel: Kernel, source: str) -> str:
    """C++ that takes the host's packed arguments (buffers, scalars, extents) and launches the kernel."""
    (parameters,) = re.findall(rf"__global__ [^;{{]*\b{kernel.name}\(([^)]*)\) \{{", source)
    types = [re.sub(r"\b__restrict__\b|\w+$", "", p.strip()).strip() for p in parameters.split(",")]
    assert [t.endswith("*") for t in types] == [code == 3 for code in kernel.codes]
    values = [f"({t})a[{i}]" if t.endswith("*") else f"({t})(long)a[{i}]" for i, t in enumerate(types)]
    settings = []
    for i, tag in enumerate(kernel.tags, len(types)):
        where, _, axis = tag.partition(".")
        field = "dynamic" if tag == DYNAMIC else f"{ {'blockIdx': 'grid', 'threadIdx': 'block'}[where] }.{axis}"
        settings.append(f"{field} = (unsigned)v[{i}].number;")
    return f"""
static void call_{kernel.name}(void **a) {{ {kernel.name}({", ".join(values)}); }}
extern "C" __attribute__((visibility("default")))
int __tvm_ffi_{kernel.name}(void *, const Any *v, int n, Any *) {{
  if (n != {len(types) + len(kernel.tags)}) return -2;
  void *a[{len(types)}];
  for (int i = 0; i < {len(types)}; ++i) a[i] = v[i].pointer;
  uint3 grid = {{1, 1, 1}}, block = {{1, 1, 1}};
  unsigned dynamic = 0;
  {" ".join(settings)}
  return cuda_launch("{kernel.name}", call_{kernel.name}, a, grid, block, dynamic);
}}
"""


def _run(command: list[str]) -> None:
    result = subprocess.run([native.compiler(), *_COMMON, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:4000]


def compiled_machine(folder: Path) -> Path:
    """The compiled machine.cc, which every executable gets."""
    out = folder / "machine.o"
    _run([*_MACHINE, "-c", str(HERE / "emulated" / "machine.cc"), "-o", str(out)])
    return out


@functools.lru_cache
def twin(arch: str) -> tvm.target.Target:
    """The architecture's target with this machine as host, and its memory as device memory."""
    host = cpu.attributes(LEVEL).tvm_target()
    return tvm.target.Target({**cuda.attributes(arch).tvm_target(), "host": host, "target_device_type": 1})


def generate(function, arch: str, skipped: tuple[str, ...]):
    """(module with the host's side, its CUDA kernels, their source) of a PrimFunc."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    with tvm.transform.PassContext(opt_level=3, disabled_pass=list(skipped)):
        root = tvm.compile(module, target=twin(arch)).mod
    return root, *kernels_of(root)


def build(kernels: list[Kernel], source: str, library: Path, machine: Future) -> None:
    """Compile the kernels into a library of functions that run on the CPU. machine: of `compiled_machine`."""
    file = library.with_suffix(".cc")
    text = as_cpp(source)
    file.write_text(text + _HEAD + "".join(_entry(kernel, text) for kernel in kernels))
    _run([*_KERNELS, "-shared", str(file), str(machine.result()), "-o", str(library)])


def order(library: Path, reverse: bool) -> None:
    """Whether threads and blocks of the library's kernels start from the last, and tensor cores do at once what they
    may do at once."""
    ctypes.CDLL(str(library)).cuda_reverse(int(reverse))


class Executable:
    """A PrimFunc whose kernels run on the CPU."""

    def __init__(self, root, library: Path):
        module = tvm_ffi.load_module(str(library))
        imported.replace(root, "cuda", module)
        self.kernel, self.module, self.library = root["kernel"], module, library

    def __call__(self, *arrays: np.ndarray, reverse: bool = False) -> list[np.ndarray]:
        """Run on copies of the arrays, in the `order` that `reverse` says; all of them afterwards."""
        order(self.library, reverse)
        buffers = [Fenced(a, at_end=not reverse) for a in arrays]
        self.kernel(*(b.tensor for b in buffers))
        return [b.result() for b in buffers]


_PAGE, _ALIGNED = mmap.PAGESIZE, 64


class Fenced:
    """A copy of an array between two pages that nobody may touch, at the end of the space between or at its start;
    what is left of the space is full of 0xFF."""

    def __init__(self, array: np.ndarray, at_end: bool):
        size = -(-array.nbytes // _ALIGNED) * _ALIGNED
        inner = -(-size // _PAGE) * _PAGE
        self.space = mmap.mmap(-1, inner + 2 * _PAGE)
        raw = np.frombuffer(self.space, np.uint8)
        self.protect = [(raw.ctypes.data, _PAGE), (raw.ctypes.data + _PAGE + inner, _PAGE)]
        self.raw = raw[_PAGE : _PAGE + inner]
        self.raw[:] = 0xFF
        self.start = inner - size if at_end else 0
        self.stop = self.start + array.nbytes
        self.values = self.raw[self.start : self.stop].view(array.dtype).reshape(array.shape)
        self.values[...] = array
        self.tensor = tvm.runtime.from_dlpack(self.values)
        for place, length in self.protect:
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(place), ctypes.c_size_t(length), 0) == 0

    def result(self) -> np.ndarray:
        """The array as the kernel left it."""
        assert (self.raw[: self.start] == 0xFF).all() and (self.raw[self.stop :] == 0xFF).all(), "wrote outside"
        return self.values.copy()
