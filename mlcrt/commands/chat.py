"""`mlcrt chat`: a conversation in the terminal, or one answer on stdout."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mlcrt.commands import options

if TYPE_CHECKING:
    from mlcrt.chat import ChatModule

SUMMARY = "chat with a model, or let it answer one prompt"
EXAMPLES = """examples:
  mlcrt chat HuggingFaceTB/SmolLM2-135M-Instruct
  mlcrt chat dist/SmolLM2-135M-Instruct-q4f16_1 --system "You are terse." --temperature 0.3
  mlcrt chat model.gguf --prompt "What is a prime number?" --max-tokens 64 --temperature 0
  git diff | mlcrt chat model.gguf --prompt - --system "Describe this change in one line."

In a conversation /help lists the commands, Ctrl-C ends an answer, Ctrl-D leaves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="answer TEXT on stdout and leave (-: read it from stdin)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--context-shift", action="store_true", help="drop the oldest turns when the context is full")
    parser.add_argument("--json", action="store_true", help="with --prompt: print the answer and its figures as JSON")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from mlcrt.chat import ChatModule, resolve_model
    from mlcrt.errors import UsageError

    if args.json and args.prompt is None:
        raise UsageError("--json needs --prompt; a conversation shows its figures with /stats.")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty; give --prompt some text.")
    dist = resolve_model(args.model, args.quantization, args.device, options.DIST, options.report)
    options.runtime_only()
    with ChatModule(
        dist,
        args.device,
        args.context,
        system=args.system,
        context_shift=args.context_shift,
        dist_root=options.DIST,
        report=options.report,
        **options.sampling_of(args),
    ) as chat:
        if chat.tokenizer.template.notice:
            options.report(chat.tokenizer.template.notice)
        if prompt is not None:
            return _once(chat, prompt, args.json)
        from mlcrt.commands.repl import converse

        return converse(chat)


def _once(chat: ChatModule, prompt: str, as_json: bool) -> int:
    def write(piece: str) -> None:
        print(piece, end="", flush=True)

    try:
        text = chat.generate(prompt, stream=None if as_json else write)
    except KeyboardInterrupt:
        if not as_json:
            print()
        raise
    if as_json:
        stats = chat.stats()
        options.print_json({"text": text, **{k: stats[k] for k in ("model", "device", "last", "context", "memory")}})
    else:
        print()
    if chat.last.notice:
        options.report(chat.last.notice)
    return 0
