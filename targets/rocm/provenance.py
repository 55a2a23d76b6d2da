"""Which argument of a kernel each load of its assembly reads: pointers followed through registers, in text order."""

from __future__ import annotations

import re

_REGISTERS = re.compile(r"\b([sva])(?:(\d+)\b|\[(\d+):(\d+)\])")
_NOTHING = frozenset()
_NO_RESULT = re.compile(
    r"(global|flat|scratch|buffer)_store|ds_(store|write)|s_cmp|s_bitcmp|v_cmpx|s_(wait|nop|barrier|setprio|delay|clause)"
)
_POINTER = 8  # bytes


def loads(code, arguments: dict[int, str], width_of) -> dict[str, dict[int, int]]:
    """{argument: {bytes of a lane: load instructions}}.

    code: (line, instruction, labels) each; arguments: names by offset in the argument block; width_of(instruction):
    bytes a global load fetches for a lane, None for other instructions. A scalar load counts by its bytes, at most 4
    of them. Where paths meet a register may hold either pointer, and the load counts for both.
    """
    held: dict[str, frozenset] = {}
    pending: dict[str, dict] = {}  # what registers hold at labels further on
    found: dict[str, dict[int, int]] = {}

    def note(names, width: int) -> None:
        for name in names:
            counts = found.setdefault(name, {})
            counts[width] = counts.get(width, 0) + 1

    for _, text, labels in code:
        for label in labels:
            for register, names in pending.pop(label, {}).items():
                held[register] = held.get(register, _NOTHING) | names
        if text.startswith(("s_branch", "s_cbranch")):
            target = pending.setdefault(text.split()[-1], {})
            for register, names in held.items():
                target[register] = target.get(register, _NOTHING) | names
            continue
        updates = {}
        for part in text.split("::"):
            mnemonic, _, rest = part.strip().partition(" ")
            operands = [_expand(o) for o in rest.split(",")]
            if _NO_RESULT.match(mnemonic) or not operands:
                continue
            read = _NOTHING.union(*(held.get(r, _NOTHING) for o in operands[1:] for r in o))
            width = width_of(part.strip())
            if width is not None:
                note(read, width)
                updates.update(dict.fromkeys(operands[0], _NOTHING))
            elif mnemonic.startswith("s_load"):
                pointers = not read and _arguments(rest, len(operands[0]), arguments)
                note(read, min(4 * len(operands[0]), 4))
                updates.update({r: pointers[i] if pointers else _NOTHING for i, r in enumerate(operands[0])})
            elif mnemonic.startswith(("ds_", "flat_", "scratch_", "buffer_")):
                updates.update(dict.fromkeys(operands[0], _NOTHING))
            else:
                updates.update(dict.fromkeys(operands[0], read))
        held.update(updates)
    return found


def _expand(operand: str) -> list[str]:
    """The registers an operand names."""
    found = []
    for kind, single, first, last in _REGISTERS.findall(operand):
        numbers = [int(single)] if single else range(int(first), int(last) + 1)
        found += [f"{kind}{number}" for number in numbers]
    return found


def _arguments(operands: str, words: int, arguments: dict[int, str]) -> list[frozenset]:
    """What each word holds of arguments loaded from the block at a constant offset."""
    start = int(re.search(r"(?:, |offset:)(0x[0-9a-f]+|\d+)$", operands)[1], 0)
    names = [arguments.get((start + 4 * i) // _POINTER * _POINTER) for i in range(words)]
    return [_NOTHING if name is None else frozenset((name,)) for name in names]
