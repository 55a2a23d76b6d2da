"""Multiple-choice accuracy in the form of MMLU (https://arxiv.org/abs/2009.03300), without examples in the prompt.

The model reads the question with its four choices up to "Answer:" and the most likely of the next tokens " A", " B",
" C", " D" is its choice. Questions: CSV with question, A, B, C, D, answer (the published files, no header), or JSON
lines with `question`, `choices`, `answer` (letter or index), and optionally `subject`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.runtime.generate import common_prefix
from mlcrt.runtime.tokenizer import ModelTokenizer

_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """`answer` is an index into the four `choices`."""

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""

    def prompt(self) -> str:
        """The question as the paper puts it."""
        about = f" about {self.subject.replace('_', ' ')}" if self.subject else ""
        head = f"The following are multiple choice questions (with answers){about}.\n\n"
        lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, self.choices, strict=True)]
        return head + "\n".join([self.text, *lines, "Answer:"])


def read_questions(path: Path) -> list[Question]:
    """All questions of a .csv or .jsonl file. Raises `MlcrtError` naming the line that is not one."""
    lines = path.suffix.lower() != ".csv"
    out = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, entry in enumerate(file if lines else csv.reader(file), 1):
            if not entry or (lines and not entry.strip()):
                continue
            try:
                out.append(_from_json(json.loads(entry)) if lines else _from_row(entry))
            except (ValueError, KeyError, TypeError, IndexError):
                raise MlcrtError(
                    f"Line {number} of {path} is not a question with four choices and an answer; see mlcrt eval --help."
                ) from None
    if not out:
        raise MlcrtError(f"{path} has no questions.")
    return out


def mmlu(
    engine: Any,
    tokenizer: ModelTokenizer,
    path: Path,
    limit: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Accuracy with its standard error, and the mean log-likelihood of the right letter among the four."""
    letters = [tokenizer.encode(f"Answer: {letter}")[-1] for letter in _LETTERS]
    if len(set(letters)) < len(_LETTERS):
        raise MlcrtError(f"The tokenizer of {tokenizer.name} has no separate tokens for the letters A to D.")
    right, likelihoods, skipped = [], [], 0
    questions = read_questions(path)[:limit]
    for number, question in enumerate(questions, 1):
        tokens = tokenizer.encode_text(question.prompt())
        if len(tokens) > engine.context:
            skipped += 1
            continue
        kept = min(common_prefix(engine.tokens, tokens), len(tokens) - 1)
        engine.rollback(kept)
        four = engine.prefill(tokens[kept:])[letters].astype(np.float64)
        likelihoods.append(four[question.answer] - four.max() - math.log(np.exp(four - four.max()).sum()))
        right.append(int(four.argmax()) == question.answer)
        if number % 50 == 0:
            report(f"question {number} of {len(questions)}: accuracy {np.mean(right):.4f}")
    if not right:
        raise MlcrtError(f"No question of {path} fits into the context of {engine.context} tokens; raise --context.")
    accuracy = float(np.mean(right))
    return {
        "questions_file": path.name,
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(right)),
        "log_likelihood": float(np.mean(likelihoods)),
        "questions": len(right),
        "too_long": skipped,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people."""
    too_long = f", {result['too_long']} too long" if result["too_long"] else ""
    return [
        ("accuracy", f"{result['accuracy']:.4f} ± {result['standard_error']:.4f}"),
        ("log-likelihood", f"{result['log_likelihood']:.4f} of the right letter (chance: {-math.log(4):.4f})"),
        ("questions", f"{result['questions']}{too_long}"),
    ]


def _from_row(row: list[str]) -> Question:
    text, *choices, answer = row
    return _question(text, choices, answer, "")


def _from_json(entry: dict[str, Any]) -> Question:
    return _question(entry["question"], entry["choices"], entry["answer"], entry.get("subject", ""))


def _question(text: str, choices: list[str], answer: Any, subject: str) -> Question:
    index = answer if isinstance(answer, int) else _LETTERS.index(answer.strip().upper() or "?")
    if len(choices) != len(_LETTERS) or not 0 <= index < len(_LETTERS):
        raise ValueError("not four choices")
    return Question(str(text), tuple(str(choice) for choice in choices), index, str(subject))
