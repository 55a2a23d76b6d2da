"""mnemonic → binder, the one registry that all instruction files fill.

A binder takes the parsed instruction and its kernel and returns a callable of the running waves. Operands are
resolved once, when a kernel is launched; so an unknown instruction stops a launch even where control never gets to it.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import UnknownInstruction
from .parser import Instruction, Kernel

Step = Callable[["object"], None]
BINDERS: dict[str, Callable[[Instruction, Kernel], Step]] = {}


def handles(*mnemonics: str):
    """Decorator: the function binds these mnemonics."""

    def register(binder):
        for mnemonic in mnemonics:
            if mnemonic in BINDERS:
                raise ValueError(f"{mnemonic} has two entries")
            BINDERS[mnemonic] = binder
        return binder

    return register


def bind(instruction: Instruction, kernel: Kernel) -> Step:
    """The executable form. Raises UnknownInstruction with the name and line."""
    binder = BINDERS.get(instruction.mnemonic)
    if binder is None:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: the emulator has no instruction '{instruction.mnemonic}' "
            f"(`{instruction.text}`)"
        )
    return binder(instruction, kernel)


def instruction_class(mnemonic: str) -> str:
    """The unit that executes it: SALU, SMEM, VALU, VOPD, WMMA, LDS, VMEM, SCRATCH or CONTROL."""
    if mnemonic == "dual":
        return "VOPD"
    if mnemonic.startswith(("v_wmma", "v_mfma")):
        return "WMMA"
    if mnemonic.startswith("v_"):
        return "VALU"
    if mnemonic.startswith("ds_"):
        return "LDS"
    if mnemonic.startswith(("global_", "flat_", "buffer_")):
        return "VMEM"
    if mnemonic.startswith("scratch_"):
        return "SCRATCH"
    if mnemonic.startswith(("s_load", "s_dcache")):
        return "SMEM"
    control = ("s_branch", "s_cbranch", "s_endpgm", "s_barrier", "s_wait", "s_delay", "s_clause", "s_nop", "s_sleep",
               "s_set", "s_sendmsg", "s_code_end", "s_denorm", "s_round", "s_inst_prefetch", "s_icache")  # fmt: skip
    return "CONTROL" if mnemonic.startswith(control) else "SALU"
