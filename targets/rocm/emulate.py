"""Run a kernel function as TVM would, with the emulator in place of the GPU.

TVM's own host code checks the arguments and decides on grids, blocks and the order of kernel arguments; where it would
launch a kernel on a ROCm device, the emulator runs it. So what is tested is what a card would be given.
"""

from __future__ import annotations

import ctypes
import itertools
from contextlib import contextmanager

import numpy as np
import tvm
import tvm_ffi

from mlcrt.kernels.simt import Library

from . import assembly
from .architecture import CHIPS, CODE_OBJECT, chip_target
from .emulator import Launch, Memory, Program, Report, Unwritten

_ROCM = 10  # DLPack's kDLROCM
_numbers = itertools.count()


class Emulated:
    """A PrimFunc compiled for one RDNA3 chip.

    program: its kernels; calling it with the function's arguments (arrays, or Unwritten(array) for what no kernel may
    read before writing it; updated in place) runs every kernel and returns their reports in launch order. Raises
    EmulationError.
    """

    def __init__(self, function, arch: str = "gfx1100", lanes: int | None = None):
        name = f"emulated{next(_numbers)}"
        chip = CHIPS[arch]
        with assembly.quiet():
            target = tvm.target.Target(
                chip_target(chip, lanes or chip.lanes, CODE_OBJECT, (chip,)), host={"kind": "llvm"}
            )
            with tvm.transform.PassContext(opt_level=3, disabled_pass=list(Library.skipped_passes)):  # as a model is
                built = tvm.compile(tvm.IRModule({name: function.with_attr("global_symbol", name)}), target)
        device = built.mod.imports[0]
        self.text = device.inspect_source("asm")
        self.program = Program.parse(self.text)
        self.tags = assembly.launch_tags(device)
        built.mod.clear_imports()  # so that the kernels are looked up among the functions registered below
        for kernel in self.program.kernels:
            tvm_ffi.register_global_func(kernel, lambda *a, kernel=kernel: self._launch(kernel, a))
        self._host = built[name]
        self._memory, self._reports, self._error = Memory(), [], None

    def __call__(self, *arrays) -> list[Report]:
        self._memory, self._reports, self._error, held = Memory(), [], None, []
        for i, value in enumerate(arrays):
            array = value.array if isinstance(value, Unwritten) else value
            buffer = self._memory.map(array, f"argument {i}", not isinstance(value, Unwritten))
            held.append(_Tensor(array, buffer.start))
        with _no_device():
            try:
                self._host(*(t.tensor for t in held))
            except Exception as error:
                raise self._error or error from None
        return self._reports

    def _launch(self, kernel: str, arguments: tuple) -> None:
        tags = self.tags[kernel]
        values = [int(a.value or 0) if isinstance(a, ctypes.c_void_p) else a for a in arguments]
        values, sizes = (
            values[: len(values) - len(tags)],
            dict(zip(tags, values[len(values) - len(tags) :], strict=True)),
        )
        grid, block = ([sizes.get(f"{kind}.{axis}", 1) for axis in "xyz"] for kind in ("blockIdx", "threadIdx"))
        try:
            lds = sizes.get("tirx.use_dyn_shared_memory", 0)
            self._reports.append(Launch(self.program, kernel, grid, block, values, lds, self._memory).run())
        except Exception as error:
            self._error = error
            raise


@contextmanager
def _no_device():
    """TVM's host code selects its device before launching; there is none to select."""
    name = "__tvm_set_device"
    stock = tvm_ffi.get_global_func(name)
    tvm_ffi.register_global_func(name, lambda *_: None, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, stock, override=True)


class _DLTensor(ctypes.Structure):
    """DLPack's DLManagedTensor, the fields of DLTensor first."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


class _Tensor:
    """A tensor "on rocm:0" with an array's shape and an address of the emulator."""

    def __init__(self, array: np.ndarray, address: int):
        strides, step = [], 1
        for extent in reversed(array.shape):
            strides.insert(0, step)
            step *= extent
        self._shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        self._strides = (ctypes.c_int64 * max(1, array.ndim))(*strides)
        code = {"i": 0, "u": 1, "f": 2}[array.dtype.kind]
        self._managed = _DLTensor(
            address, _ROCM, 0, array.ndim, code, 8 * array.itemsize, 1, self._shape, self._strides, 0, None, None
        )
        self.tensor = tvm_ffi.from_dlpack(self)

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self._managed), b"dltensor", None)

    def __dlpack_device__(self):
        return (_ROCM, 0)
