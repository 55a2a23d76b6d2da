"""Several targets in one call: side by side, none lost through another's failure, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from small_llama import snapshot

from mlcrt.compile import compile_model, parallel
from mlcrt.dist import check_target, open_dist
from mlcrt.errors import MlcrtError
from mlcrt.runtime.engine import Engine
from mlcrt.targets import all_targets

TWO = "cpu:x86-64,cpu:x86-64-v2"


def hidden(folder) -> list[str]:
    return [p.name for p in folder.rglob(".*")]


def workers(parent: int) -> list[psutil.Process]:
    """The children of a process that compile; others come and go while one looks."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if process.info["ppid"] == parent and "mlcrt.compile.parallel" in (process.info["cmdline"] or ()):
            found.append(process)
    return found


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_that_fails_loses_no_other(private, monkeypatch):
    monkeypatch.setattr(all_targets()["cuda"], "compiler_missing", lambda: "there is no compiler for it")
    folder, seen = private("q4f32_1"), []
    before = (folder / "cpu/lib.so").read_bytes()
    sentence = (
        r"^compiling failed for cuda \(there is no compiler for it\); .* has cpu:x86-64, cpu:x86-64-v2$"
    )
    with pytest.raises(MlcrtError, match=sentence):
        compile_model(folder, None, f"cuda,{TWO},cpu:x86-64", progress=lambda *event: seen.append(event))
    assert (folder / "cpu/lib.so").read_bytes() == before
    tokens = set()
    for slot in ("cpu", "cpu:x86-64", "cpu:x86-64-v2"):
        entry = check_target(open_dist(folder), slot)
        engine = Engine(folder, f"cpu:{entry['arch']}")
        engine.prefill([5, 17, 250, 3])
        tokens.add(tuple(engine.greedy(6)))
        engine.close()
        shares = [share for name, _, share in seen if name == slot]
        if slot != "cpu":
            phases = [phase for name, phase, _ in seen if name == slot]
            assert shares == sorted(shares) and shares[-1] == 1 and {"link", "done", "legalize"} <= set(phases)
    assert len(tokens) == 1 and ("cuda", "failed", 1.0) in seen
    assert hidden(folder.parent) == []


def test_a_worker_that_dies_and_one_that_is_broken_off(private):
    """The first is said, the second cleans up after itself."""
    folder = private("q4f32_1")
    before, said, killed = snapshot(folder.parent), [], []

    def progress(slot, phase, share):
        if not killed:
            victim = workers(os.getpid())[0]
            victim.kill()
            killed.append(victim)

    def report(line):
        said.append(line)
        if "failed" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(folder, None, TWO, report=report, progress=progress)
    assert any("failed: the compiler ended with status -9" in line for line in said)
    assert snapshot(folder.parent) == before
    assert not workers(os.getpid())


def test_killed_from_outside(private):
    """kill -9 of the command: its workers notice and go, and leave nothing."""
    folder = private("q4f32_1")
    before = snapshot(folder.parent)
    command = [sys.executable, "-m", "mlcrt.cli", "compile", str(folder), "--target", TWO]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if "lower-operators" in line:
            break
    mine = workers(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    assert mine
    deadline = time.monotonic() + 100
    while not all(map(ended, mine)):
        assert time.monotonic() < deadline, "a worker went on"
        time.sleep(0.1)
    assert snapshot(folder.parent) == before


def test_each_target_once():
    from mlcrt.compile.build import _plan
    from mlcrt.dist import Dist

    chosen = [("cpu", "x86-64-v2"), ("cpu", "x86-64-v3"), ("cpu", "x86-64-v2-linux"), ("cpu", "aarch64-linux")]
    planned = _plan(Dist(None, {"targets": {}}), chosen)
    assert list(planned) == ["cpu", "cpu:x86-64-v3", "cpu:aarch64-linux"]


def test_jobs_are_bounded(monkeypatch):
    running, most = set(), []

    class Worker:
        def __init__(self, job, events):
            self.slot = job["slot"]
            running.add(self.slot)
            most.append(len(running))
            events.put((self.slot, {"error": None}))

        def close(self):
            running.discard(self.slot)

    monkeypatch.setattr(parallel, "_Worker", Worker)
    planned = {f"cpu:{i}": ("cpu", "") for i in range(5)}
    for jobs in (1, 2, 9):
        most.clear()
        parallel.compile_slots(None, planned, None, None, False, print, None, jobs)
        assert len(most) == 5 and max(most) <= jobs
