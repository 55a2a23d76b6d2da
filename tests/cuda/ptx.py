"""Inline assembly of CUDA source as calls of C++ functions (emulated/ptx.h), one for every instruction.

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    → { ptx_cp_async_cg_shared_global((at), (from), 16); }

Vectors {%0, %1} become ptx_refs(…), labels, branches, guards and predicates what C++ has for them.
"""

from __future__ import annotations

import re

_LITERAL = re.compile(r'\s*"((?:[^"\\]|\\.)*)"')


def translate(source: str) -> str:
    """The source with every asm statement replaced. ValueError for one that is not understood."""
    result, at = [], 0
    while found := re.compile(r"\basm\b\s*(?:volatile)?\s*\(").search(source, at):
        end = _closing(source, found.end() - 1)
        result += [source[at : found.start()], _statement(source[found.end() : end])]
        at = source.index(";", end) + 1
    return "".join(result) + source[at:]


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` is closed."""
    depth, at = 0, start
    while True:
        if literal := _LITERAL.match(text, at):
            at = literal.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
        at += 1


def _statement(text: str) -> str:
    at, template = 0, ""
    while literal := _LITERAL.match(text, at):
        template, at = template + literal[1].replace("\\n", "\n"), literal.end()
    operands = []
    for found in re.finditer(r'"[=+]?[rlfh]"\s*\(', text[at:]):
        start = at + found.end() - 1
        operands.append(text[start : _closing(text, start) + 1])
    return "{ " + " ".join(_instructions(template, operands)) + " }"


def _instructions(template: str, operands: list[str]):
    """C++ for the statements of a template."""
    rest = template.strip()
    while rest:
        if rest[0] in "{}":
            yield rest[0]
            rest = rest[1:].strip()
        elif label := re.match(r"(\w+):(?!:)", rest):
            yield f"{label[1]}:;"
            rest = rest[label.end() :].strip()
        else:
            statement, _, rest = rest.partition(";")
            rest = rest.strip()
            yield _instruction(statement.strip(), operands)


def _instruction(text: str, operands: list[str]) -> str:
    if declared := re.fullmatch(r"\.reg \.pred (\w+)", text):
        return f"bool {declared[1]} = false;"
    guard = ""
    if guarded := re.match(r"@(!?\w+) ", text):
        guard, text = f"if ({guarded[1]}) ", text[guarded.end() :]
    mnemonic, _, rest = text.partition(" ")
    if mnemonic == "bra":
        return f"{guard}goto {rest.strip()};"
    if not re.fullmatch(r"[a-z][\w.:]*", mnemonic):
        raise ValueError(f"not an instruction: {text}")
    arguments = [_operand(part, operands) for part in re.findall(r"\{[^}]*\}|[^,{}]+", rest) if part.strip()]
    return f"{guard}ptx_{re.sub('[.:]+', '_', mnemonic)}({', '.join(filter(None, arguments))});"


def _operand(text: str, operands: list[str]) -> str:
    """C++ for an operand; nothing for a result that is dropped."""
    text = text.strip()
    if text.startswith("{"):
        return f"ptx_refs({', '.join(_operand(part, operands) for part in text[1:-1].split(','))})"
    if text.startswith("["):
        return _operand(text[1:-1], operands)
    if text.startswith("%"):
        return operands[int(text[1:])]
    return "" if text == "_" else text
