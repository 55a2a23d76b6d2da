"""Options that several verbs share, and how verbs write."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

SCHEMES = "q0f32 q0f16 q8f16_1 q4f16_0 q4f16_1 q4f32_1 q3f16_1, or gguf to keep a GGUF file's own codes"

DIST = Path("dist")  # where compiled models are looked for and put

# option, type, metavar, help; the name in SamplingParams is the option's with underscores
_SAMPLING = [
    ("--max-tokens", int, "N", "tokens in an answer at most (default: until the model stops or the context is full)"),
    ("--temperature", float, "T", "0 always takes the most likely token, higher is more varied"),
    ("--top-p", float, "P", "sample from the most likely tokens that hold this much of the probability"),
    ("--top-k", int, "K", "sample from the K most likely tokens (0: all)"),
    ("--min-p", float, "P", "drop tokens less than P times as likely as the best"),
    ("--repetition-penalty", float, "R", "above 1 makes tokens of the prompt and the answer less likely"),
    ("--presence-penalty", float, "X", "-2 to 2, taken off tokens that the answer has"),
    ("--frequency-penalty", float, "X", "-2 to 2, taken off for each time the answer has a token"),
    ("--seed", int, "N", "equal seeds give equal answers"),
]


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """MODEL and how to load it."""
    text = "Hugging Face id, folder, .gguf file, compiled folder, package"
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help=text)
    parser.add_argument("--quantization", metavar="Q", help=f"if it has to be compiled first: {SCHEMES}")
    parser.add_argument(
        "--device", default="auto", metavar="D", help="where to run, see `mlcrt devices` (default: auto)"
    )
    parser.add_argument("--context", type=positive, metavar="N", help="tokens to hold (default: the model's own limit)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The sampling settings; those not given are the model's own defaults."""
    group = parser.add_argument_group("sampling", "What is not given comes from the model's generation_config.json.")
    for option, kind, metavar, text in _SAMPLING:
        group.add_argument(option, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--logit-bias", action="append", metavar="ID=X", help="add X to the logit of a token (repeatable)"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before TEXT (repeatable)")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The given sampling options as keywords of `SamplingParams`."""
    from mlcrt.runtime.sampling import parse_logit_bias

    names = [option[2:].replace("-", "_") for option, *_ in _SAMPLING]
    out = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.logit_bias:
        out["logit_bias"] = parse_logit_bias(args.logit_bias)
    if args.stop:
        out["stop"] = tuple(args.stop)
    return out


def positive(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def count(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def positives(text: str) -> list[int]:
    """An argparse type: numbers separated by commas."""
    return [positive(part) for part in text.split(",")]


def existing_file(text: str) -> Path:
    """An argparse type."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def load_model(args: argparse.Namespace, context: int | None = None) -> tuple[Any, Any]:
    """(engine, tokenizer) for what `add_model` took. `context` is used where the user named none."""
    from mlcrt.chat import resolve_model
    from mlcrt.runtime.tokenizer import ModelTokenizer

    dist = resolve_model(args.model, args.quantization, args.device, DIST, report)
    runtime_only()
    from mlcrt.runtime.engine import Engine

    engine = Engine(dist, device=args.device, context=args.context or context)
    return engine, ModelTokenizer(dist, engine.config.eos)


own_process = False  # set by own() when cli.main is the program


def own() -> None:
    """This process is ours. TVM's FFI imports torch wherever it is installed, which takes seconds and is of no use
    here: it is told that there is none."""
    global own_process
    own_process = True
    sys.modules.setdefault("torch", None)


def runtime_only() -> None:
    """Ask TVM for its runtime library alone, once everything is compiled: a third of the start-up time is the compiler.

    Only in a process of our own: a program that calls `cli.main` may want to compile later. No effect when tvm is
    imported already.
    """
    if own_process:
        os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")


def report(line: str) -> None:
    """Progress and notices: stderr, so that stdout holds the result alone."""
    print(line, file=sys.stderr, flush=True)


def report_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table with a column per key, on stderr. Nothing is cut off: where the terminal is too narrow it folds lines."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for i, name in enumerate(rows[0] if rows else ()):
        numbers = i and all(re.fullmatch(r"[\d.,]*( %)?", str(row[name])) for row in rows)
        side = "right" if numbers else "left"
        table.add_column(name.replace(" ", "\n"), no_wrap=True, justify=side, vertical="bottom")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console = Console(stderr=True)
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def wide_console() -> Any:
    """A rich Console on stdout that is as wide as tables need where nothing says how wide stdout is."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=160)


def print_table(title: str, rows: list[tuple[str, ...]], notes: list[str]) -> None:
    """A table on stdout whose first row is its heading; figures stand at the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=True, justify="left" if number < 2 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console = wide_console()
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """A two-column table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(justify="left")
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)
