"""CUDA source → fat binary with pip packages alone: NVRTC compiles, nvFatbin packs.

The libraries come from nvidia-cuda-nvrtc and nvidia-nvfatbin, the headers from nvidia-cuda-runtime and nvidia-cuda-cccl
(NVRTC and nvFatbin documentation of the CUDA toolkit; both are plain C interfaces).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from mlcrt.errors import MlcrtError

from .architecture import portable

_HEADERS = ("cuda_fp16.h", "cuda/std/cstdint", "nv/target")


def _files(pattern: str) -> list[Path]:
    """Files of NVIDIA's packages, newest toolkit first."""
    return sorted((f for p in sys.path for f in Path(p or ".").glob(f"nvidia/{pattern}")), reverse=True)


def _library(stem: str) -> Path | None:
    return next(iter(_files(f"*/lib/{stem}.so.*") + _files(f"*/bin/**/{stem}*.dll")), None)


def _include_folders() -> list[Path] | None:
    """Folders that hold the headers which the generated source includes, or None where one is missing."""
    found = [next((f.parents[len(Path(h).parts) - 1] for f in _files(f"*/include/**/{h}")), None) for h in _HEADERS]
    return None if None in found else list(dict.fromkeys(found))


def available() -> bool:
    """Whether all four packages are here."""
    return None not in (_library("libnvrtc"), _library("libnvfatbin"), _include_folders())


class _Api:
    """A C library whose functions return zero or an error that `describe` names."""

    def __init__(self, path: Path, describe: str):
        self.library = ctypes.CDLL(str(path))
        self.describe = getattr(self.library, describe)
        self.describe.restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise MlcrtError(f"{name} failed: {self.describe(code).decode()}")


def compile_fatbin(source: bytes, numbers: list[str]) -> bytes:
    """Machine code for each compute capability ("90" for 9.0), and PTX of the newest for later ones unless it is one of
    those with an a, which no other has."""
    nvrtc = _Api(_library("libnvrtc"), "nvrtcGetErrorString")
    pack = _Api(_library("libnvfatbin"), "nvFatbinGetErrorString")
    handle = ctypes.c_void_p()
    pack("nvFatbinCreate", ctypes.byref(handle), None, ctypes.c_size_t(0))
    try:
        text = b""
        for number in numbers:
            code, text = _compile(nvrtc, source, f"sm_{number}")
            arguments = (handle, code, ctypes.c_size_t(len(code)), number.encode(), b"kernels")
            pack("nvFatbinAddCubin", *arguments)
        if portable(numbers[-1]):
            arguments = (handle, text, ctypes.c_size_t(len(text)), numbers[-1].encode(), b"kernels", None)
            pack("nvFatbinAddPTX", *arguments)
        size = ctypes.c_size_t()
        pack("nvFatbinSize", handle, ctypes.byref(size))
        result = ctypes.create_string_buffer(size.value)
        pack("nvFatbinGet", handle, result)
        return result.raw
    finally:
        pack.library.nvFatbinDestroy(ctypes.byref(handle))


def _compile(nvrtc: _Api, source: bytes, architecture: str) -> tuple[bytes, bytes]:
    """(machine code, the PTX it was made from)"""
    options = [f"--gpu-architecture={architecture}", "-default-device", "-w"]
    options += [f"--include-path={folder}" for folder in _include_folders()]
    encoded = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    program = ctypes.c_void_p()
    nvrtc("nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    try:
        if nvrtc.library.nvrtcCompileProgram(program, len(options), encoded):
            lines = [line for line in _read(nvrtc, program, "ProgramLog").decode().splitlines() if "error" in line]
            raise MlcrtError(f"nvrtc failed: {(lines or ['no message'])[0]}")
        return _read(nvrtc, program, "CUBIN"), _read(nvrtc, program, "PTX")
    finally:
        nvrtc("nvrtcDestroyProgram", ctypes.byref(program))


def _read(nvrtc: _Api, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    nvrtc(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    nvrtc(f"nvrtcGet{what}", program, buffer)
    return buffer.raw
