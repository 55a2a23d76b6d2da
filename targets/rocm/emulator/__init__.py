"""An emulator of RDNA3 (gfx11), and by translation of gfx9, gfx10 and gfx12, for the assembly that LLVM prints.

    program = Program.parse(module.inspect_source("asm"))
    report = Launch(program, "gemv_kernel", grid=(64,), block=(128,), args={"W": w, "x": x, "y": Unwritten(y)}).run()

It needs NumPy only. It checks what a GPU would silently get wrong: accesses out of bounds, LDS races, reads of memory
and registers that nobody wrote, barriers reached with LDS operations in flight. Semantics follow AMD's "RDNA3
Instruction Set Architecture Reference Guide"; where the guide leaves bits open (approximate functions, WMMA rounding,
NaN payloads) the module that implements the instruction says what was chosen.
"""

from .errors import (
    Deadlock,
    EmulationError,
    OutOfBounds,
    ParseError,
    Race,
    UninitialisedRegister,
    UnknownInstruction,
)
from .errors import Unwritten as UnwrittenMemory
from .launch import Launch, Unwritten
from .memory import Buffer, Memory
from .parser import Program
from .report import Report, Traffic

__all__ = [
    "Buffer", "Deadlock", "EmulationError", "Launch", "Memory", "OutOfBounds", "ParseError", "Program", "Race",
    "Report", "Traffic", "UninitialisedRegister", "UnknownInstruction", "Unwritten", "UnwrittenMemory",
]  # fmt: skip
