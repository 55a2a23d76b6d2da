"""Machine code instead of CUDA source inside the exported library.

TVM built without a driver stores its CUDA module as source, which the runtime would compile at every load. Here the
serialised import tree is taken as TVM writes it, the source of every "cuda" entry is compiled for the wanted
architectures, and the entry is replaced by the binary in the same format, which the runtime hands to the driver.

Serialised tree (little-endian; str = u64 length + bytes): u64 size of the rest; import tree as two u64 vectors (row
pointers, children); per module str kind and, but for "_lib", str payload. A CUDA payload is
str format; u64 n × (str key; str name; u64 k × 4 bytes of argument types; u64 t × str launch tag; u64 e × i32);
str code.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mlcrt.errors import MlcrtError
from mlcrt.targets.cpu.link import binary_object, link

from . import nvrtc
from .architecture import CudaArch, number, portable


def export_options(arch: CudaArch) -> dict:
    """Arguments for TVM's export_library."""
    return {
        "fcompile": link,
        "fpack_imports": partial(_pack_imports, arch),
    }


def _pack_imports(arch: CudaArch, module, _is_system_lib, prefix: str, workspace: str) -> str:
    import tvm_ffi

    tree = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
    packed = replace_cuda_source(tree, lambda source: compile_source(source, arch.sms))
    return binary_object(packed, f"{prefix}__tvm_ffi__library_bin", Path(workspace))


OVERLAP_TAG = b"tirx.use_programtic_dependent_launch"  # as TVM's runtime spells it


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def u64(self) -> int:
        self.at += 8
        return struct.unpack_from("<Q", self.data, self.at - 8)[0]

    def text(self) -> bytes:
        size = self.u64()
        self.at += size
        return self.data[self.at - size : self.at]

    def skip(self, count: int) -> None:
        self.at += count

    def vector(self, size: int) -> bytes:
        """A vector of `size`-byte elements with its length in front, as it stands."""
        start = self.at
        self.skip(size * self.u64())
        return self.data[start : self.at]


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def replace_cuda_source(tree: bytes, compiler: Callable[[bytes], bytes]) -> bytes:
    """The serialised import tree with every CUDA module's source compiled by `compiler` to a fat binary."""
    reader = _Reader(tree)
    reader.u64()
    rows = reader.u64()
    reader.skip(8 * rows)
    children = reader.u64()
    reader.skip(8 * children)
    result = [tree[8 : reader.at]]
    for _ in range(rows - 1):
        kind = reader.text()
        result.append(_text(kind))
        if kind in (b"_lib", b"_import_tree"):
            continue
        payload = reader.text()
        result.append(_text(_compile_payload(payload, compiler) if kind == b"cuda" else payload))
    body = b"".join(result)
    return struct.pack("<Q", len(body)) + body


def _compile_payload(payload: bytes, compiler: Callable[[bytes], bytes]) -> bytes:
    reader = _Reader(payload)
    if reader.text() != b"cuda":
        return payload  # machine code already
    count = reader.u64()
    functions = []
    for _ in range(count):
        key, name = reader.text(), reader.text()
        types = reader.vector(4)
        tags = [reader.text() for _ in range(reader.u64())]
        functions.append((key, name, types, tags, reader.vector(4)))
    source = reader.text()
    result = [_text(b"fatbin"), struct.pack("<Q", count)]
    for key, name, types, tags, extra in functions:
        if overlaps(source, name):
            tags = [OVERLAP_TAG, *tags]  # the tag of dynamic shared memory has to stay last
        result += [_text(key), _text(name), types, struct.pack("<Q", len(tags)), *map(_text, tags), extra]
    return b"".join(result) + _text(compiler(source))


def overlaps(source: bytes, kernel: bytes) -> bool:
    """Whether a kernel waits for the one in front of it by itself, so that it may be launched before that has ended."""
    start = re.search(rb"__global__[^;{]*\b" + re.escape(kernel) + rb"\([^;{]*\)\s*\{", source)
    end = source.find(b"__global__", start.end()) if start else -1
    return start is not None and b"mlcrt_overlap(" in source[start.end() : end if end > 0 else len(source)]


def finished_source(source: bytes) -> bytes:
    """TVM's CUDA source with what our kernels need and TVM does not say."""
    # Were activations or indices promised to be nobody else's, their loads could move before mlcrt_overlap.
    source = re.sub(rb"\b(float|half|int)\* __restrict__ (?!\w+_(?:values|scales|mins)_ptr\b)", rb"\1* ", source)
    # Tensor cores that read shared memory in rows of 128 bytes want eight of them aligned.
    return re.sub(rb"\bextern __shared__ __align__\(\d+\)", b"extern __shared__ __align__(1024)", source)


def compile_source(source: bytes, sms: tuple[str, ...]) -> bytes:
    """CUDA source → fat binary with machine code for every architecture, and PTX of the newest for later ones; sm_90a
    has none: no other architecture runs that."""
    source = finished_source(source)
    numbers = [sm.removeprefix("sm_") for sm in sorted(sms, key=number)]
    if nvrtc.available():
        return nvrtc.compile_fatbin(source, numbers)
    if (compiler := _nvcc()) is None:
        raise MlcrtError(compiler_missing())
    return _compile_with_nvcc(compiler, source, numbers)


def _compile_with_nvcc(nvcc: str, source: bytes, numbers: list[str]) -> bytes:
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    if portable(numbers[-1]):
        flags.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    with tempfile.TemporaryDirectory() as scratch:
        file, output = Path(scratch, "kernels.cu"), Path(scratch, "kernels.fatbin")
        file.write_bytes(source)
        command = [nvcc, "-fatbin", "-O3", "--threads=0", "-o", str(output), str(file), *flags]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
            raise MlcrtError(f"nvcc failed: {lines[0]}")
        return output.read_bytes()


def compiler_missing() -> str | None:
    """Why CUDA sources cannot be compiled here, if they cannot."""
    if nvrtc.available() or _nvcc():
        return None
    return "compiling for CUDA needs NVRTC or nvcc, and neither is here; pip install 'mlcrt[cuda]'"


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin", "nvcc")] if home else []
    candidates += [Path(shutil.which("nvcc") or "/nonexistent"), Path("/usr/local/cuda/bin/nvcc")]
    return next((str(c) for c in candidates if c.is_file()), None)
