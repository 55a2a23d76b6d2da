"""Replicas of a server with Ray Serve (https://docs.ray.io/en/latest/serve), for more than one engine can carry.

    pip install 'mlcrt[ray]'
    mlcrt serve dist/MODEL --ray 2                                            one machine
    serve run mlcrt.serve.ray:app model=dist/MODEL replicas=4                 in a cluster that `ray start` made
    serve build / serve deploy with import_path mlcrt.serve.ray:app           from a file

Ray starts a replica that dies anew and sends requests to the others meanwhile; answers that the dead one was giving
are lost. Each replica has its own engine, slots, queue and prefix cache. `model` must be a compiled folder that every
machine has at the same path. Limits and the key hold per replica, since each checks its own requests.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.serve.settings import Settings
from mlcrt.targets import all_targets

try:
    import ray
    from ray import serve
except ImportError:
    raise MlcrtError("Replicas need Ray Serve; install it with pip install 'mlcrt[ray]'.") from None

NAME = "mlcrt"
_LOAD = {"device": "auto", "slots": 8, "context": None, "queue": 64}


def app(args: Mapping[str, Any]) -> serve.Application:
    """What `serve run` and `serve deploy` call.

    `model` is a compiled folder; `replicas` (1); `cpus` of each replica (all that the machine has, shared out evenly
    among `replicas`); `device`, `slots`, `context` and `queue` as for `mlcrt serve`; and what `Settings` has (`names`,
    `api_keys` and `cors_origins` with commas between them). Raises `UsageError` for anything else.
    """
    given = dict(args)
    try:
        dist = Path(given.pop("model")).resolve()
    except KeyError:
        raise UsageError("Say which model to serve: model=dist/NAME.") from None
    count = int(given.pop("replicas", 1))
    cpus = int(given.pop("cpus", 0)) or max(1, (os.cpu_count() or 1) // count)
    load = {name: given.pop(name, default) for name, default in _LOAD.items()}
    load |= {name: int(load[name]) for name in ("slots", "context", "queue") if load[name] is not None}
    settings = _settings({"names": dist.name, **given})
    return bind(dist, settings, load, count, cpus)


def bind(dist: Path, settings: Settings, load: Mapping[str, Any], replicas: int, cpus: int) -> serve.Application:
    """The application: `replicas` of the model in `dist`, each with `cpus` threads and, where it runs on one, a GPU."""
    manifest = open_dist(dist).manifest

    def build() -> Any:
        from mlcrt.serve.app import create_app
        from mlcrt.serve.run import log_to_stderr, open_service

        log_to_stderr()
        return create_app(open_service(dist, settings, **load))

    # Fewer at once than the engine takes and lets wait would make Ray's queue the one that is full, whose errors are
    # not OpenAI's.
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=2 * (load["slots"] + load["queue"]) + 16,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={
            "num_cpus": 0,  # threads are bounded below; Ray would refuse to start what this machine can run
            "num_gpus": int(_on_gpu(manifest, load["device"])),
            "runtime_env": {"env_vars": {"TVM_NUM_THREADS": str(cpus), "TVM_USE_RUNTIME_LIB": "1"}},
        },
    )
    return deployment(serve.ingress(build)()).bind()


def run_replicas(
    dist: Path, settings: Settings, load: Mapping[str, Any], replicas: int, report: Callable[[str], None]
) -> int:
    """`mlcrt serve --ray N`: replicas on this machine (or the cluster of RAY_ADDRESS) until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address) if address else ray.init(include_dashboard=False)
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        cpus = max(1, (os.cpu_count() or 1) // replicas)
        serve.run(bind(dist.resolve(), settings, load, replicas, cpus), name=NAME, route_prefix="/")
        report(f"Serving {settings.names[0]} with {replicas} replicas at http://{settings.host}:{settings.port}/v1.")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


def _settings(given: Mapping[str, Any]) -> Settings:
    out = {}
    for field in fields(Settings):
        if field.name in given:
            out[field.name] = _as_type(str(field.type), given[field.name])
    unknown = set(given) - {field.name for field in fields(Settings)}
    if unknown:
        raise UsageError(f"There is no setting {sorted(unknown)[0]!r} for replicas.")
    return Settings(**out)


def _as_type(kind: str, value: Any) -> Any:
    """`serve run NAME=VALUE` gives text, a config file what YAML makes of it."""
    if kind.startswith("tuple"):
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if kind == "bool":
        return value if isinstance(value, bool) else value.lower() in ("1", "true", "yes")
    return {"int": int, "float": float, "int | None": int}.get(kind, str)(value)


def _on_gpu(manifest: Mapping[str, Any], device: str) -> bool:
    """Whether a replica is going to run on a CUDA device, which Ray then gives to it alone."""
    name = device.partition(":")[0]
    if name != "auto":
        return name == "cuda"
    runnable = (n for n, module in all_targets().items() if n in manifest["targets"] and module.probe().available)
    return next(runnable, "cpu") == "cuda"
