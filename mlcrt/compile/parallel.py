"""Several targets at once: each library is compiled in a process of its own, which reports to this one.

The processes share nothing but the folder of converted weights, and each puts its library in place itself. A worker
reads its job from stdin and writes JSON lines to stdout. When stdin closes, because the parent breaks off or is gone,
it interrupts itself and cleans up.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mlcrt.errors import MlcrtError
from mlcrt.targets import all_targets

_PATIENCE = 20  # seconds that a worker gets to clean up when broken off


def compile_slots(
    folder: Path,
    planned: dict[str, tuple[str, str]],
    dump_ir: Path | None,
    context: int | None,
    check: bool,
    report: Callable[[str], None],
    progress: Callable[[str, str, float], None] | None,
    jobs: int | None,
    slots: int | None = None,
) -> None:
    """Compile slot → (target, architecture) into `folder`. MlcrtError names those that failed; the others are there."""
    failed: dict[str, str] = {}
    waiting = []
    for slot, (name, arch) in planned.items():
        missing = all_targets()[name].compiler_missing()
        if missing:
            failed[slot] = missing
            if progress is not None:
                progress(slot, "failed", 1.0)
            continue
        dump = str(dump_ir / slot.replace(":", "-")) if dump_ir else None
        waiting.append({"folder": str(folder), "slot": slot, "name": name, "arch": arch, "dump": dump,
                        "context": context, "check": check, "slots": slots})  # fmt: skip
    running: dict[str, _Worker] = {}
    events: queue.SimpleQueue = queue.SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < (jobs or default_jobs()):
                job = waiting.pop(0)
                running[job["slot"]] = _Worker(job, events)
            slot, event = events.get()
            if "phase" in event:
                if progress is not None:
                    progress(slot, event["phase"], event["share"])
                else:
                    report(f"{slot}: {event['phase']}")
            elif "line" in event:
                report(event["line"])
            else:  # the end
                running.pop(slot).close()
                if event["error"] is not None:
                    failed[slot] = event["error"]
                    report(f"{slot} failed: {event['error']}")
                if progress is not None:
                    progress(slot, "failed" if event["error"] else "done", 1.0)
    finally:
        for worker in running.values():
            worker.interrupt()
        for worker in running.values():
            worker.close()
    if failed:
        made = [slot for slot in planned if slot not in failed]
        reasons = "; ".join(f"{slot} ({reason})" for slot, reason in failed.items())
        have = f"; {folder} has {', '.join(made)}" if made else ""
        raise MlcrtError(f"compiling failed for {reasons}{have}")


def default_jobs() -> int:
    from mlcrt.targets.cpu.device import physical_cores

    return physical_cores()


class _Worker:
    """A process that compiles one library; its events, then {"error": sentence or None}, go to a queue."""

    def __init__(self, job: dict, events: queue.SimpleQueue):
        self.slot, self.events = job["slot"], events
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close())
        environment = {k: v for k, v in os.environ.items() if k != "TVM_USE_RUNTIME_LIB"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlcrt.compile.parallel"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which passes it on once
        )  # fmt: skip
        with contextlib.suppress(OSError):  # it died already: its end is reported
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        error: str | None = "no answer"
        for line in self.process.stdout:
            event = json.loads(line)
            if "error" in event:
                error = event["error"]
            else:
                self.events.put((self.slot, event))
        status = self.process.wait()
        if error == "no answer":
            error = f"the compiler ended with status {status}{self._last_words()}"
        self.events.put((self.slot, {"error": error}))

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def close(self) -> None:
        """Wait for the end of the process; an interrupted one that does not come to it is killed."""
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.interrupt()
        self.thread.join()
        self.process.stdout.close()
        self.errors.close()


def _say(stream, event: dict) -> None:
    stream.write(json.dumps(event) + "\n")
    stream.flush()


@contextlib.contextmanager
def _own_stdout() -> Iterator:
    """The channel to the parent; what else is printed goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        yield channel


def _watch() -> None:
    """Interrupt the main thread when the parent closes our stdin, or is gone. Bytes are read past Python's buffer,
    whose lock a thread that waits in it would keep until the end."""
    import _thread

    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    _thread.interrupt_main()


def main() -> int:
    """The worker."""
    from .build import compile_target

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    with _own_stdout() as channel:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)
            if not byte:
                return 1
            line += byte
        job = json.loads(line)
        threading.Thread(target=_watch, daemon=True).start()
        from mlcrt.dist import open_dist

        error = None
        try:
            compile_target(
                open_dist(Path(job["folder"])), job["name"], job["arch"], Path(job["dump"]) if job["dump"] else None,
                job["context"], lambda text: _say(channel, {"line": text}), job["check"], job["slot"],
                lambda _slot, phase, share: _say(channel, {"phase": phase, "share": share}), slots=job["slots"],
            )  # fmt: skip
        except KeyboardInterrupt:
            return 130
        except MlcrtError as failure:
            error = str(failure)
        except Exception as failure:
            if os.environ.get("MLCRT_DEBUG", "") not in ("", "0"):
                raise
            error = f"internal error, {type(failure).__name__}: {failure} (MLCRT_DEBUG=1 shows where)"
        _say(channel, {"error": error and " ".join(error.split())})
    return 0


if __name__ == "__main__":
    sys.exit(main())
