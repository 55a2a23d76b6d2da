"""Run the application with uvicorn until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from mlcrt.errors import MlcrtError
from mlcrt.serve.app import create_app
from mlcrt.serve.service import Service
from mlcrt.serve.settings import Settings

log = logging.getLogger("mlcrt.serve")
_AFTER = 5  # seconds for connections to close once their streams were ended


def run(service: Service, report: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let open answers finish (`shutdown_timeout`). Raises `MlcrtError`.

    A second signal does not wait. `report` is told the address when requests are taken.
    """
    settings = service.settings
    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def started() -> None:
        report(f"Serving {service.name} at {address}/v1, with a chat page at {address}/ and the API at {address}/docs.")
        if not settings.local_only and not settings.api_keys:
            report("Anyone who can reach this address can use the model: there is no --api-key.")

    config = uvicorn.Config(
        create_app(service, started), log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + _AFTER, lifespan="on", ws="none",
    )  # fmt: skip
    try:
        _Server(config, service).run(sockets=[listener])
    finally:
        listener.close()
        service.close()


class _Server(uvicorn.Server):
    """Says that it is closing as soon as a signal comes, and ends streams in their own format when time is up."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self._timer: threading.Timer | None = None

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
    """A socket at host and port (0: any that is free). Taken before the model is loaded, if the caller likes."""
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
