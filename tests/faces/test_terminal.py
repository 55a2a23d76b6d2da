"""`mlcrt chat` on a terminal: a pseudo-terminal with the keys a person presses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import toy
from toy_dist import make_dist

pty = pytest.importorskip("pty")
HERE = Path(__file__).parent
WAIT = 60  # seconds: far more than anything here takes
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """`mlcrt chat DIST ARGS…` in a pseudo-terminal; `seen` is what it wrote, without escape sequences."""

    def __init__(self, dist: Path, state: Path, *args: str, delay: float = 0):
        settings = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100", "LINES": "40"}
        env = {**os.environ, **settings, "XDG_STATE_HOME": str(state), "TOY_DELAY": str(delay)}
        command = [sys.executable, str(HERE / "toy_main.py"), "chat", str(dist), *args]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, env)
        self.raw, self._from = b"", 0

    @property
    def seen(self) -> str:
        return ESCAPES.sub("", self.raw.decode("utf-8", "replace"))

    def wait(self, pattern: str, timeout: float = WAIT) -> re.Match:
        """Read until `pattern` comes after what was waited for before."""
        end = time.monotonic() + timeout
        while True:
            found = re.compile(pattern, re.S).search(self.seen, self._from)
            if found:
                self._from = found.end()
                return found
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {pattern!r} in {self.seen[self._from :]!r}"
            try:
                self.raw += os.read(self.fd, 65536)
            except OSError:  # the other side has gone
                raise AssertionError(f"left before {pattern!r}: {self.seen!r}") from None

    def press(self, keys: str) -> None:
        """Type as it is; keys that mean something only at the prompt need `enter`."""
        os.write(self.fd, keys.encode())

    def enter(self, keys: str) -> None:
        """Type once the prompt is there: before, the terminal itself would take Ctrl-C and Ctrl-D."""
        self.wait("> ")
        self.press(keys)

    def leave(self, timeout: float = WAIT) -> int:
        """Exit code, once it has left; what it still writes is read."""
        end = time.monotonic() + timeout
        while True:
            if select.select([self.fd], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.raw += os.read(self.fd, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"did not leave: {self.seen!r}")


def test_a_conversation(dist, tmp_path):
    terminal = Terminal(dist, tmp_path / "state", "--temperature", "0", "--max-tokens", "12")
    terminal.wait("toy-q0f32 on toy, context 512; /help lists the commands")
    terminal.enter("Hello you\r")
    terminal.wait(r"Hello you.*\n[^\n]+\n\[\d+ tokens, [\d.]+ tok/s; prompt (\d+) new \+ 0 cached, [\d.]+ tok/s.*\]")
    terminal.enter("again\x1b\rand\\\ragain\r")  # Esc Enter and a backslash go on in another line
    new, cached = terminal.wait(r"prompt (\d+) new \+ (\d+) cached").groups()
    assert int(cached) > int(new)
    terminal.enter("/he")
    terminal.wait("/help")  # offered
    terminal.press("\t")
    terminal.wait("lp")  # taken
    terminal.press("\r")
    terminal.wait("/set NAME VALUE")
    terminal.wait("Ctrl-D +leave")
    terminal.enter("/set temperature 0.5\r")
    terminal.wait(r"\ntemperature = 0\.5")
    terminal.enter("not this line")
    terminal.wait("not this line")
    terminal.press("\x03")
    terminal.enter("/stats\r")
    terminal.wait(r"context +\d+ of 512 tokens")
    terminal.enter(f"/save {tmp_path}/talk\r")
    terminal.wait("Saved to")
    terminal.enter("/nonsense\r")
    terminal.wait("There is no command /nonsense")
    terminal.enter("\x04")
    assert terminal.leave() == 0 and "Traceback" not in terminal.seen
    history = (tmp_path / "state" / "mlcrt" / "history").read_text()
    assert "+Hello you" in history and "+again\n+and\n+again" in history and "not this line" not in history
    messages = json.loads(zipfile.ZipFile(tmp_path / "talk").read("chat.json"))["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["Hello you", "again\nand\nagain"]


def test_ctrl_c_ends_the_answer_not_the_program(tmp_path):
    dist = make_dist(tmp_path, ends=0)
    terminal = Terminal(dist, tmp_path, "--temperature", "0", delay=0.05)
    terminal.enter("count\r")
    terminal.wait(r"count\n+[^\n]")  # the answer has begun; it would take 25 s
    terminal.press("\x03")
    tokens = terminal.wait(r"\[(\d+) tokens.*stopped\]").group(1)
    assert 1 <= int(tokens) < 200
    terminal.enter("go on\r")
    terminal.wait(r"go on\n+[^\n]")
    terminal.press("\x03")
    assert int(terminal.wait(r"\+ (\d+) cached.*stopped\]").group(1)) > 20
    terminal.enter("/exit\r")
    assert terminal.leave() == 0 and "Traceback" not in terminal.seen


def test_a_model_cannot_command_the_terminal(tmp_path):
    dist = make_dist(tmp_path, ends=0)
    escape = toy.byte_level().encode("\x1b").ids
    settings = json.loads((dist / "toy.json").read_text())
    (dist / "toy.json").write_text(json.dumps({**settings, "text_tokens": escape}))
    terminal = Terminal(dist, tmp_path, "--max-tokens", "4")
    terminal.enter("q\r")
    terminal.wait("\ufffd{4}\n")
    terminal.enter("\x04")
    assert terminal.leave() == 0


def test_without_a_place_for_history(dist, tmp_path):
    (tmp_path / "file").write_text("")
    terminal = Terminal(dist, tmp_path / "file", "--max-tokens", "3")
    terminal.enter("q\r")
    terminal.wait(r"\[3 tokens|\[2 tokens|\[1 tokens")
    terminal.enter("\x04")
    assert terminal.leave() == 0
