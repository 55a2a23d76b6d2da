"""`mlcrt bench`: how fast a model reads a prompt and writes an answer here."""

from __future__ import annotations

import argparse

from mlcrt.commands import options

SUMMARY = "measure prefill and decode speed"
EXAMPLES = """examples:
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1 --batch 8
  mlcrt bench model.gguf -p 128 -n 256 --repeat 3 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("-p", "--prompt-tokens", type=options.positive, default=512, metavar="N", help="default: 512")
    parser.add_argument("-n", "--generate", type=options.positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--repeat", type=options.positive, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--batch", type=options.positive, metavar="N", help="measure N clients at once through the server's scheduler"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mlcrt.chat import resolve_model
    from mlcrt.measure import batch
    from mlcrt.measure.bench import bench, rows

    dist = resolve_model(args.model, args.quantization, args.device, options.DIST, options.report)
    options.runtime_only()
    sizes = args.device, args.prompt_tokens, args.generate, args.repeat
    if args.batch:
        result, rows = batch.bench_batch(dist, *sizes, args.batch, args.context, options.report), batch.rows
    else:
        result = bench(dist, *sizes, args.context, options.report)
    if args.json:
        options.print_json(result)
    else:
        options.print_rows(f"{result['model']} on {result['device']}", rows(result))
    return 0
