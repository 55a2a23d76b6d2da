"""What the assembly of a kernel says about its speed and safety, for every chip's dialect.

The check for barriers follows all paths: a workgroup barrier that can be reached while an LDS store of the wave may
still be in flight is a race, whatever the hardware did in the test (see llvm/barrier-*.ll).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import provenance
from .architecture import CHIPS, Chip
from .emulator.metadata import descriptors

_LABEL = re.compile(r"([\w.$]+):")
_BYTES = {
    "ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12,
    "dwordx4": 16, "u8": 1, "i8": 1, "u16": 2, "i16": 2, "b16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16,
}  # fmt: skip
_ENDS = ("s_endpgm", "s_branch", "s_setpc", "s_trap")


@dataclass(frozen=True)
class KernelFacts:
    """One kernel on one chip. vgprs, sgprs: registers; lds: bytes of a workgroup; spills: registers spilled; scratch:
    bytes of a lane; threads, most_threads: of a workgroup, and what the code allows; occupancy: waves a SIMD holds at
    once; loads: {bytes of a lane: global load instructions}; barriers: workgroup barriers in the code; racing: lines of
    those that LDS stores may cross; weights: of a kernel that multiplies one token by a weight, the share of the
    weight's bytes that 128-bit loads fetch; wide: whether those should be all of them."""

    kernel: str
    chip: str
    vgprs: int
    sgprs: int
    lds: int
    spills: int
    scratch: int
    threads: int
    most_threads: int
    occupancy: int
    loads: dict[int, int]
    barriers: int
    racing: tuple[int, ...]
    weights: float | None = None
    wide: bool = False


def examine(text: str, arch: str, threads: dict[str, int], gemvs: dict[str, tuple[int, bool]] | None = None) -> list:
    """KernelFacts of every kernel in an assembly text. threads: workgroup sizes by kernel; gemvs: see Listing."""
    lines, chip, found = text.splitlines(), CHIPS[arch], []
    starts = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.match(line))}
    for name, notes in _notes(text).items():
        code = _instructions(lines, starts[name] + 1)
        size = threads.get(name, notes["max_flat_workgroup_size"])
        spills = notes.get("vgpr_spill_count", 0) + notes.get("sgpr_spill_count", 0)
        vgprs, lds = notes["vgpr_count"], notes["group_segment_fixed_size"]
        loads, barriers = _loads(code), sum(_is_barrier(i) for _, i, _ in code)
        held = occupancy(chip, vgprs, notes["sgpr_count"], lds, size)
        bits, wide = (gemvs or {}).get(name, (0, False))
        found.append(
            KernelFacts(
                name, arch, vgprs, notes["sgpr_count"], lds, spills, notes["private_segment_fixed_size"], size,
                notes["max_flat_workgroup_size"], held, loads, barriers, _racing(code),
                _weight_share(code, text, name, bits) if bits else None, wide,
            )
        )  # fmt: skip
    return found


def _weight_share(code, text: str, kernel: str, bits: int) -> float | None:
    """Share of the weight's bytes in 128-bit loads, with each part's bytes shared out among the instructions that load
    it by their widths. None if none does."""
    arguments = {a.offset: a.name for a in descriptors(text)[kernel].arguments}
    found = provenance.loads(code, arguments, _load_width)
    size = {"codes": 8 if bits == 3 else 4 * bits, "values": 4 * bits, "high": 4, "scales": 2, "mins": 2}  # 32 codes
    weight = next((n for n in ("w", "gate_up", "down") if found.keys() & {f"{n}_codes", f"{n}_values"}), "w")
    total = wide = 0.0
    for part in size:
        widths = found.get(f"{weight}_{part}", {})
        bytes_loaded = sum(width * count for width, count in widths.items())
        if bytes_loaded:
            total += size[part]
            wide += size[part] * 16 * widths.get(16, 0) / bytes_loaded
    return wide / total if total else None


def occupancy(chip: Chip, vgprs: int, sgprs: int, lds: int, threads: int) -> int:
    """Waves that one SIMD can hold of a kernel; 0 if not even one workgroup fits."""
    allocated = -(-max(vgprs, 1) // chip.granule) * chip.granule
    waves = min(chip.waves, chip.registers // allocated)
    if chip.lanes == 64:
        waves = min(waves, 800 // (-(-max(sgprs, 1) // 16) * 16))
    group = -(-threads // chip.lanes)
    groups = waves * chip.simds // group
    if lds:
        groups = min(groups, chip.lds // lds)
    return groups * group // chip.simds if groups * group >= chip.simds else min(1, groups)


def _notes(text: str) -> dict[str, dict[str, int]]:
    """Whole numbers of every kernel's metadata, by the kernel's name."""
    found: dict[str, dict[str, int]] = {}
    inside = re.search(r"^amdhsa\.kernels:(\n.*?)^amdhsa\.", text, re.M | re.S)
    for part in re.split(r"\n  - ", inside[1])[1:] if inside else ():
        fields = dict(re.findall(r"^(?:    )?\.(\w+): +(\S+)$", part, re.M))
        found[fields["name"]] = {key: int(value) for key, value in fields.items() if value.isdigit()}
    return found


def _instructions(lines: list[str], start: int) -> list[tuple[int, str, tuple[str, ...]]]:
    """(1-based line, instruction, labels at it) of the code that begins at line index `start`."""
    found, labels = [], []
    for number in range(start, len(lines)):
        line = re.sub(r"\s*(;|//).*", "", lines[number]).strip()
        if re.match(r"\.(section|end_amdhsa|size|Lfunc_end)", line):
            break
        if line.endswith(":"):
            labels.append(line[:-1])
        elif line and not line.startswith("."):
            found.append((number + 1, line, tuple(labels)))
            labels = []
    return found


def _is_barrier(instruction: str) -> bool:
    return re.match(r"s_barrier(_signal)?\b(?!_)", instruction) is not None


def _load_width(instruction: str) -> int | None:
    """Bytes that a global load fetches for a lane; None for any other instruction."""
    match = re.match(r"(?:global|flat)_load_(?:d16_)?(?:hi_)?(\w+)", instruction)
    return match and _BYTES.get(match[1].removeprefix("d16_").removesuffix("_d16").removesuffix("_hi"), 4)


def _loads(code) -> dict[int, int]:
    counts: dict[int, int] = {}
    for _, instruction, _ in code:
        width = _load_width(instruction)
        if width:
            counts[width] = counts.get(width, 0) + 1
    return counts


# The state of a path: None when no LDS store is in flight, else how many LDS operations were issued since the last
# store (they finish in order, so that waiting until that many are left means the store is done); -1 when a scalar load
# is also counted, which finishes in any order, so that only a wait for zero helps.


def _racing(code) -> tuple[int, ...]:
    """Lines of the barriers that some path reaches with an LDS store in flight."""
    places = {label: i for i, (_, _, labels) in enumerate(code) for label in labels}
    states: dict[int, object] = {}
    waiting, found = [(0, None)], set()
    while waiting:
        at, state = waiting.pop()
        while at < len(code):
            if at in states:
                joined = _worse(states[at], state)
                if joined == states[at]:
                    break
                state = joined
            states[at] = state
            line, instruction, _ = code[at]
            if _is_barrier(instruction) and state is not None:
                found.add(line)
            state = _after(instruction, state)
            if instruction.startswith(("s_branch", "s_cbranch")):
                target = instruction.split()[-1]
                if target in places:
                    waiting.append((places[target], state))
            if instruction.startswith(_ENDS):
                break
            at += 1
    return tuple(sorted(found))


def _worse(a, b):
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)


def _after(instruction: str, state):
    if re.match(r"ds_(store|write|add|sub|min|max|and|or|xor|inc|dec|cmpst|cmpswap|wrxchg)", instruction):
        return 0
    if instruction.startswith("ds_"):
        return state if state in (None, -1) else state + 1
    if state is None:
        return None
    if re.match(r"s_(buffer_)?load", instruction):
        # gfx12 counts scalar loads apart; taking them together is only stricter
        return -1
    left = _waits_for(instruction)
    if left is None or (left and (state == -1 or left > state)):
        return state
    return None


def _waits_for(instruction: str) -> int | None:
    """How many LDS operations may be left after a wait; None if the instruction does not wait for LDS."""
    found = re.match(r"s_waitcnt .*lgkmcnt\((\d+)\)", instruction)
    if found:
        return int(found[1])
    found = re.match(r"s_waitcnt_lgkmcnt \w+, (\w+)|s_wait_dscnt (\w+)", instruction)
    if found:
        return int(found[1] or found[2], 0)
    found = re.match(r"s_wait_(?:load|store)cnt_dscnt (\w+)", instruction)
    if found:
        return int(found[1], 0) & 0x3F
    return 0 if re.fullmatch(r"s_waitcnt 0(x0+)?", instruction) else None
