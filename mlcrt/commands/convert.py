"""`mlcrt convert`: weights and tokenizer only, to be compiled later or for other targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcrt.commands import options

SUMMARY = "quantise a model's weights without compiling it"
EXAMPLES = """examples:
  mlcrt convert HuggingFaceTB/SmolLM2-135M-Instruct --quantization q8f16_1
  mlcrt convert model.gguf --output dist/model

The folder is printed on stdout; `mlcrt compile FOLDER --target T` adds a library to it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("--quantization", metavar="Q", help=options.SCHEMES)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: dist/NAME-Q)")


def run(args: argparse.Namespace) -> int:
    from mlcrt.quant import convert_model

    print(convert_model(args.model, quantization=args.quantization, out=args.output, report=options.report))
    return 0
