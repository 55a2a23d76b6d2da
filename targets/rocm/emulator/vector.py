"""The machinery of VALU instructions: table entry + parsed operands → compute and commit.

Compute reads everything, commit writes; dual-issue instructions compute both halves before either commits.
Definedness: integer, bit and move instructions hand undefined lanes on (LLVM reads undefined halves on purpose and
masks them away later); every other instruction raises on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import UnknownInstruction
from .fetch import DTYPES, WIDTH, Source, source
from .lanes import dpp_control
from .operands import NULL, SCC, VCC_LO, Operand
from .parser import Instruction, Kernel
from .rounding import flush
from .table import handles


@dataclass(frozen=True)
class Entry:
    """One VALU mnemonic. out: type of the result. ins: types of the sources. function: arrays → array, or
    → (array, bool mask) when `mask_out`. accumulate: the destination is also the last source. implicit_vcc: a mask
    operand that the short encoding leaves out. transparent: undefined inputs give undefined outputs instead of an
    error; halves: then finer than all-or-nothing, by a function of (sources' masks, literals, arguments), see
    `_definedness`; flushes: denormal results flush when
    the mode says so. needs_waves: function's first argument is the wave state. clamped: takes its place
    where the clamp bit is set, which makes integers saturate."""

    out: str
    ins: tuple[str, ...]
    function: Callable
    mask_out: bool = False
    accumulate: bool = False
    transparent: bool = False
    halves: Callable | None = None
    flushes: bool = True
    needs_waves: bool = False
    clamped: Callable | None = None


ENTRIES: dict[str, Entry] = {}


def entry(mnemonic: str, out: str, ins: str, function: Callable, **options) -> None:
    """Add a table entry; ins is a space-separated list of types."""
    ENTRIES[mnemonic] = Entry(out, tuple(ins.split()), function, **options)
    handles(mnemonic)(_bind)


def _bind(instruction: Instruction, kernel: Kernel):
    compute, commit = prepare(instruction, kernel)

    def step(waves):
        commit(waves, compute(waves))

    return step


@handles("dual")
def _dual(instruction: Instruction, kernel: Kernel):
    halves = []
    for part in instruction.parts:
        single = part.mnemonic.replace("v_dual_", "v_")
        if single not in ENTRIES or not part.mnemonic.startswith("v_dual_"):
            raise UnknownInstruction(f"{kernel.name} line {part.line}: no dual-issue instruction '{part.mnemonic}'")
        operands = part.operands
        if single == "v_cndmask_b32":
            operands = (*operands, Operand("s", VCC_LO, 1))
        halves.append(prepare(Instruction(single, operands, part.modifiers, part.text, part.line), kernel))
    (compute_x, commit_x), (compute_y, commit_y) = halves

    def step(waves):
        x, y = compute_x(waves), compute_y(waves)
        y = (np.array(y[0]), *y[1:])  # a move computes a view of its source, which committing x may overwrite
        commit_x(waves, x)
        commit_y(waves, y)

    return step


_KEEPING = ("v_fma_mix", "v_fma_f16", "v_mad_u16", "v_mad_i16", "v_div_fixup_f16")  # gfx9: the other half stays
# SDWA's selections: first bit and bits
_SELECTIONS = {"DWORD": (0, 32), "WORD_0": (0, 16), "WORD_1": (16, 16), **{f"BYTE_{i}": (8 * i, 8) for i in range(4)}}
_VECTOR_MODIFIERS = {
    "dst_sel", "dst_unused", "src0_sel", "src1_sel", "clamp", "mul", "div", "op_sel", "op_sel_hi", "neg_lo", "neg_hi",
    "quad_perm", "dpp8", "row_shl", "row_shr", "row_ror", "row_mirror", "row_half_mirror", "row_share", "row_xmask",
    "row_mask", "bank_mask", "bound_ctrl", "fi",
}  # fmt: skip


def prepare(instruction: Instruction, kernel: Kernel):
    """(compute, commit): compute(waves) → (value, defined, mask_result); commit(waves, that) writes it."""
    return prepare_entry(ENTRIES[instruction.mnemonic], instruction, kernel)


def prepare_entry(table: Entry, instruction: Instruction, kernel: Kernel, halves=None, out_half=None):
    """`prepare` with an entry that is not the table's. halves: which half each 16-bit source takes ('l' or 'h');
    out_half: the half a 16-bit result goes to; both where operands and op_sel do not say."""
    modifiers = instruction.modifiers
    unknown = set(modifiers) - _VECTOR_MODIFIERS
    if unknown:
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' with '{unknown.pop()}' is not known"
        )
    operands = list(instruction.operands)
    target = operands.pop(0)
    mask_target = operands.pop(0) if table.mask_out else None
    if table.accumulate:
        operands.append(target)
    if len(operands) != len(table.ins):
        raise UnknownInstruction(
            f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' takes {len(table.ins)} sources, "
            f"not {len(operands)} (`{instruction.text}`)"
        )
    control = dpp_control(modifiers, kernel.lanes)
    selected = modifiers.get("op_sel", ())
    sources: list[Source] = []
    for i, (operand, kind) in enumerate(zip(operands, table.ins, strict=True)):
        half = "h" if i < len(selected) and selected[i] else halves[i] if halves else None
        permute = control.permute if control and i == 0 else None
        if f"src{i}_sel" in modifiers:
            sources.append(_selected(operand, kind, *_SELECTIONS[modifiers[f"src{i}_sel"]]))
        else:
            sources.append(source(operand, kind, half, permute))
    if WIDTH[table.out] == 16 and out_half is None:
        out_half = target.half or ("h" if len(selected) > len(operands) and selected[-1] else "l")
    placed = _SELECTIONS[modifiers.get("dst_sel", "DWORD")]
    if placed[1] != 32 and (placed[1] == 8 or WIDTH[table.out] != 32 or modifiers.get("dst_unused") != "UNUSED_PAD"):
        raise UnknownInstruction(f"{kernel.name} line {instruction.line}: `{instruction.text}` is not emulated")
    finish = _finisher(table, modifiers, instruction, kernel)
    registers = tuple(dict.fromkeys(r for s in sources for r in s.registers))
    register_set = frozenset(r for r, _ in registers)
    getters = [s.get for s in sources]
    function, mask_out, needs_waves = table.function, table.mask_out, table.needs_waves
    if modifiers.get("clamp") and table.clamped is not None:
        function = table.clamped
    copied = operands[0].index if table is ENTRIES["v_mov_b32"] and operands[0].kind == "s" else None
    if copied in (NULL, SCC):
        copied = None

    def compute(waves):
        if copied in waves.scalar_loose:
            # LLVM copies a scalar that has no value yet into a vector register where another path will give it one
            return waves.copy_scalar(copied)
        arguments = [get(waves) for get in getters]
        defined = None
        if not waves.loose.isdisjoint(register_set):
            defined = _definedness(waves, table, sources, registers, control, arguments)
        result = function(waves, *arguments) if needs_waves else function(*arguments)
        result, mask = result if mask_out else (result, None)
        if placed[1] == 16:
            result = (np.asarray(result).view(np.uint32) & np.uint32(0xFFFF)) << np.uint32(placed[0])
        return (result if finish is None else finish(waves, result)), defined, mask

    kept = instruction.mnemonic.startswith(_KEEPING) and "_legacy_" not in instruction.text
    clears = kernel.generation == 9 and out_half == "l" and not kept
    return compute, _committer(table, target, mask_target, out_half, control, clears)


def _selected(operand: Operand, kind: str, first: int, bits: int) -> Source:
    """Some bits of a 32-bit source as `kind`, zero-extended."""
    if bits == 32 or (bits == 16 and WIDTH[kind] == 16):
        return source(operand, kind, "h" if first else None)
    if operand.neg or operand.abs or kind[0] == "f":
        raise UnknownInstruction(f"{bits} bits of a {kind} operand are not emulated")
    whole = source(operand, "u32")
    registers = tuple((r, "h" if first >= 16 else "l") for r, _ in whole.registers)
    unsigned, mask = np.dtype(f"u{WIDTH[kind] // 8}"), np.uint32((1 << bits) - 1)

    def get(w):
        part = (np.asarray(whole.get(w)) >> np.uint32(first)) & mask
        return part.astype(unsigned).view(DTYPES[kind])

    return Source(get, registers)


def _definedness(waves, table: Entry, sources, registers, control, arguments):
    """Two masks of defined result lanes, or None; raises where undefined inputs are not allowed.

    The masks stand for the low and high half of 32-bit results, for the first and second register of 64-bit ones.
    """
    if not table.transparent or control is not None:
        for register, half in registers:
            waves.require(register, half, None if control is None else control.read_lanes(waves))
        return None
    masks = [_source_masks(waves, s) for s in sources]
    if all(m is None for m in masks):
        return None
    full = (np.full(waves.n, waves.all_lanes),) * 2
    masks = [full if m is None else m for m in masks]
    if table.halves is not None:
        return table.halves(masks, [s.literal for s in sources], arguments)
    both = masks[0][0] & masks[0][1]
    for low, high in masks[1:]:
        both = both & low & high
    return both, both


def _source_masks(waves, s: Source):
    found = [waves.defined(register) for register, _ in s.registers]
    if all(f is None for f in found):
        return None
    if len(found) == 2:
        full = np.full(waves.n, waves.all_lanes)
        return tuple(full if f is None else f[0] & f[1] for f in found)
    low, high = found[0]
    half = s.registers[0][1]
    return {"l": (low, low), "h": (high, high), None: (low, high)}[half]


def _finisher(table: Entry, modifiers: dict, instruction: Instruction, kernel: Kernel):
    """Output modifiers, then denormal flushing; None when there is nothing to do for sure."""
    clamp, scale = modifiers.get("clamp"), None
    if "mul" in modifiers:
        scale = float(modifiers["mul"])
    elif "div" in modifiers:
        scale = 1.0 / modifiers["div"]
    kind = table.out
    if kind not in ("f32", "f16"):
        if scale or (clamp and table.clamped is None):
            raise UnknownInstruction(
                f"{kernel.name} line {instruction.line}: '{instruction.mnemonic}' with clamp or output scale is not "
                f"known (`{instruction.text}`)"
            )
        return None
    attribute = "single" if kind == "f32" else "half"
    flushes = table.flushes

    def finish(waves, value):
        if scale is not None:
            value = value * value.dtype.type(scale)
        if clamp:
            value = np.where(np.isnan(value), value.dtype.type(0), np.clip(value, 0, 1))
        if flushes and getattr(waves.flush, attribute):
            value = flush(value)
        return value

    return finish


def _committer(table: Entry, target: Operand, mask_target: Operand | None, half: str | None, control, clears: bool):
    """clears: 16-bit results set the upper half to zero, as on gfx9."""
    index, width = target.index, WIDTH[table.out]

    def commit(waves, computed):
        value, defined, mask = computed
        lanes = None if control is None else control.write_mask(waves)
        if mask_target is not None:
            waves.write_mask(mask_target.index, mask)
        if width == 64:
            bits = np.asarray(value).view(np.uint64)
            first, second = ((m, m) for m in defined) if defined is not None else (None, None)
            waves.write_vector(index, (bits & 0xFFFFFFFF).astype(np.uint32), None, first, lanes)
            waves.write_vector(index + 1, (bits >> np.uint64(32)).astype(np.uint32), None, second, lanes)
        elif width == 32:
            waves.write_vector(index, np.asarray(value).view(np.uint32), None, defined, lanes)
        elif clears:
            full = None if defined is None else (defined[0], np.full_like(defined[0], waves.all_lanes))
            waves.write_vector(index, np.asarray(value).view(np.uint16).astype(np.uint32), None, full, lanes)
        else:
            waves.write_vector(index, np.asarray(value).view(np.uint16), half, defined, lanes)

    return commit
