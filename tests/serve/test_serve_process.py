"""`mlcrt serve` as a process: its options, its start, its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import requests

HERE = Path(__file__).parent
HI = {"messages": [{"role": "user", "content": "Hi"}]}
WAIT = 60  # seconds: far more than anything here takes


@contextlib.contextmanager
def serve(dist, *args, step="0", **env):
    """A process `mlcrt serve` on a free port: (process, url, lines of its stderr so far)."""
    command = [sys.executable, str(HERE / "toy_serve.py"), "serve", str(dist), "--port", "0", *args]
    environment = {**os.environ, "TOY_STEP": step, **env}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    try:
        first = process.stderr.readline()
        found = re.search(r"at (http://\S+)/v1", first)
        assert found, first + process.stderr.read()
        reader.start()
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait()
        if reader.ident:
            reader.join(WAIT)


def test_start_answer_end(dist):
    with serve(dist, "--model-name", "small", "--slots", "2") as (process, url, lines):
        client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
        answer = client.chat.completions.create(model="small", max_tokens=5, **HI)
        assert answer.usage.completion_tokens == 5
        assert "mlcrt_slots 2.0" in requests.get(url + "/metrics", timeout=WAIT).text
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
    assert process.stdout.read() == "" and any("POST /v1/chat/completions 200" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def takes_requests(session, url) -> bool:
    try:
        return session.get(url + "/health", timeout=WAIT).status_code == 200
    except requests.ConnectionError:  # it has ended
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_finish_before_the_end(dist, number):
    with serve(dist, step="0.02") as (process, url, lines):
        client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
        name = client.models.list().data[0].id
        stream = client.chat.completions.create(model=name, max_tokens=60, stream=True, **HI)
        next(iter(stream))
        kept = requests.Session()
        assert kept.get(url + "/health", timeout=WAIT).status_code == 200
        process.send_signal(number)
        while takes_requests(kept, url):
            time.sleep(0.01)
        with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
            client.with_options(max_retries=0).chat.completions.create(model=name, max_tokens=5, **HI)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length" and len(chunks) > 40
        assert process.wait(WAIT) == 0


def test_the_end_is_bounded(dist):
    with serve(dist, "--shutdown-timeout", "0.5", step="0.02") as (process, url, lines):
        client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
        name = client.models.list().data[0].id
        stream = client.chat.completions.create(model=name, max_tokens=2000, stream=True, **HI)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "service_unavailable"
        assert process.wait(WAIT) == 0


def test_the_key_may_come_from_the_environment(dist):
    with serve(dist, MLCRT_API_KEY="sk-x") as (process, url, lines):
        assert requests.get(url + "/v1/models", timeout=WAIT).status_code == 401
        key = {"Authorization": "Bearer sk-x"}
        assert requests.get(url + "/v1/models", headers=key, timeout=WAIT).status_code == 200


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["--port", "70000"], 2, "0 to 65535"),
        (["--slots", "0"], 2, "must be 1 or more"),
        (["--request-timeout", "0"], 2, "above 0"),
        (["--api-key", " "], 2, "--api-key is empty"),
        (["--host", "no.such.host.invalid"], 1, "cannot be used"),
        (["--tool-format", "xml"], 2, "xml"),
    ],
)
def test_wrong_options_are_one_line(dist, args, code, part, capsys):
    from mlcrt import cli

    assert cli.main(["serve", str(dist), *args]) == code
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error


def test_a_port_that_is_taken(dist, capsys):
    from mlcrt import cli

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["serve", str(dist), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"Port {port} of 127.0.0.1 cannot be used" in error and error.count("\n") == 1


def test_other_verbs_do_not_load_the_web_framework():
    code = "import sys, mlcrt.cli as c; c.parser(); print([m for m in sys.modules if m.split('.')[0] in "
    code += "('fastapi','uvicorn','pydantic','starlette','llguidance','prometheus_client','ray','tvm')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
