"""The ids that `mlcrt devices` prints are what --device takes, and what is not here is refused before any work."""

from __future__ import annotations

import json

import pytest

from mlcrt import cli
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.select import require_device
from mlcrt.targets import ProbeResult, all_targets, parse_device

ARCHES = {"cuda": "sm_90", "rocm": "gfx1100", "metal": "apple-m1", "vulkan": "s32", "cpu": "x86-64-v3"}


@pytest.mark.parametrize("name", ARCHES)
def test_numbers_are_devices_and_architectures_are_not(name):
    assert parse_device(name) == (name, "", False)
    assert parse_device(f"{name}:{ARCHES[name]}") == (name, ARCHES[name], False)
    if name not in ("vulkan", "rocm"):  # which ask their drivers what there is
        assert parse_device(f"{name}:1") == (name, "1", True)
    with pytest.raises(UsageError):
        parse_device(f"{name}:no-such-thing")


def test_every_listed_device_can_be_named(capsys):
    assert cli.main(["devices", "--json"]) == 0
    found = [device["id"] for entry in json.loads(capsys.readouterr().out) for device in entry["devices"]]
    assert "cpu" in found
    for device in found:
        require_device(device)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:2", "this machine has no cuda:2: there is cuda:0, cuda:1"), ("metal:0", "no metal:0: it is no Mac"),
        ("cpu:1", "no cpu:1: there is cpu"), ("cpu:aarch64-macos", "is for ARM64 macOS and this machine is x86-64"),
    ],
)  # fmt: skip
def test_what_is_not_here_is_refused(monkeypatch, device, reason):
    two = ProbeResult(True, [{"id": "cuda:0"}, {"id": "cuda:1"}])
    monkeypatch.setattr(all_targets()["cuda"], "probe", lambda: two)
    monkeypatch.setattr(all_targets()["metal"], "probe", lambda: ProbeResult(False, reason="it is no Mac"))
    with pytest.raises(MlcrtError, match=reason):
        require_device(device)
    require_device("cuda:1"), require_device("cuda"), require_device("cpu:0"), require_device("auto")


def test_the_engine_opens_the_device_that_was_named(monkeypatch):
    """Up to the runtime: which GPU a target is asked for."""
    from mlcrt.runtime.engine import LoadedModel

    class Asked(Exception):
        pass

    def runtime(index: int = 0):
        raise Asked(index)

    for where, index in (("", 0), ("0", 0), ("3", 3), ("sm_90", 0)):
        model = object.__new__(LoadedModel)
        model._where, model._entry = where, {"features": []}
        with pytest.raises(Asked, match=str(index)):
            model._load(None, type("target", (), {"runtime": staticmethod(runtime)}), None)


@pytest.mark.parametrize(("columns", "whole"), [(None, True), ("80", False)])
def test_tables_are_cut_only_where_they_have_to_be(monkeypatch, capsys, columns, whole):
    long = [{"id": "vulkan:0", "name": "A card", "memory_bytes": 16 << 30, "subgroup": "32-64", "driver": "Mesa 25",
             "api": "1.4.0", "float16": True, "missing": "shaderInt64, storageBuffer16BitAccess"}]  # fmt: skip
    for name, module in all_targets().items():
        found = ProbeResult(False, long) if name == "vulkan" else ProbeResult(False, reason="not here")
        monkeypatch.setattr(module, "probe", lambda found=found: found)
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(["devices"]) == 0
    shown = capsys.readouterr().out
    line = "vulkan:0: A card, 17.2 GB, subgroup 32-64, driver Mesa 25, api 1.4.0, float16 yes, missing shaderInt64"
    assert (line in shown) == whole
    assert "storageBuffer16BitAccess" in shown and "vulkan:0: A card" in shown
