"""The page as `mlcrt serve` brings it: a process of its own, with the toy engine behind the real application."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from web_browser import Page

TOY = Path(__file__).parent.parent / "toy_serve.py"

if importlib.util.find_spec("mlcrt.serve.app") is None:
    pytest.skip("mlcrt serve is not in this checkout", allow_module_level=True)


class Address:
    """What Page wants to know of a server that is a process."""

    def __init__(self, url: str):
        self.url, self.paths = url, []


@contextlib.contextmanager
def serving(dist, *arguments: str, step: str = "0"):
    command = [sys.executable, str(TOY), "serve", str(dist), "--port", "0", *arguments]
    environment = {**os.environ, "TOY_STEP": step}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        first = process.stderr.readline()
        found = re.search(r"at (http://\S+)/v1", first)
        assert found, first
        yield Address(found[1] + "/")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_conversation_with_mlcrt_serve(chromium, dist):
    with serving(dist, "--model-name", "toy", "--api-key", "sesame", step="0.01") as address:
        page = Page(chromium, address)
        page.screen()
        page.drain()
        page.open()
        page.js("sessionStorage.clear(); localStorage.clear()")  # the port may have been another server's
        page.open()
        page.until(lambda: page.find("#key-dialog").is_displayed(), "no key was asked for")
        page.keys("sesame")
        page.press("Use this key")
        page.until(lambda: page.find("#model").text == "toy")
        page.press("Settings")
        page.find("#set-max_tokens").send_keys("20")
        page.find("#set-seed").send_keys("3")
        page.send("Hello there")
        page.until(lambda: page.note().startswith("Cut off"), "the answer did not come")
        margin = page.find(".turn.assistant .margin").text.splitlines()
        assert margin[0] == "toy" and "20 tokens" in margin and any(line.endswith("tokens/s") for line in margin)
        assert re.fullmatch(r"\d+ of [\d,]+ tokens of context", page.find("#used").text)
        first = page.answers[-1]
        page.press("Regenerate")
        page.until(lambda: page.all(".turn.assistant .count"), "there is no second answer")
        page.idle()
        page.until(lambda: page.answers[-1] == first, "the same seed gave another answer")
        page.find("#set-max_tokens").send_keys("00")  # 2000 tokens take 20 s
        page.send("A long one")
        page.until(lambda: len(page.answers) == 2 and len(page.answers[-1]) > 20, "nothing streams " + page.note())
        page.press("Stop")
        page.idle()
        assert page.note() == "Stopped." and page.answers[-1]
        before = page.answers
        page.reload()
        assert page.answers == before
        page.js("document.getElementById('prompt').value = 'word '.repeat(3000)")
        page.press("Send")
        page.until(lambda: "no longer fits the model's context" in page.note(), page.note())
        page.check_traffic()
        page.leave()
