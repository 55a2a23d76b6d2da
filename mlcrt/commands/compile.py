"""`mlcrt compile`: weights and a library for one or more targets, in a folder under dist/."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcrt.commands import options

SUMMARY = "convert a model and compile it for a target"
EXAMPLES = """examples:
  mlcrt compile HuggingFaceTB/SmolLM2-135M-Instruct --quantization q4f16_1
  mlcrt compile model.gguf --target cpu:x86-64-v3
  mlcrt compile ./Llama-3.2-1B --target cuda,rocm:gfx1100,cpu --output dist/llama
  mlcrt compile ./Llama-3.2-1B --target cpu:aarch64-linux,cpu:aarch64-macos,cpu:x86-64-v3-windows

The folder is printed on stdout; `mlcrt info` tells what is in it. `mlcrt devices` lists the targets. CPU architectures
are x86-64, x86-64-v2, x86-64-v3, x86-64-v4, x86-64-v4-amx (Linux only) and aarch64 for this machine's system, with
-linux, -windows or -macos for another's, and native. Several targets are compiled side by side; those that succeed stay
when another fails."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("--quantization", metavar="Q", help=options.SCHEMES)
    parser.add_argument("--target", default="auto", metavar="T", help="targets, separated by commas (default: auto)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: dist/NAME-Q)")
    parser.add_argument("--context", type=options.positive, metavar="N", help="context of the printed memory plan")
    parser.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the module after every phase there")
    parser.add_argument(
        "--slots", type=options.count, metavar="N",
        help="most requests that `mlcrt serve` runs in one step (0: none, which compiles faster)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=options.positive, metavar="N", help="targets compiled at once (default: cores)")
    parser.add_argument("--check", action="store_true", help="compare the result with the q0f32 build on the CPU")
    parser.add_argument("--report", action="store_true", help="a table of every kernel's registers, LDS and loads")


def run(args: argparse.Namespace) -> int:
    from mlcrt.commands.progress import compilation
    from mlcrt.compile import compile_model

    with compilation() as (report, progress):
        dist = compile_model(
            args.model,
            quantization=args.quantization,
            targets=args.target,
            out=args.output,
            dump_ir=args.dump_ir,
            context=args.context,
            check=args.check,
            report=report,
            progress=progress,
            jobs=args.jobs,
            table=options.report_rows if args.report else None,
            slots=args.slots,
        )
    print(dist)
    return 0
