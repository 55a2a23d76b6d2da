"""`mlcrt eval`: how good a compiled model is, as perplexity on a text or accuracy on questions."""

from __future__ import annotations

import argparse

from mlcrt.commands import options

SUMMARY = "measure perplexity on a text, or accuracy on questions"
EXAMPLES = """examples:
  mlcrt eval dist/SmolLM2-135M-Instruct-q4f16_1 --perplexity wiki.txt
  mlcrt eval model.gguf --perplexity wiki.txt --window 512 --llama-cpp
  mlcrt eval dist/SmolLM2-135M-Instruct-q4f16_1 --mmlu questions.csv --json

--perplexity cuts the text into windows and reports exp(mean negative log-likelihood per token) with its standard
error, and bits per byte of text, which is comparable between tokenizers. --llama-cpp scores the second half of each
window only, as `llama-perplexity` does; give --window the value of its -c.
--mmlu reads CSV (question, A, B, C, D, answer) or JSON lines with question, choices, answer, and optionally subject."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--perplexity", type=options.existing_file, metavar="FILE", help="a text file (UTF-8)")
    what.add_argument("--mmlu", type=options.existing_file, metavar="FILE", help="questions with four choices")
    parser.add_argument(
        "--window",
        type=options.positive,
        metavar="N",
        help="tokens per window (default: 1024, or 512 with --llama-cpp)",
    )
    parser.add_argument("--stride", type=options.positive, metavar="N", help="step between windows (default: a window)")
    parser.add_argument("--limit", type=options.positive, metavar="N", help="only the first N windows or questions")
    parser.add_argument("--llama-cpp", action="store_true", help="count as llama.cpp does")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mlcrt.errors import UsageError

    if args.mmlu and (args.stride or args.window or args.llama_cpp):
        raise UsageError("--window, --stride and --llama-cpp belong to --perplexity.")
    engine, tokenizer = options.load_model(args)
    try:
        if args.mmlu:
            from mlcrt.measure.mmlu import mmlu, rows

            result = mmlu(engine, tokenizer, args.mmlu, args.limit, options.report)
        else:
            from mlcrt.measure.perplexity import perplexity, rows

            result = perplexity(
                engine,
                tokenizer,
                args.perplexity,
                window=args.window,
                stride=args.stride,
                llama_cpp=args.llama_cpp,
                limit=args.limit,
                report=options.report,
            )
    finally:
        engine.close()
    result = {"model": tokenizer.name, **result}
    if args.json:
        options.print_json(result)
    else:
        options.print_rows(result["model"], rows(result))
    return 0
