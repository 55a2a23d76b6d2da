"""The `mlcrt` command: finds the verb, runs it, and turns errors into one line and an exit code.

0 done, 1 failed, 2 wrong usage, 130 broken off with Ctrl-C. MLCRT_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mlcrt.commands import options
from mlcrt.errors import MlcrtError
from mlcrt.version import __version__

# Each is a module in mlcrt/commands with SUMMARY, EXAMPLES, add_arguments(parser) and run(args) -> exit code.
VERBS = "chat", "serve", "compile", "convert", "package", "info", "bench", "eval", "devices"

_EXAMPLES = """examples:
  mlcrt chat HuggingFaceTB/SmolLM2-135M-Instruct
  mlcrt compile model.gguf --target cpu
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1 -p 512 -n 128

MODEL is a Hugging Face id, a folder, a .gguf file, a compiled folder under dist/, or a package.
`mlcrt VERB --help` says more about one verb."""


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print the version and leave")

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        print(f"mlcrt {__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The whole command line. Verb modules are light; what they run is imported when they run."""
    out = argparse.ArgumentParser(
        prog="mlcrt",
        description="Compile language models and run them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action=_Version)
    verbs = out.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        verb = import_module(f"mlcrt.commands.{name}")
        sub = verbs.add_parser(
            name,
            help=verb.SUMMARY,
            description=f"{verb.SUMMARY[0].upper()}{verb.SUMMARY[1:]}.",
            epilog=verb.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit code."""
    debug = os.environ.get("MLCRT_DEBUG", "") not in ("", "0")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read our output has left; keep the interpreter from complaining while it shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except MlcrtError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}.", 1)
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error, {type(error).__name__}: {error} (MLCRT_DEBUG=1 shows where).", 1)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what there is to say
        return int(stop.code or 0)
    if argv is None:
        options.own()
    return args.run(args)


def _fail(message: str, code: int) -> int:
    print("mlcrt: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
