"""Branches, barriers, waits, and the instructions that only hint."""

from __future__ import annotations

import re

import numpy as np

from .errors import EmulationError, Race, UnknownInstruction
from .operands import EXEC_LO, VCC_LO
from .parser import Instruction, Kernel
from .table import handles

END = 1 << 60  # the program counter of a wave that is done


def ends_block(mnemonic: str) -> bool:
    """Does control go elsewhere than to the next instruction?"""
    if mnemonic == "s_barrier_signal":
        return False
    return mnemonic.startswith(("s_branch", "s_cbranch", "s_endpgm", "s_barrier", "s_setpc", "s_swappc"))


def _target(instruction: Instruction, kernel: Kernel) -> int:
    label = instruction.words[0]
    if label not in kernel.labels:
        raise UnknownInstruction(f"{kernel.name} line {instruction.line}: no label '{label}'")
    return kernel.labels[label]


@handles("s_branch")
def _branch(instruction: Instruction, kernel: Kernel):
    target = _target(instruction, kernel)

    def step(waves):
        waves.pc[waves.where] = target

    return step


_CONDITIONS = {
    "scc0": lambda w: ~w.scc[w.where],
    "scc1": lambda w: w.scc[w.where],
    "vccz": lambda w: w.mask_bits(VCC_LO) == 0,
    "vccnz": lambda w: w.mask_bits(VCC_LO) != 0,
    "execz": lambda w: w.mask_bits(EXEC_LO) == 0,
    "execnz": lambda w: w.mask_bits(EXEC_LO) != 0,
}


def _conditional(condition):
    def binder(instruction: Instruction, kernel: Kernel):
        target = _target(instruction, kernel)

        def step(waves):
            taken = condition(waves)
            waves.pc[waves.where] = np.where(taken, target, waves.pc[waves.where])

        return step

    return binder


for _name, _condition in _CONDITIONS.items():
    handles(f"s_cbranch_{_name}")(_conditional(_condition))


@handles("s_endpgm")
def _end(instruction: Instruction, kernel: Kernel):
    def step(waves):
        waves.pc[waves.where] = END

    return step


@handles("s_barrier")
def _barrier(instruction: Instruction, kernel: Kernel):
    """LLVM orders LDS accesses across a barrier by waiting for them first; one still in flight may land after the
    barrier, where another wave may already read or write its bytes."""

    def step(waves):
        _arrive(waves)
        waves.waiting[waves.where] = True

    return step


def _arrive(waves) -> None:
    if waves.lds is not None and waves.lds.shared:
        stores, accesses = waves.counters.in_flight(waves.where)
        if accesses.any():
            wave = int(np.argmax(accesses))
            what = "stores" if stores[wave] else "accesses"
            raise Race(
                f"a barrier is reached with LDS {what} in flight: no wait for them before it "
                f"({waves.name(wave, 0).rsplit(',', 1)[0]})"
            )


@handles("s_barrier_signal")
def _signal(instruction: Instruction, kernel: Kernel):
    """Half a barrier: the wave has arrived, and waits at s_barrier_wait. LDS accesses in between would belong to
    neither side; LLVM puts none there, and they are refused."""
    _workgroup(instruction, kernel)
    for other in kernel.instructions[kernel.instructions.index(instruction) + 1 :]:
        if other.mnemonic == "s_barrier_wait":
            return lambda waves: _arrive(waves)
        if other.mnemonic.startswith(("ds_", "s_branch", "s_cbranch", "s_endpgm")):
            break
    raise UnknownInstruction(
        f"{kernel.name} line {instruction.line}: LDS accesses or branches between the halves of a barrier are not "
        "emulated"
    )


@handles("s_barrier_wait")
def _barrier_wait(instruction: Instruction, kernel: Kernel):
    _workgroup(instruction, kernel)

    def step(waves):
        waves.waiting[waves.where] = True

    return step


def _workgroup(instruction: Instruction, kernel: Kernel) -> None:
    if instruction.words not in (("-1",), ("0xffff",)):
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: only the workgroup's barrier is emulated (`{instruction.text}`)"
        )


@handles("s_waitcnt", "s_waitcnt_lgkmcnt")
def _wait(instruction: Instruction, kernel: Kernel):
    text = " ".join(instruction.words)
    found = re.search(r"lgkmcnt\((\d+)\)", text)
    if found:
        left = int(found[1])
    elif instruction.mnemonic == "s_waitcnt_lgkmcnt":
        left = int(instruction.words[-1], 0)
    elif re.fullmatch(r"0(x0+)?", text):
        left = 0
    elif re.search(r"(vmcnt|expcnt)\(\d+\)", text):
        return _nothing(instruction, kernel)
    else:
        raise UnknownInstruction(f"{kernel.name} line {instruction.line}: wait `{instruction.text}` is not known")

    def step(waves):
        waves.counters.wait(waves.where, left)

    return step


@handles("s_wait_dscnt", "s_wait_loadcnt_dscnt", "s_wait_storecnt_dscnt")
def _wait_lds(instruction: Instruction, kernel: Kernel):
    """gfx12: how many LDS operations may be left; in the combined forms the low six bits."""
    left = int(instruction.words[0], 0) & 0x3F

    def step(waves):
        waves.counters.wait(waves.where, left)

    return step


@handles(
    "s_wait_loadcnt", "s_wait_storecnt", "s_wait_kmcnt", "s_wait_alu", "s_wait_idle", "global_inv", "global_wb",
    "s_nop", "s_clause", "s_delay_alu", "s_sleep", "s_setprio", "s_set_inst_prefetch_distance", "s_inst_prefetch",
    "s_waitcnt_depctr", "s_waitcnt_vscnt", "s_waitcnt_vmcnt", "s_waitcnt_expcnt", "s_code_end", "s_sendmsg",
    "s_icache_inv", "s_dcache_inv", "buffer_gl0_inv", "buffer_gl1_inv",
)  # fmt: skip
def _nothing(instruction: Instruction, kernel: Kernel):
    """Scheduling hints and cache upkeep: memory here is coherent and waits for nobody."""
    return lambda waves: None


@handles("s_denorm_mode")
def _denorm_mode(instruction: Instruction, kernel: Kernel):
    mode = int(instruction.operands[0].value)

    def step(waves):
        set_denormals(waves, mode & 3, (mode >> 2) & 3)

    return step


@handles("s_round_mode")
def _round_mode(instruction: Instruction, kernel: Kernel):
    if instruction.operands[0].value:
        raise UnknownInstruction(f"{kernel.name} line {instruction.line}: only round-to-nearest is emulated")
    return lambda waves: None


def set_denormals(waves, single: int, half: int) -> None:
    """Modes 0 (flush) and 3 (keep) for float32 and float16; the waves of a launch share the mode."""
    if not {single, half} <= {0, 3}:
        raise EmulationError("a float mode that flushes only inputs or only outputs is not emulated")
    waves.flush.single, waves.flush.half = single == 0, half == 0
