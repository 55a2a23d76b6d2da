"""`mlcrt package`: a compiled folder as one file to hand on."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcrt.commands import options

SUMMARY = "pack a compiled folder into one file that runs elsewhere"
EXAMPLES = """examples:
  mlcrt package dist/SmolLM2-135M-Instruct-q4f16_1 --target metal -o smollm2-mac.tar.zst
  mlcrt package dist/SmolLM2-135M-Instruct-q4f16_1 --target cuda,cpu
  mlcrt chat smollm2-mac.tar.zst

The file is printed on stdout; equal contents give equal bytes. --target cpu packs all libraries for CPUs that the
folder has, --target cpu:x86-64-v3 the one of that architecture. `chat`, `bench`, `eval` and `info` take the file as
MODEL; they verify and unpack it once, into the cache (MLCRT_CACHE, else ~/.cache/mlcrt)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIST", help="compiled folder, or its name under dist/")
    parser.add_argument("--target", metavar="T", help="libraries to pack, separated by commas (default: all)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: DIST.tar.zst here)")


def run(args: argparse.Namespace) -> int:
    from mlcrt.commands.info import folder_of
    from mlcrt.package import write_package

    print(write_package(folder_of(args.model), args.target, args.output, options.report))
    return 0
