"""A real uvicorn server on a free port, over the toy scheduler unless a test says otherwise."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import openai
import uvicorn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faces"), str(HERE.parent / "text")]

from toy_scheduler import ToyScheduler  # noqa: E402

from mlcrt.runtime.tokenizer import ModelTokenizer  # noqa: E402
from mlcrt.serve.run import configuration, listen  # noqa: E402
from mlcrt.serve.service import Service  # noqa: E402
from mlcrt.serve.settings import Settings  # noqa: E402

MODEL = "toy"


class Running:
    """A server in a thread: `url`, `client()` (the official package), `service`, `scheduler`."""

    def __init__(self, service: Service):
        self.service, self.scheduler = service, service.scheduler
        listener = listen(replace(service.settings, port=0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(configuration(service))
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def client(self, **more) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **more}
        )

    def idle(self, seconds: float = 60.0) -> dict:
        """The scheduler's stats once nothing runs or waits; fails if that does not come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.scheduler.stats()
            if not stats["running"] and not stats["queued"]:
                return stats
            time.sleep(0.01)
        raise AssertionError(f"requests are still there: {stats}")

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not end"


@contextlib.contextmanager
def running(dist, settings: Settings | None = None, **scheduler):
    """A toy server for the length of a block."""
    tokenizer = ModelTokenizer(dist, [2])
    server = Running(Service(ToyScheduler(dist, **scheduler), tokenizer, settings or Settings((MODEL,))))
    try:
        yield server
    finally:
        server.stop()
