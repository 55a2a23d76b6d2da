"""Metal kernels off a Mac: read what TVM embeds, check it with a C++ front end, and run it on the CPU.

`shim/metal_stdlib` gives the language, `shim/machine.cc` runs threadgroups; see there for what each catches.
"""

from __future__ import annotations

import functools
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import imported
import tvm
import tvm_ffi

from mlcrt.targets import cpu, metal
from mlcrt.targets.cpu.link import link
from mlcrt.targets.metal.finish import threadgroup_bytes

SHIM = Path(__file__).parent / "shim"
EMULATED = Path(__file__).parent.parent / "emulated"  # what CUDA's emulator shares
LEVEL = "x86-64-v3"  # of what runs here; v3 converts half floats in hardware
_CLANG = (sys.executable, "-m", "ziglang", "clang", "-target", "x86_64-linux-gnu", f"-march={LEVEL}", "-std=c++17",
          "-nostdinc", f"-I{SHIM}", f"-I{EMULATED}", "-x", "c++")  # fmt: skip
_CHECK = ("-DMETAL_SPACES", "-Werror=unknown-attributes", "-Werror=double-promotion", "-ferror-limit=0",
          "-fsyntax-only", "-fno-color-diagnostics", "-Xclang", "-ast-dump")  # fmt: skip
_RUN = ("-O1", "-fPIC", "-fvisibility=hidden", "-Xclang", "-ffloat16-excess-precision=none",
        "-ftrivial-auto-var-init=pattern",
        "-fsanitize=array-bounds,alignment", "-fsanitize-minimal-runtime")  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One kernel of a library: its source, (type code, bits) of every argument, and the launch's extents in order."""

    name: str
    source: str
    arguments: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]

    @property
    def signature(self) -> Signature:
        return Signature.read(self)

    @property
    def threadgroup_bytes(self) -> int:
        return threadgroup_bytes(self.source)


class Reader:
    """Little-endian numbers and texts of TVM's serialisation."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def number(self, form: str = "Q") -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> bytes:
        size = self.number()
        self.at += size
        return self.data[self.at - size : self.at]


def kernels_of_tree(tree: bytes) -> dict[str, Kernel]:
    """The Metal kernels of a serialised import tree (the layout is described in targets/cuda/fatbin.py)."""
    reader = Reader(tree)
    assert reader.number() == len(tree) - 8
    for _ in range(2):
        for _ in range(reader.number()):
            reader.number()
    found = {}
    while reader.at < len(tree):
        kind = reader.text()
        if kind == b"_lib":
            continue
        payload = reader.text()
        if kind == b"metal":
            found |= _kernels_of_payload(payload)
    return found


def _kernels_of_payload(payload: bytes) -> dict[str, Kernel]:
    reader = Reader(payload)
    assert reader.text() == b"metal", "the kernels are not embedded as source"
    infos = {}
    for _ in range(reader.number()):
        key, name = reader.text().decode(), reader.text().decode()
        assert key == name
        types = tuple((reader.number("B"), reader.number("B"), reader.number("H"))[:2] for _ in range(reader.number()))
        tags = tuple(reader.text().decode() for _ in range(reader.number()))
        for _ in range(reader.number()):
            reader.number("i")
        infos[name] = types, tags
    sources = {reader.text().decode(): reader.text().decode() for _ in range(reader.number())}
    assert reader.at == len(payload) and sources.keys() == infos.keys()
    return {name: Kernel(name, sources[name], *infos[name]) for name in sources}


def kernels_of_module(module) -> dict[str, Kernel]:
    """The Metal kernels that a compiled module imports."""
    return kernels_of_tree(tree_of_module(module))


def tree_of_module(module) -> bytes:
    """A compiled module's imports, serialised as a library has them."""
    return tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()


@dataclass(frozen=True)
class Signature:
    """buffers: element types; scalars: their struct's name, or None; block, thread: lanes of the index vectors."""

    buffers: tuple[str, ...]
    scalars: str | None
    block: int
    thread: int

    @classmethod
    def read(cls, kernel: Kernel) -> Signature:
        """From the text; ValueError where an argument is not what TVM's Metal runtime binds."""
        match = re.search(r"^kernel void (\w+)\((.*?)\) \{", kernel.source, re.S | re.M)
        if not match or match[1] != kernel.name:
            raise ValueError(f"{kernel.name}: no kernel function of that name")
        buffers, scalars, index = [], None, {}
        for number, text in enumerate(part.strip() for part in match[2].split(",")):
            if found := re.fullmatch(r"device (\w+)\* \w+ \[\[ buffer\((\d+)\) \]\]", text):
                buffers.append(found[1])
                bound = int(found[2])
            elif found := re.fullmatch(r"constant (\w+)& \w+ \[\[ buffer\((\d+)\) \]\]", text):
                scalars, bound = found[1], int(found[2])
            elif found := re.fullmatch(r"uint([23]?) \w+ \[\[(\w+)\]\]", text):
                index[found[2]], bound = int(found[1] or 1), number
            else:
                raise ValueError(f"{kernel.name}: argument '{text}' is not one that the runtime binds")
            if bound != number:
                raise ValueError(f"{kernel.name}: argument {number} is bound to buffer {bound}")
        pointers = sum(code == 3 for code, _ in kernel.arguments)
        numbers = kernel.arguments[pointers:]
        if len(buffers) != pointers or any(code not in (0, 1) for code, _ in numbers) or bool(numbers) != bool(scalars):
            raise ValueError(f"{kernel.name}: its text and what the host passes differ")
        return cls(tuple(buffers), scalars, index["threadgroup_position_in_grid"],
                   index["thread_position_in_threadgroup"])  # fmt: skip


def _as_cpp(kernel: Kernel) -> str:
    """The kernel in a namespace. C++ wants function-scope variables of an address space to be static; that is the one
    change to the text, and their section lets the machine fill them before every threadgroup."""
    section = f'static __attribute__((used, section("tg_{kernel.name}")))'
    text = re.sub(r"^( *)(threadgroup \w+ \w+\[\d+\];)", rf"\1{section} \2", kernel.source, flags=re.M)
    return f'namespace in_{kernel.name} {{\n#line 1 "{kernel.name}.metal"\n{text}\n}}\n'


def check(kernels: list[Kernel]) -> list[str]:
    """What the C++ front end has against the kernels, one line each: types, overloads, attributes, address spaces."""
    source = "#include <metal_stdlib>\n" + "".join(map(_as_cpp, kernels))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "kernels.cc")
        file.write_text(source)
        # a C cast may change the address space in clang; the syntax tree tells
        command = [*_CLANG, *_CHECK, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
    problems = [line for line in result.stderr.splitlines() if "error:" in line]
    place = ""
    for line in result.stdout.splitlines():
        if found := re.search(r"in_(\w+)", line) if "NamespaceDecl" in line else None:
            place = found[1]
        if "<AddressSpaceConversion>" in line:
            problems.append(f"{place}.metal: error: cast to another address space: {line.split('<', 1)[1]}")
    if result.returncode and not problems:
        problems.append(result.stderr)
    return problems


def _entry(kernel: Kernel) -> str:
    """C++ that takes the host's packed arguments (buffers, scalars, extents) and launches the kernel."""
    s, name = kernel.signature, kernel.name
    values = [f"(device {t} *)a[{i}]" for i, t in enumerate(s.buffers)]
    if s.scalars:
        values.append(f"*(constant in_{name}::{s.scalars} *)a[{len(s.buffers)}]")
    for lanes, index in ((s.block, "b"), (s.thread, "t")):
        fields = ", ".join(f"{index}.{axis}" for axis in "xyz"[:lanes])
        values.append(f"{fields}" if lanes == 1 else f"metal_make_uint{lanes}({fields})")
    count, extents = len(kernel.arguments), []
    for i, tag in enumerate(kernel.tags):
        where, axis = tag.split(".")
        extents.append(f"{'grid' if where == 'blockIdx' else 'threads'}.{axis} = (uint)v[{count + i}].number;")
    memory = "nullptr, 0"
    declare = ""
    if kernel.threadgroup_bytes:
        declare = f'extern "C" uchar __start_tg_{name}[], __stop_tg_{name}[];\n'
        memory = f"__start_tg_{name}, __stop_tg_{name} - __start_tg_{name}"
    return f"""{declare}
static void call_{name}(void **a, uint3 b, uint3 t) {{ in_{name}::{name}({", ".join(values)}); }}
extern "C" __attribute__((visibility("default")))
int __tvm_ffi_{name}(void *, const Any *v, int n, Any *) {{
  void *a[{len(s.buffers) + 1}];
  long scalars[{max(1, count - len(s.buffers))}];
  for (int i = 0; i < {len(s.buffers)}; ++i) a[i] = v[i].pointer;
  for (int i = {len(s.buffers)}; i < {count}; ++i) scalars[i - {len(s.buffers)}] = v[i].number;
  a[{len(s.buffers)}] = scalars;
  if (n != {count + len(kernel.tags)}) return -2;
  uint3 grid = {{1, 1, 1}}, threads = {{1, 1, 1}};
  {" ".join(extents)}
  return metal_launch("{name}", call_{name}, a, grid, threads, {memory});
}}
"""


_HEAD = """#include <metal_stdlib>
struct Any { int kind; int padding; union { long number; void *pointer; }; };
extern "C" int metal_launch(const char *, void (*)(void **, uint3, uint3), void **, uint3, uint3, uchar *, ulong);
"""
_KEEP: list = []  # loaded machines: their code must outlive every function taken from them


def executable(kernels: list[Kernel], flags: tuple[str, ...] = ()):
    """A TVM module with the kernels as functions that run on the CPU, and the switch for the order of threads."""
    scratch = tempfile.TemporaryDirectory()
    folder = Path(scratch.name)
    file = folder / "kernels.cc"
    file.write_text(_HEAD + "".join(_as_cpp(k) + _entry(k) for k in kernels))
    for source in (file, SHIM / "machine.cc"):
        out = folder / f"{source.stem}.o"
        options = ["-O2", "-fPIC", "-fvisibility=hidden"] if source.stem == "machine" else [*_RUN, *flags]
        command = [*_CLANG, *options, "-w", "-c", str(source), "-o", str(out)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[:4000]
    library = folder / "metal.so"
    link(str(library), [str(folder / "kernels.o"), str(folder / "machine.o")])
    module = tvm_ffi.load_module(str(library))
    import ctypes

    switch = ctypes.CDLL(str(library)).metal_reverse
    _KEEP.append((scratch, module))
    return module, switch


@functools.lru_cache
def twin() -> tvm.target.Target:
    """The Metal target with this machine as host, and its memory as device memory."""
    attributes = metal.attributes().tvm_target()
    host = cpu.attributes(LEVEL).tvm_target()
    return tvm.target.Target({**attributes, "host": host, "target_device_type": 1})


def run_here(root, flags: tuple[str, ...] = ()):
    """Replace the Metal kernels that a module compiled for `twin()` imports by ones that run on the CPU; the kernels
    and the switch that reverses the order of threads."""
    kernels = kernels_of_module(root)
    module, switch = executable(list(kernels.values()), flags)
    imported.replace(root, "metal", module)
    return kernels, switch


def functions(built: dict) -> tuple:
    """PrimFuncs by name → (their callables by name, their Metal kernels, the switch), compiled all at once."""
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in built.items()})
    root = tvm.compile(module, target=twin()).mod
    kernels, switch = run_here(root)
    return {name: root[name] for name in built}, kernels, switch
