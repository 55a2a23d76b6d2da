"""Which library of a folder is run, and how a compilation shows itself on a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mlcrt.commands.progress import compilation
from mlcrt.dist import Dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.select import has_library, pick
from mlcrt.targets import ProbeResult, all_targets
from mlcrt.targets.cpu import attributes, missing_features


def folder(**entries) -> Dist:
    """A dist with these libraries: architecture names by slot, 'cpu__' for 'cpu:'."""
    targets = {}
    for slot, arch in entries.items():
        found = attributes(arch)
        targets[slot.replace("__", f":{arch}")] = {
            "library": f"{slot}/lib", "arch": found.name, "features": list(found.features), "platform": found.platform,
        }  # fmt: skip
    return Dist(Path("dist/x"), {"targets": targets})


def test_the_one_that_asks_most_of_this_machine():
    if missing_features(list(attributes("x86-64-v3").features)):
        pytest.skip("this machine is not x86-64-v3")
    both = folder(cpu="x86-64-v2", cpu__="x86-64-v3")
    assert pick(both, "auto") == pick(both, "cpu") == "cpu:x86-64-v3"
    assert pick(both, "cpu:x86-64-v2") == "cpu" and has_library(both, "cpu:x86-64-v2")
    assert not has_library(both, "cpu:x86-64") and not has_library(both, "cuda")


def test_one_that_asks_too_much_is_passed_over():
    both = folder(cpu="x86-64", cpu__="x86-64-v2")
    both.manifest["targets"]["cpu:x86-64-v2"]["features"].append("holodeck")
    assert pick(both, "auto") == "cpu"
    with pytest.raises(MlcrtError, match="^dist/x/cpu__/lib was compiled for x86-64-v2 and this machine lacks holo"):
        pick(both, "cpu:x86-64-v2")


def test_manifests_of_before_have_no_platform():
    old = folder(cpu="x86-64")
    del old.manifest["targets"]["cpu"]["platform"]
    assert pick(old, "auto") == pick(old, "cpu") == "cpu"


def test_nothing_runs_here(monkeypatch):
    with pytest.raises(MlcrtError, match=r"no library that this machine can run \(it has: cpu for ARM64 macOS\); run"):
        pick(folder(cpu="aarch64-macos"), "auto")
    with pytest.raises(MlcrtError, match=r"no library that this machine can run \(it has: none\)"):
        pick(folder(), "auto")
    with pytest.raises(UsageError, match="unknown target 'gpu'"):
        pick(folder(), "gpu")
    monkeypatch.setattr(all_targets()["cpu"], "probe", lambda: ProbeResult(False, [], "gone"))
    with pytest.raises(MlcrtError, match="no library that this machine can run"):
        pick(folder(cpu="x86-64"), "auto")


def test_a_damaged_entry_is_left_to_the_one_who_opens_it():
    damaged = Dist(None, {"targets": {"cpu": "x"}})
    assert pick(damaged, "cpu") == "cpu"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with compilation() as (report, progress):
        progress("cpu:[x]", "legalize", 0.5)
        report("compiled [bold]something")
        progress("cuda", "done", 1.0)
    shown = sys.stderr.getvalue()
    for text in ("cpu:[x]", "legalize", "cuda", "done", "compiled [bold]something"):
        assert text in shown


def test_no_terminal_gets_lines(monkeypatch, capsys):
    with compilation() as (report, progress):
        assert progress is None
        report("a line")
    assert capsys.readouterr().err == "a line\n"
