"""Run a kernel: workgroups in batches, the waves of a batch in lockstep.

Of the waves that are at different places the ones furthest behind run, up to where they meet the next ones, so that
diverged waves join again; a batch whose waves agree runs every instruction once over all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from . import (
    control,
    ds,
    salu,
    salu_float,
    valu_cdna,
    valu_compare,
    valu_convert,
    valu_float,
    valu_integer,
    valu_packed,
    vmem,
    wmma,
)
from .errors import Deadlock, EmulationError, ParseError
from .lds import Lds
from .memory import Buffer, Memory
from .operands import EXEC_LO, TRAP
from .parser import Kernel, Program
from .report import Report
from .state import Waves, pack_mask
from .table import bind

# importing these fills the instruction table
INSTRUCTION_MODULES = (control, ds, salu, salu_float, valu_cdna, valu_compare, valu_convert, valu_float, valu_integer,
                       valu_packed, vmem, wmma)  # fmt: skip


class Unwritten:
    """An array argument whose bytes nobody wrote yet: the kernel may not read what it has not stored."""

    def __init__(self, array: np.ndarray):
        self.array = array


class Launch:
    """One kernel launch.

    grid, block: workgroups and threads per workgroup in x, y, z. args: values by argument name, or in the order of the
    kernel's arguments: an ndarray (a buffer, updated in place), Unwritten(array), a mapped Buffer or an int address of
    `memory`, or a number for a by-value argument (an int, or a NumPy scalar of the argument's size); or bytes: the
    arguments packed as a driver takes them. lds: bytes of dynamic LDS. memory: an address space to use; with None the
    launch has its own. batch_waves: how many waves run together; step_limit: instructions after which a batch counts as
    stuck.
    """

    def __init__(self, program: Program, kernel: str, grid: Sequence[int], block: Sequence[int],
                 args: Mapping | Sequence | bytes, lds: int = 0, memory: Memory | None = None, batch_waves: int = 512,
                 step_limit: int = 50_000_000):  # fmt: skip
        if kernel not in program.kernels:
            raise EmulationError(f"no kernel '{kernel}': the program has {', '.join(program.kernels)}")
        self.kernel: Kernel = program.kernels[kernel]
        self.grid, self.block = (tuple(v) + (1,) * (3 - len(v)) for v in (grid, block))
        self.memory = memory or Memory()
        self.lds_bytes = self.kernel.descriptor.get("group_segment_fixed_size") + lds
        self.step_limit = step_limit
        threads = self.block[0] * self.block[1] * self.block[2]
        limit = self.kernel.descriptor.notes.get("max_flat_workgroup_size", 1024)
        if not 0 < threads <= limit:
            raise EmulationError(f"{kernel}: a workgroup of {threads} threads, where 1 to {limit} are allowed")
        if self.lds_bytes > 65536:
            raise EmulationError(f"{kernel}: {self.lds_bytes} bytes of LDS, where a workgroup has 65536")
        self.threads = threads
        self.waves_per_group = -(-threads // self.kernel.lanes)
        self.groups_per_batch = max(1, batch_waves // self.waves_per_group)
        if not self.kernel.steps:
            self.kernel.steps = [
                (bind(i, self.kernel), control.ends_block(i.mnemonic)) for i in self.kernel.instructions
            ]
        self._own: list[Buffer] = []
        self._kernarg = self._pack(args)

    # arguments -----------------------------------------------------------------------------------------------------
    def _pack(self, args: Mapping | Sequence | bytes) -> bytes:
        declared = self.kernel.descriptor.arguments
        visible = [a for a in declared if not a.kind.startswith("hidden_")]
        if isinstance(args, bytes):
            if len(args) < max((a.offset + a.size for a in visible), default=0):
                raise EmulationError(f"{self.kernel.name} takes more than {len(args)} bytes of arguments")
            values = [int.from_bytes(args[a.offset : a.offset + a.size], "little") for a in visible]
        elif isinstance(args, Mapping):
            missing = [a.name for a in visible if a.name not in args]
            extra = [n for n in args if n not in {a.name for a in visible}]
            if missing or extra:
                names = ", ".join(a.name for a in visible)
                raise EmulationError(f"{self.kernel.name} takes {names}: missing {missing}, unknown {extra}")
            values = [args[a.name] for a in visible]
        else:
            if len(args) != len(visible):
                raise EmulationError(f"{self.kernel.name} takes {len(visible)} arguments, not {len(args)}")
            values = list(args)
        remaining = iter(values)  # TVM leaves arguments without a name, so that names do not tell them apart
        size = max([self.kernel.descriptor.get("kernarg_size")] + [a.offset + a.size for a in declared])
        packed = bytearray((size + 63) & ~63)  # scalar loads may fetch past the last argument
        for a in declared:
            raw = self._hidden(a.kind, a.size) if a.kind.startswith("hidden_") else self._value(a, next(remaining))
            packed[a.offset : a.offset + a.size] = raw
        return bytes(packed)

    def _value(self, argument, value) -> bytes:
        written = not isinstance(value, Unwritten)
        value = value if written else value.array
        if isinstance(value, np.ndarray) and value.ndim:
            value = self.memory.map(value, argument.name, written)
            self._own.append(value)
        if isinstance(value, Buffer):
            value = value.start
        if isinstance(value, (np.generic, np.ndarray)):
            raw = value.tobytes()
        elif isinstance(value, int):
            raw = (value & ((1 << (8 * argument.size)) - 1)).to_bytes(argument.size, "little")
        else:
            raw = struct.pack("<f" if argument.size == 4 else "<d", value)
        if len(raw) != argument.size:
            raise EmulationError(f"argument '{argument.name}' has {argument.size} bytes, the value {len(raw)}")
        return raw

    def _hidden(self, kind: str, size: int) -> bytes:
        axes = {"x": 0, "y": 1, "z": 2}
        name, _, axis = kind.rpartition("_")
        number = 0
        if axis in axes:
            number = {"hidden_block_count": self.grid, "hidden_group_size": self.block}.get(name, (0, 0, 0))[axes[axis]]
        elif kind == "hidden_grid_dims":
            number = 3
        return number.to_bytes(size, "little")

    # execution -----------------------------------------------------------------------------------------------------
    def run(self) -> Report:
        """Execute. Raises EmulationError (OutOfBounds, Race, Unwritten …) naming kernel, line and instruction."""
        descriptor = self.kernel.descriptor
        groups = self.grid[0] * self.grid[1] * self.grid[2]
        report = Report(
            self.kernel.name, groups, groups * self.waves_per_group, descriptor.get("next_free_vgpr"),
            descriptor.get("next_free_sgpr"), self.lds_bytes, descriptor.get("private_segment_fixed_size"),
        )  # fmt: skip
        self.memory.forget()
        kernarg = self.memory.map(np.frombuffer(self._kernarg, np.uint8), "kernel arguments")
        try:
            with np.errstate(all="ignore"):
                for first in range(0, groups, self.groups_per_batch):
                    batch = np.arange(first, min(first + self.groups_per_batch, groups))
                    self._run_batch(batch, kernarg.start, report)
            report.touched_bytes = self.memory.touched_bytes
        finally:
            for buffer in (kernarg, *self._own):
                self.memory.unmap(buffer)
            self._own = []
        return report

    def _start(self, groups: np.ndarray, kernarg: int, report: Report) -> Waves:
        kernel, lanes, per_group = self.kernel, self.kernel.lanes, self.waves_per_group
        d = kernel.descriptor
        count = len(groups) * per_group
        wave_in_group = np.tile(np.arange(per_group), len(groups))
        group = np.repeat(groups, per_group)
        local = np.repeat(np.arange(len(groups)), per_group)
        waves = Waves(count, lanes, kernel.registers, wave_in_group, local)
        waves.first_group = int(groups[0])
        waves.memory, waves.traffic = self.memory, report
        waves.lds = Lds(len(groups), self.lds_bytes, ds.granule(kernel), per_group)
        waves.scratch = vmem.Scratch(count, lanes, d.get("private_segment_fixed_size"))
        control.set_denormals(waves, d.get("float_denorm_mode_32", 3), d.get("float_denorm_mode_16_64", 3))
        if d.get("float_round_mode_32") or d.get("float_round_mode_16_64"):
            raise EmulationError(f"{kernel.name}: only round-to-nearest is emulated")
        thread = wave_in_group[:, None] * lanes + np.arange(lanes)
        waves.write_mask_bits(EXEC_LO, pack_mask(thread < self.threads))
        x, y, _ = self.block
        ids = (thread % x, thread // x % y, thread // (x * y))
        mode = d.get("system_vgpr_workitem_id")
        packed = sum(ids[i].astype(np.uint32) << np.uint32(10 * i) for i in range(mode + 1))
        waves.write_vector(0, packed, mask=np.ones_like(thread, bool))
        self._user_registers(waves, kernarg)
        index = d.get("user_sgpr_count")
        gx, gy, _ = self.grid
        numbers = (group % gx, group // gx % gy, group // (gx * gy))
        if kernel.generation >= 12:  # in trap registers 9, and 7 with z above y
            waves.write_scalar(TRAP + 9, numbers[0].astype(np.uint32))
            waves.write_scalar(TRAP + 7, (numbers[1] | numbers[2] << 16).astype(np.uint32))
            return waves
        for axis, number in zip("xyz", numbers, strict=True):
            if d.get(f"system_sgpr_workgroup_id_{axis}"):
                waves.write_scalar(index, number.astype(np.uint32))
                index += 1
        return waves

    def _user_registers(self, waves: Waves, kernarg: int) -> None:
        """User SGPRs in the order of the ABI; only the argument pointer has a value here."""
        index = 0
        for name, words in (("private_segment_buffer", 4), ("dispatch_ptr", 2), ("queue_ptr", 2),
                            ("kernarg_segment_ptr", 2), ("dispatch_id", 2), ("flat_scratch_init", 2),
                            ("private_segment_size", 1)):  # fmt: skip
            if not self.kernel.descriptor.get(f"user_sgpr_{name}"):
                continue
            if name == "kernarg_segment_ptr":
                waves.write_scalar(index, np.uint32(kernarg & 0xFFFFFFFF))
                waves.write_scalar(index + 1, np.uint32(kernarg >> 32))
            index += words  # reading the others stops as uninitialised

    def _run_batch(self, groups: np.ndarray, kernarg: int, report: Report) -> None:
        kernel = self.kernel
        steps = kernel.steps
        counts = np.zeros(len(steps), np.int64)
        waves = self._start(groups, kernarg, report)
        executed, at = 0, 0
        try:
            while True:
                at, stop = self._schedule(waves, report)
                if at == control.END:
                    break
                while True:
                    if at >= len(steps):
                        raise ParseError(f"{kernel.name}: control runs past the last instruction")
                    counts[at] += waves.n
                    executed += 1
                    step, leaves = steps[at]
                    if leaves:
                        waves.pc[waves.where] = at + 1
                        step(waves)
                        break
                    step(waves)
                    at += 1
                    if at == stop:
                        waves.pc[waves.where] = at
                        break
                if executed > self.step_limit:
                    raise Deadlock(f"{kernel.name} did not end within {self.step_limit:,} instructions")
        except EmulationError as e:
            if at < len(steps) and not isinstance(e, (Deadlock, ParseError)):
                i = kernel.instructions[at]
                raise type(e)(f"{kernel.name} line {i.line}, `{i.text}`: {e}") from None
            raise
        report.count(kernel, counts)

    def _schedule(self, waves: Waves, report: Report) -> tuple[int, int]:
        """Select the waves furthest behind: (their program counter, where the next ones are)."""
        while True:
            live = np.where(waves.waiting, control.END, waves.pc) if waves.waiting.any() else waves.pc
            least = int(live.min())
            if least == control.END and waves.waiting.any():
                self._release(waves, report)
                continue
            chosen = live == least
            if chosen.all():
                if waves.n != waves.count:
                    waves.select(None)
                return least, control.END
            waves.select(np.flatnonzero(chosen))
            return least, int(live[~chosen].min())

    def _release(self, waves: Waves, report: Report) -> None:
        """Every wave waits or is done: let the workgroups go on. A wave that ended counts as arrived."""
        places = waves.pc[waves.waiting]
        for group in np.unique(waves.group[waves.waiting]) if (places != places[0]).any() else ():
            mine = waves.pc[waves.waiting & (waves.group == group)]
            if (mine != mine[0]).any():
                lines = sorted({self.kernel.instructions[p - 1].line for p in mine.tolist()})
                raise Deadlock(
                    f"{self.kernel.name}: waves of workgroup {group + waves.first_group} wait at different barriers "
                    f"(lines {', '.join(map(str, lines))})"
                )
        released = np.unique(waves.group[waves.waiting])
        waves.lds.barrier(released)
        report.barriers += len(released)
        waves.waiting[:] = False
