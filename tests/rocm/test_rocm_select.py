"""Which library and which GPU are taken where there are several of both: the stand-in's gfx1100, gfx1151, gfx942."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcrt.dist import Dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.select import pick
from mlcrt.targets import parse_target, rocm
from mlcrt.targets.rocm.architecture import CHIPS, DEFAULT


def folder(*archs: str) -> Dist:
    """A dist with a ROCm library for each; the first has the slot 'rocm'."""
    targets = {}
    for arch in archs:
        found = rocm.attributes(arch)
        targets[f"rocm:{found.name}" if targets else "rocm"] = {
            "library": "rocm/lib.so", "arch": found.name, "features": list(found.features), "platform": "x86_64-linux",
        }  # fmt: skip
    return Dist(Path("dist/x"), {"targets": targets})


def test_the_library_that_has_code_for_the_gpu(hip):
    dist = folder("gfx1030", "gfx1100")
    assert pick(dist, "auto") == pick(dist, "rocm") == pick(dist, "rocm:0") == "rocm:gfx1100@cov5"
    assert pick(folder("gfx1030,gfx1100,gfx1200", "gfx1100"), "rocm") == "rocm:gfx1100@cov5"  # made for it alone
    both = folder("gfx1100", "gfx942")
    assert pick(both, "rocm:2") == "rocm:gfx942@cov5" and pick(both, "rocm:0") == "rocm"


def test_no_library_has_code_for_the_gpu(hip):
    with pytest.raises(MlcrtError) as caught:
        pick(folder("gfx1030,gfx1200"), "rocm")
    assert str(caught.value) == (
        "dist/x/rocm/lib.so was compiled for gfx1030+gfx1200@cov5 and this machine lacks a GPU of gfx1030 or gfx1200 "
        "(rocm:0 is gfx1100, rocm:1 is gfx1151, rocm:2 is gfx942); compile it here with "
        "mlcrt compile dist/x --target rocm"
    )
    with pytest.raises(MlcrtError, match=r"a GPU of gfx1100 \(rocm:1 is gfx1151\); .* --target rocm:1$"):
        pick(folder("gfx1100"), "rocm:1")
    with pytest.raises(MlcrtError, match="no library that this machine can run"):
        pick(folder("gfx1030"), "auto")


def test_the_gpu_that_a_library_has_code_for(hip):
    for features, index in ((["gfx1100"], 0), (["gfx942", "gfx1151"], 1), (["gfx1030"], 0), ([], 0)):
        assert rocm.named_runtime("", features).device.index == index
    assert rocm.named_runtime("2", ["gfx1100"]).device.index == 2
    with pytest.raises(MlcrtError, match="there is no AMD GPU 3"):
        rocm.named_runtime("3", [])


def test_compiling_for_a_gpu_by_its_number(hip):
    assert parse_target("rocm:1") == ("rocm", "1") and rocm.attributes("1").name == "gfx1151@cov5"
    assert rocm.attributes("2@cov6").name == "gfx942@cov6"
    with pytest.raises(UsageError, match=r"no AMD GPU 3 on this machine .*\(rocm:0 is gfx1100, rocm:1 is gfx1151"):
        rocm.attributes("3")


def test_without_an_architecture(hip, monkeypatch):
    """RDNA2 to RDNA4, unless that leaves out a GPU of this machine."""
    found = []
    monkeypatch.setattr("mlcrt.targets.rocm.device.gpus", lambda: found)
    for here, chips in (
        ([], DEFAULT), (["gfx1100", "gfx1201"], DEFAULT), (["gfx9999", ""], DEFAULT), (["gfx942"] * 8, ("gfx942",)),
        (["gfx1100", "gfx1036"], ("gfx1100", "gfx1036")),
    ):  # fmt: skip
        found[:] = here
        assert rocm.attributes("").chips == tuple(CHIPS[name] for name in chips)
    found.clear()
    with pytest.raises(UsageError, match="there are none"):
        rocm.attributes("0")
    assert pick(folder("gfx1030"), "rocm") == "rocm"  # the runtime says what is missing
