"""The emulator behind the fake HIP library: what a launch gives HIP is what the emulator runs.

Device memory is mapped into the emulator at its own addresses with its exact bounds; bytes that neither a copy nor a
kernel wrote may not be read. A code object is run from the assembly that it was made of.
"""

from __future__ import annotations

import ctypes
import hashlib

import numpy as np
from fake_hip import LAUNCH_FAILURE, FakeHip

from mlcrt.targets.rocm.emulator import Launch, Memory, Program
from mlcrt.targets.rocm.emulator.memory import Buffer


class EmulatedGpu:
    """`launches` counts kernels by name; `error` is the first exception of the emulator, which HIP reports as 719."""

    def __init__(self, fake: FakeHip):
        self.fake, self.memory = fake, Memory()
        self.launches: dict[str, int] = {}
        self.error: Exception | None = None
        self._programs: dict[str, Program] = {}
        self._buffers: dict[int, Buffer] = {}
        fake.on_launch(self._launch)
        fake.on_memory(self._memory_changed)

    def add_code(self, code: bytes, text: str) -> None:
        """`text` is the assembly of the code object `code`."""
        program = Program.parse(text)
        self._programs[hashlib.sha256(code).hexdigest()] = program
        for name, kernel in program.kernels.items():
            self.fake.define_kernel(name, kernel.descriptor.arguments)

    def _launch(self, kernel, image, grid, block, lds, arguments) -> int:
        try:
            program = self._programs[hashlib.sha256(image).hexdigest()]
            Launch(program, kernel, grid, block, arguments, lds, self.memory).run()
            self.launches[kernel] = self.launches.get(kernel, 0) + 1
        except Exception as error:
            error.__context__ = None  # tracebacks would keep everything on the stack alive
            self.error = self.error or error.with_traceback(None)
            return LAUNCH_FAILURE
        return 0

    def _memory_changed(self, what: int, address: int, size: int, source: int | None) -> None:
        if what == 0:
            raw = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
            self._buffers[address] = self.memory.map(raw, f"{size} bytes of the device", False, address)
        elif what == 1:
            self.memory.unmap(self._buffers.pop(address))
        else:
            self._written(address, size)[:] = 1 if what == 2 else self._written(source, size)

    def _written(self, address: int, size: int) -> np.ndarray:
        start = max(a for a in self._buffers if a <= address)
        return self._buffers[start].written[address - start : address - start + size]
