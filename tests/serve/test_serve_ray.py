"""Two Ray Serve replicas on this machine, one of them killed under load.

Not run unless asked for (`pytest -m ray`): Ray alone takes some 15 s to start and stop, and it is 80 MB to install
(`pip install 'mlcrt[ray]'`).
"""

from __future__ import annotations

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
import psutil
import pytest
import requests

HERE = Path(__file__).parent
pytestmark = pytest.mark.ray
HI = [{"role": "user", "content": "Hi"}]

# Writes how many replicas Ray calls running, whenever that changes.
PROGRAM = """
import sys, threading, time
sys.path.insert(0, {here!r})
import ray, toy_serve
from ray import serve
from mlcrt.cli import main

def watch():
    last = None
    while True:
        time.sleep(0.1)
        try:
            application = serve.status().applications["mlcrt"]
            now = application.deployments["mlcrt"].replica_states.get("RUNNING", 0)
        except Exception:
            continue
        if now != last:
            print("RUNNING", now, file=open({status!r}, "a"), flush=True)
        last = now

variables = {{"PYTHONPATH": {path!r}, "TOY_STEP": "0.005"}}
environment = {{"env_vars": variables, "worker_process_setup_hook": "toy_serve.install"}}
ray.init(include_dashboard=False, num_cpus=4, runtime_env=environment)
threading.Thread(target=watch, daemon=True).start()
sys.exit(main(["serve", {dist!r}, "--model-name", "toy", "--ray", "2", "--port", "{port}", "--slots", "4"]))
"""


def replicas(root: psutil.Process) -> list[psutil.Process]:
    """The processes of replicas that descend from `root`."""
    return [p for p in root.children(recursive=True) if "ServeReplica" in " ".join(p.cmdline()[:1])]


class Load:
    """Clients that ask without pause: `done` has (when it was sent, what went wrong or None)."""

    def __init__(self, url: str, clients: int):
        self.url, self.done, self._stop = url, [], threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        client = openai.OpenAI(base_url=self.url + "/v1", api_key="x", max_retries=0, timeout=20)
        while not self._stop.is_set():
            sent = time.monotonic()
            problem = None
            try:
                if number % 2:
                    chunks = list(client.chat.completions.create(model="toy", messages=HI, max_tokens=20, stream=True))
                    complete = chunks[-1].choices[0].finish_reason == "length"
                else:
                    answer = client.chat.completions.create(model="toy", messages=HI, max_tokens=20)
                    complete = answer.usage.completion_tokens == 20
                problem = None if complete else "incomplete"
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"[:200]
            self.done.append((sent, problem))

    def stop(self) -> list[tuple[float, str | None]]:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        return self.done


def test_a_replica_is_killed_under_load(dist, tmp_path):
    pytest.importorskip("ray", reason="mlcrt[ray] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parent / "faces"), str(HERE.parent / "text")])
    status = tmp_path / "status"
    program = PROGRAM.format(here=str(HERE), path=path, dist=str(dist), port=port, status=str(status))

    def states() -> list[str]:
        return status.read_text().split()[1::2] if status.exists() else []

    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
        root = psutil.Process(process.pid)
        try:
            url = f"http://127.0.0.1:{port}"
            _until(lambda: states()[-1:] == ["2"] and _ready(url), 60, log)
            _leave(url)
            load = Load(url, 8)
            time.sleep(3)
            before = len(load.done)
            assert before > 20 and not [problem for _, problem in load.done if problem]

            known, killed_at = len(states()), time.monotonic()
            replicas(root)[0].kill()
            _until(lambda: len(states()) > known + 1 and states()[-1] == "2", 60, log)
            assert int(states()[known]) < 2, "Ray has seen that one was gone"
            recovered_at = time.monotonic()
            time.sleep(5)
            done = load.stop()
            lost = [problem for sent, problem in done if problem]
            after = [problem for sent, problem in done if sent > recovered_at]
            print(
                f"{len(done)} requests, {len(lost)} lost ({set(lost)}), two replicas again after "
                f"{recovered_at - killed_at:.1f} s, {len(after)} requests since then"
            )
            assert len(after) > 20 and not any(after), set(after)
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
        finally:
            for child in [*root.children(recursive=True), root] if root.is_running() else []:
                child.kill()
            process.wait(10)


def _leave(url: str) -> None:
    """A stream left half way ends on whichever replica had it."""
    client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0, timeout=20)
    streams = [client.chat.completions.create(model="toy", messages=HI, max_tokens=1900, stream=True) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    end, quiet = time.monotonic() + 5, 0
    while quiet < 20:  # both replicas answer some of these
        running = re.search(r"^mlcrt_running (\S+)", requests.get(url + "/metrics", timeout=5).text, re.M)[1]
        quiet = quiet + 1 if float(running) == 0 else 0
        assert time.monotonic() < end, "a stream that was left goes on"


def _ready(url: str) -> bool:
    try:
        return requests.get(url + "/health", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def _until(condition, seconds: float, log) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    log.seek(0)
    raise AssertionError(log.read()[-4000:])
