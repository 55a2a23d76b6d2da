"""`mlcrt bench`: how fast a model reads a prompt and writes an answer here."""

from __future__ import annotations

import argparse
import re

from mlcrt.commands import options
from mlcrt.errors import MlcrtError, UsageError

SUMMARY = "measure prefill and decode speed"
EXAMPLES = """examples:
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1 --batch 8
  mlcrt bench dist/SmolLM2-135M-Instruct-q4f16_1 --profile
  mlcrt bench model.gguf -p 128 -n 256 --repeat 3 --json
  mlcrt bench --synthetic llama3-8b --target cuda:sm_90 --contexts 16,512,4096"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser, required=False)
    parser.add_argument("-p", "--prompt-tokens", type=options.positive, default=512, metavar="N", help="default: 512")
    parser.add_argument("-n", "--generate", type=options.positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--repeat", type=options.positive, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--batch", type=options.positive, metavar="N", help="measure N clients at once through the server's scheduler"
    )
    parser.add_argument(
        "--contexts",
        type=options.positives,
        metavar="N,N",
        help="decode greedily after so many tokens, the device feeding itself (default with --synthetic: 16,512,4096)",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="decode",
        choices=["decode", "prefill"],
        help="also time one step (or one call of the prefill) kernel by kernel",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    group = parser.add_argument_group("random weights", "In the place of MODEL; kept in dist/synthetic-NAME-Q.")
    group.add_argument(
        "--synthetic",
        metavar="SHAPE",
        help="llama3-8b, llama2-7b, llama3.2-1b, smollm2-135m or a config.json; q4f16_1 unless --quantization is given",
    )
    group.add_argument("--target", metavar="T", help="compile for this target, such as cuda:sm_90 (default: --device)")
    group.add_argument("--compile-only", action="store_true", help="make the folder, print its name and stop")


def run(args: argparse.Namespace) -> int:
    _check(args)
    device = args.device
    if args.synthetic:
        dist, device = _synthetic(args)
        if args.compile_only:
            print(dist)
            return 0
        _require_device(dist, device)
    else:
        from mlcrt.chat import resolve_model

        dist = resolve_model(args.model, args.quantization, args.device, options.DIST, options.report)
    options.runtime_only()
    sizes = args.prompt_tokens, args.generate, args.repeat
    if args.batch:
        from mlcrt.measure.batch import bench_batch, rows

        result = bench_batch(dist, device, *sizes, args.batch, args.context, options.report)
    elif args.synthetic or args.contexts:
        from mlcrt.measure.synthetic_bench import bench_depths, rows

        result = bench_depths(dist, device, *sizes, args.contexts, options.report, args.profile)
    else:
        from mlcrt.measure.bench import bench, rows

        result = bench(dist, device, *sizes, args.context, options.report, args.profile)
    if args.json:
        options.print_json(result)
        return 0
    options.print_rows(f"{result['model']} on {result['device']}", rows(result))
    if args.profile:
        from mlcrt.measure import profile

        kernels = result["profile"]
        options.print_table(profile.title(kernels), profile.rows(kernels), profile.notes(kernels))
    return 0


def _check(args: argparse.Namespace) -> None:
    """UsageError for options that do not go together."""
    if bool(args.model) == bool(args.synthetic):
        raise UsageError("give either MODEL or --synthetic SHAPE")
    if not args.synthetic and (args.target or args.compile_only):
        raise UsageError("--target and --compile-only belong to --synthetic; compile a model with mlcrt compile")
    if args.batch and (args.contexts or args.profile):
        raise UsageError("--batch does not go with --contexts or --profile, which measure one sequence")
    if args.context and not args.batch and (args.synthetic or args.contexts):
        raise UsageError("--context does not go with --synthetic or --contexts, which need what they measure at")


def _require_device(dist, device: str) -> None:
    """MlcrtError unless this machine has the device that the folder was compiled for."""
    from mlcrt.targets import all_targets

    probed = all_targets()[device.partition(":")[0]].probe()
    if not probed.available:
        raise MlcrtError(f"{dist} is compiled, but cannot run here ({probed.reason}); copy it to where that is")


def _synthetic(args: argparse.Namespace):
    """(folder of the synthetic model, compiled; the device to run on)."""
    from mlcrt.measure.synthetic_bench import prepare_synthetic
    from mlcrt.targets import parse_target

    target = args.target or re.sub(r":\d+$", "", args.device)  # cuda:1 is the second device of target cuda
    chosen = parse_target(target)[0]
    if args.device not in ("auto", chosen) and not args.device.startswith(f"{chosen}:"):
        raise UsageError(f"--device {args.device} does not run code for --target {args.target}; leave one of them out")
    dist = prepare_synthetic(args.synthetic, args.quantization or "q4f16_1", target, options.DIST, options.report)
    return dist, (args.target or chosen) if args.device == "auto" else args.device
