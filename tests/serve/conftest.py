"""Fixtures of the server's tests; what they are made of is in served.py."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import running  # noqa: E402
from toy_dist import make_dist  # noqa: E402


@pytest.fixture(autouse=True)
def loggers():
    """`mlcrt serve`, called in this process, directs the server's log to a stderr that is gone after the test."""
    named = [logging.getLogger(name) for name in ("mlcrt.serve", "uvicorn")]
    before = [(log.handlers, log.propagate, log.level) for log in named]
    yield
    for log, (handlers, propagate, level) in zip(named, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture(scope="session")
def dist(tmp_path_factory) -> Path:
    return make_dist(tmp_path_factory.mktemp("dist"), ends=0, context=2048)


@pytest.fixture(scope="session")
def server(dist):
    """One server for tests that leave nothing behind; answers never end by themselves."""
    with running(dist) as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return server.client()
