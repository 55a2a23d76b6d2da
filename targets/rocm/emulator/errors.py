"""What an emulated kernel can do wrong. Every message is one sentence; the launch prefixes kernel, line and text."""

from __future__ import annotations

from mlcrt.errors import MlcrtError


class EmulationError(MlcrtError):
    """The program cannot be emulated or did something a real GPU would not forgive."""


class ParseError(EmulationError):
    """The assembly text is not of the form LLVM prints."""


class UnknownInstruction(EmulationError):
    """A mnemonic, modifier or operand form without an entry in the tables."""


class OutOfBounds(EmulationError):
    """An access outside of every registered buffer, the workgroup's LDS or the lane's scratch."""


class Unwritten(EmulationError):
    """A read of memory bytes that nobody wrote."""


class UninitialisedRegister(EmulationError):
    """A read of register lanes that nobody wrote."""


class Race(EmulationError):
    """Two waves touch the same LDS bytes, one of them writing, with no barrier that orders them."""


class Deadlock(EmulationError):
    """Waves wait at a barrier that the others of their workgroup never reach, or the step limit ran out."""
