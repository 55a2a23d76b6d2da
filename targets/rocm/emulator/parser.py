"""Assembly text → Program: kernels as lists of instructions with labels resolved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .dialects import generation, translated
from .errors import ParseError
from .metadata import Descriptor, descriptors
from .operands import Operand, parse_operand, split_operands

_TEXT_OPERANDS = ("s_branch", "s_cbranch_", "s_wait", "s_barrier", "s_delay_alu", "s_sendmsg", "s_setreg", "s_getreg")
_ENCODING = re.compile(r"_(e32|e64|dpp|e64_dpp|sdwa)$")


@dataclass
class Instruction:
    """mnemonic without its encoding suffix; operands (texts for branches and waits, see `words`); modifiers;
    parts: the two halves of a dual-issue instruction; line: 1-based in the parsed text."""

    mnemonic: str
    operands: tuple[Operand, ...]
    modifiers: dict
    text: str
    line: int
    words: tuple[str, ...] = ()
    parts: tuple[Instruction, ...] = ()


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction]
    labels: dict[str, int]
    descriptor: Descriptor
    generation: int = 11  # of the instruction set: 9 to 12
    steps: list = field(default_factory=list, repr=False)  # the bound instructions, filled by the first launch

    @property
    def lanes(self) -> int:
        return self.descriptor.lanes

    @property
    def registers(self) -> int:
        """Vector registers, with the accumulation registers behind them that some chips have."""
        operands = (o for i in self.instructions for o in i.operands if o.kind == "v")
        return max([self.descriptor.get("next_free_vgpr"), 1, *(o.index + o.count for o in operands)])


@dataclass
class Program:
    """The kernels of one assembly file."""

    kernels: dict[str, Kernel]

    @classmethod
    def parse(cls, text: str) -> Program:
        """Parse LLVM's AMDGPU assembly (`inspect_source("asm")`). Raises ParseError."""
        lines, made_for = text.splitlines(), generation(text)
        starts = {line.split(":")[0]: i for i, line in enumerate(lines) if re.match(r"[\w.$]+:", line)}
        kernels = {}
        for name, descriptor in descriptors(text).items():
            if name not in starts:
                raise ParseError(f"kernel {name} has a descriptor but no code")
            kernels[name] = _kernel(name, lines, starts[name] + 1, descriptor, made_for)
        if not kernels:
            raise ParseError("the text holds no .amdhsa_kernel: is it AMDGPU assembly?")
        return cls(kernels)


def _kernel(name: str, lines: list[str], start: int, descriptor: Descriptor, made_for: int) -> Kernel:
    instructions, labels = [], {}
    for number in range(start, len(lines)):
        line = re.sub(r"\s*(;|//).*", "", lines[number]).strip()
        if re.match(r"\.(section|end_amdhsa|size|Lfunc_end)", line):
            break
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
        elif line and not line.startswith("."):
            instructions.append(parse_instruction(line, number + 1, made_for))
    return Kernel(name, instructions, labels, descriptor, made_for)


def parse_instruction(text: str, line: int = 0, made_for: int = 11) -> Instruction:
    """One instruction of a generation, dual-issue ones included."""
    if "::" in text:
        parts = tuple(parse_instruction(part.strip(), line, made_for) for part in text.split("::"))
        if len(parts) != 2:
            raise ParseError(f"line {line}: '{text}' pairs more than two instructions")
        return Instruction("dual", (), {}, text, line, parts=parts)
    mnemonic, _, rest = text.partition(" ")
    mnemonic = translated(_ENCODING.sub("", mnemonic.strip()), made_for)
    if mnemonic.startswith(_TEXT_OPERANDS):
        return Instruction(mnemonic, (), {}, text, line, words=tuple(w.strip() for w in rest.split(",") if w.strip()))
    try:
        texts, modifiers = split_operands(rest)
        return Instruction(mnemonic, tuple(parse_operand(t) for t in texts), modifiers, text, line)
    except (ParseError, ValueError) as e:
        raise ParseError(f"line {line}: `{text}`: {e}") from None
