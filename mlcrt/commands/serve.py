"""`mlcrt serve`: a model behind OpenAI's API."""

from __future__ import annotations

import argparse
import os

from mlcrt.commands import options
from mlcrt.errors import UsageError

SUMMARY = "serve a model to OpenAI clients, with a chat page"
EXAMPLES = """examples:
  mlcrt serve dist/SmolLM2-135M-Instruct-q4f16_1
  mlcrt serve model.gguf --port 9000 --slots 8 --context 4096 --max-tokens 1024
  MLCRT_API_KEY=… mlcrt serve Qwen/Qwen2.5-0.5B-Instruct --host 0.0.0.0
  mlcrt serve dist/SmolLM2-135M-Instruct-q4f16_1 --ray 2

Then: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="…"), or a browser at http://127.0.0.1:8000/.
Ctrl-C or SIGTERM lets open answers finish; a second one does not wait."""

KEY_VARIABLE = "MLCRT_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    net = parser.add_argument_group("network")
    net.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at (default: 127.0.0.1)")
    net.add_argument("--port", type=_port, default=8000, metavar="N", help="default: 8000; 0 takes one that is free")
    net.add_argument(
        "--api-key", action="append", metavar="KEY",
        help=f"ask clients for this key (repeatable; {KEY_VARIABLE} keeps it out of the process list)",
    )  # fmt: skip
    net.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let web pages of this origin call (repeatable)",
    )
    net.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="answer to this Host name too when listening at localhost without a key (repeatable)",
    )  # fmt: skip
    load = parser.add_argument_group("load")
    load.add_argument("--slots", type=options.positive, default=8, metavar="N", help="requests at once (default: 8)")
    load.add_argument(
        "--queue", type=_count, default=64, metavar="N", help="requests that may wait; more get 429 (default: 64)"
    )
    load.add_argument("--max-tokens", type=options.positive, metavar="N", help="tokens of an answer at most")
    load.add_argument(
        "--max-body", type=options.positive, default=4 << 20, metavar="BYTES", help="of a request (default: 4194304)"
    )
    load.add_argument(
        "--request-timeout", type=_seconds, default=600.0, metavar="S", help="waiting included (default: 600)"
    )
    load.add_argument(
        "--shutdown-timeout", type=_seconds, default=30.0, metavar="S", help="for open answers (default: 30)"
    )
    load.add_argument("--ray", type=options.positive, metavar="N", help="run N replicas with Ray Serve (mlcrt[ray])")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model-name",
        action="append",
        metavar="NAME",
        help="what requests call the model (repeatable; default: its folder)",
    )
    model.add_argument(
        "--tool-format", default="auto", choices=("auto", "hermes", "llama3", "mistral"),
        help="how the model writes tool calls (default: by its chat template)",
    )  # fmt: skip
    model.add_argument("--log-prompts", action="store_true", help="write prompts and answers to the log")


def run(args: argparse.Namespace) -> int:
    from mlcrt.chat import resolve_model

    keys = args.api_key or ([os.environ[KEY_VARIABLE]] if os.environ.get(KEY_VARIABLE) else [])
    if not all(key.strip() for key in keys):
        raise UsageError(f"--api-key is empty; give a key, or leave it away to ask for none (also {KEY_VARIABLE}).")
    dist = resolve_model(args.model, args.quantization, args.device, options.DIST, options.report)
    options.runtime_only()
    from mlcrt.serve.settings import Settings

    settings = Settings(
        names=tuple(args.model_name or [dist.resolve().name]),
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        cors_origins=tuple(origin.rstrip("/") for origin in args.cors_origin),
        allowed_hosts=tuple(host.lower() for host in args.allowed_host),
        max_body=args.max_body,
        max_tokens=args.max_tokens,
        request_timeout=args.request_timeout,
        shutdown_timeout=args.shutdown_timeout,
        log_prompts=args.log_prompts,
        tool_format=args.tool_format,
    )
    load = {"device": args.device, "slots": args.slots, "context": args.context, "queue": args.queue}
    if args.ray:
        from mlcrt.serve.ray import run_replicas

        return run_replicas(dist, settings, load, args.ray, options.report)
    from mlcrt.serve.run import listen, log_to_stderr, open_service, run

    log_to_stderr()
    with listen(settings) as listener:  # a port that is taken is said before the model is loaded
        run(open_service(dist, settings, **load), listener, options.report)
    return 0


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 86400, not {text}")
    return value
