"""`mlcrt info`: what it says of a folder, and that `runs_here` is what the engine then does."""

from __future__ import annotations

import json
import re

import pytest

from mlcrt import cli
from mlcrt.errors import MlcrtError
from mlcrt.info import describe
from mlcrt.runtime.engine import Engine
from mlcrt.version import __version__


def change(dist, slot: str, **entry) -> None:
    manifest = json.loads((dist / "mlcrt.json").read_text())
    manifest["targets"][slot].update(entry)
    (dist / "mlcrt.json").write_text(json.dumps(manifest))


def test_the_model(compiled):
    found = describe(compiled)
    weights = sum((compiled / f["file"]).stat().st_size for f in found["parameter_files"])
    assert found["parameter_bytes"] == weights == sum(f["bytes"] for f in found["parameter_files"])
    config = json.loads((compiled / "mlcrt.json").read_text())["config"]
    a = found["architecture"]
    assert (a["family"], a["layers"], a["vocab"]) == ("llama", config["layers"], config["vocab"])
    assert found["quantization"] == "q4f16_1" and set(found["schemes"]) == {"q4f16_1"}
    assert found["context"] == config["context"] and found["default_context"] <= 4096
    h, kv = config["hidden"], config["kv_heads"] * config["head_dim"]
    layer = 2 * h * h + 2 * h * kv + 3 * h * config["intermediate"] + 2 * h
    heads = 1 if config["tie_embeddings"] else 2
    assert found["parameters"] == config["layers"] * layer + heads * config["vocab"] * h + h
    for entry, slot in zip(found["libraries"], ("cpu", "cpu:x86-64-v2"), strict=True):
        assert entry["slot"] == slot and entry["intact"] and entry["runs_here"] and entry["reason"] is None
        assert entry["bytes"] == (compiled / entry["file"]).stat().st_size and entry["system"] == "x86-64 Linux"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"platform": "aarch64-macos"}, "it is for ARM64 macOS and this machine is x86-64 Linux"),
        ({"features": ["avx1024"]}, "it was compiled for .* and this machine lacks avx1024"),
        ({"sha256": "0" * 64}, "its file is not the one that was compiled; compile again"),
        ({"library": "cpu/gone.so"}, "its file is missing; compile again"),
        ({"tvm": "0.1"}, "it needs apache-tvm 0.1, installed is "),
        ({"abi": 0}, "it was made by another mlcrt"),
        ({"signature": "x"}, "it was made for other parameters"),
    ],
)
def test_why_a_library_does_not_run_here(dist, entry, reason):
    manifest = json.loads((dist / "mlcrt.json").read_text())
    del manifest["targets"]["cpu:x86-64-v2"]
    (dist / "mlcrt.json").write_text(json.dumps(manifest))
    change(dist, "cpu", **entry)
    (found,) = describe(dist)["libraries"]
    assert not found["runs_here"] and re.match(reason, found["reason"])
    with pytest.raises(MlcrtError):
        Engine(dist, "cpu")


def test_a_target_this_mlcrt_does_not_know(dist):
    manifest = json.loads((dist / "mlcrt.json").read_text())
    manifest["targets"]["abacus"] = manifest["targets"]["cpu"]
    (dist / "mlcrt.json").write_text(json.dumps(manifest))
    reasons = {e["slot"]: e["reason"] for e in describe(dist)["libraries"]}
    assert reasons["abacus"] == "this mlcrt does not know the target abacus; update it" and reasons["cpu"] is None


def test_the_command(packed, dist, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    change(dist, "cpu", platform="aarch64-macos")
    assert cli.main(["info", str(dist)]) == 0
    shown = capsys.readouterr().out
    for text in ("tiny", "llama: ", "q4f16_1", "cpu:x86-64-v2", "no: it is for ARM64 macOS", "yes", "context"):
        assert text in shown
    monkeypatch.delenv("COLUMNS")  # into a pipe: nothing is cut off however long a list of chips
    change(dist, "cpu", arch="+".join(f"gfx{1000 + i}" for i in range(12)))
    assert cli.main(["info", str(dist)]) == 0
    shown = capsys.readouterr().out
    for text in ("gfx1000 + ", "gfx1011", "ARM64 macOS", f"mlcrt {__version__}, TVM ", " kB ", "no: it is for"):
        assert text in shown
    assert cli.main(["info", str(packed), "--json"]) == 0
    assert [e["slot"] for e in json.loads(capsys.readouterr().out)["libraries"]] == ["cpu", "cpu:x86-64-v2"]
    assert cli.main(["info", str(dist.parent)]) == 1
    assert "is not a compiled model (no mlcrt.json)" in capsys.readouterr().err
