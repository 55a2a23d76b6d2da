"""Run the application with uvicorn until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError
from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.serve.app import create_app
from mlcrt.serve.interface import Scheduler
from mlcrt.serve.protocol import HttpProtocol
from mlcrt.serve.service import Service
from mlcrt.serve.settings import Settings

log = logging.getLogger("mlcrt.serve")
_AFTER = 5  # seconds for connections to close once their streams were ended


def open_scheduler(dist: Path, device: str, slots: int, context: int | None, queue: int) -> Scheduler:
    """The compiled model in `dist`, loaded: `slots` requests at once, of `context` tokens each, and `queue` waiting."""
    from mlcrt.runtime.batch_engine import open_batch_engine
    from mlcrt.serve.scheduler import BatchScheduler

    return BatchScheduler(open_batch_engine(dist, device, context, slots), queue_limit=queue)


def open_service(dist: Path, settings: Settings, device: str, slots: int, context: int | None, queue: int) -> Service:
    """`open_scheduler` with all that belongs to it. Raises `MlcrtError`."""
    tokenizer = ModelTokenizer(dist, open_dist(dist).config.eos)
    scheduler = open_scheduler(dist, device, slots, context, queue)
    try:
        return Service(scheduler, tokenizer, settings)
    except BaseException:
        scheduler.close(drain=False)
        raise


def configuration(service: Service) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=int(service.settings.shutdown_timeout) + _AFTER, lifespan="on", ws="none",
        timeout_keep_alive=30, http=HttpProtocol,
    )  # fmt: skip


def run(service: Service, listener: socket.socket, report: Callable[[str], None]) -> None:
    """Serve at `listener` until SIGINT or SIGTERM, then let open answers finish (`shutdown_timeout`).

    A second signal does not wait. `report` is told the address when requests are taken.
    """
    settings = service.settings
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def started() -> None:
        report(f"Serving {service.name} at {address}/v1, with a chat page at {address}/ and the API at {address}/docs.")
        if not settings.local_only and not settings.api_keys:
            report("Anyone who can reach this address can use the model: there is no --api-key.")

    try:
        _Server(configuration(service), service, started).run(sockets=[listener])
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Says that it is closing as soon as a signal comes, and ends streams in their own format when time is up."""

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]):
        super().__init__(config)
        self._service, self._on_start = service, on_start
        self._timer: threading.Timer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = self._service.closing = True
        if self._timer is None:
            # Requests that are still open get their error from the scheduler.
            self._timer = threading.Timer(self._service.settings.shutdown_timeout, self._service.close)
            self._timer.daemon = True
            self._timer.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again afterwards, which would end the process before it has cleaned up."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(settings: Settings) -> socket.socket:
    """A socket at host and port (0: any that is free). Raises `MlcrtError` when they cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        raise MlcrtError(
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror or error}; "
            "choose another with --port or --host."
        ) from None


def log_to_stderr() -> None:
    """The server's own lines, and uvicorn's warnings, with the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("mlcrt.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
