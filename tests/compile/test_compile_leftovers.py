"""What a process that was killed left behind goes with the next run; what belongs to somebody stays."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from small_llama import snapshot

from mlcrt.compile import check, compile_model
from mlcrt.dist import check_target, new_folder, new_library, open_dist, sha256
from mlcrt.errors import MlcrtError
from mlcrt.scratch import locked, put_in_place, scratch_folder, sweep


def killed(code: str, *arguments) -> None:
    """Run Python code in a process that ends by kill -9."""
    code = f"import os, sys\nfrom pathlib import Path\nP = Path(sys.argv[1])\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


KILL = "os.kill(os.getpid(), 9)"


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_library_that_was_being_written(private):
    folder = private()
    before = snapshot(folder)
    killed(f"""
from mlcrt.dist import new_library, open_dist
with new_library(open_dist(P), "cpu") as (beside, entry):
    (beside / "lib.so").write_bytes(b"half")
    (P / ".mlcrt.json.4242").write_text("half")
    {KILL}
""", folder)  # fmt: skip
    assert len([n for n in names(folder) if n.startswith(".")]) == 2
    with pytest.raises(RuntimeError), new_library(open_dist(folder), "cpu"):
        raise RuntimeError  # any later attempt, successful or not
    assert snapshot(folder) == before


@pytest.mark.parametrize("step", ["after the first rename", "after the second", "after the manifest"])
def test_killed_between_the_renames(private, step):
    """Library and manifest belong together again, whichever of both they are."""
    folder = private()
    old = sha256(folder / "cpu/lib.so")
    kill = {
        "after the first rename": f"scratch.os.replace = lambda a, b: (real(a, b), {KILL})",
        "after the second": f"scratch.os.replace = lambda a, b: (real(a, b), str(b).endswith('cpu') and {KILL})",
        "after the manifest": f"scratch.shutil.rmtree = lambda *a, **k: {KILL}",
    }[step]
    killed(f"""
from mlcrt import scratch
from mlcrt.dist import new_library, open_dist, sha256
real = os.replace
dist = open_dist(P)
with new_library(dist, "cpu") as (beside, entry):
    (beside / "lib.so").write_bytes(b"new")
    entry.update(dist.manifest["targets"]["cpu"], sha256=sha256(beside / "lib.so"))
    {kill}
""", folder)  # fmt: skip
    with pytest.raises(RuntimeError), new_library(open_dist(folder), "cpu:x86-64-v2"):
        raise RuntimeError
    entry = check_target(open_dist(folder), "cpu")
    assert (entry["sha256"] == old) == (step != "after the manifest")
    assert [n for n in names(folder) if n.startswith(".")] == []


def test_a_dist_folder_that_was_being_converted(tmp_path):
    killed(f"from mlcrt.dist import new_folder\nwith new_folder(P / 'a') as f:\n (f / 'x').touch()\n {KILL}", tmp_path)
    assert len(names(tmp_path)) == 1
    with new_folder(tmp_path / "b"):
        pass
    assert names(tmp_path) == ["b"]


def test_a_folder_that_had_been_moved_aside_comes_back(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    code = f"import mlcrt.scratch as s\nreal = os.replace\ns.os.replace = lambda a, b: (real(a, b), {KILL})\n" \
           "from mlcrt.dist import new_folder\nwith new_folder(P / 'a'): pass"  # fmt: skip
    killed(code, tmp_path)
    assert not (tmp_path / "a").exists()
    sweep(tmp_path)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def test_what_is_in_use_or_anybody_elses_stays(tmp_path):
    for name in (".a.backup", ".a.12345678", ".a.12345678.building.txt", "a.12345678.building", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.abcdefgh.building").touch()  # a file
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / ".l.abcdefgh.building").symlink_to(outside)
    mine = names(tmp_path)
    with scratch_folder(tmp_path, "a") as held:
        code = "from mlcrt.scratch import sweep; import sys; from pathlib import Path; sweep(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        assert held.is_dir()
    assert names(tmp_path) == mine


def test_two_writers_of_one_manifest(private):
    """Each takes the manifest as it is when it has finished, so neither loses the other's library."""
    folder = private()
    first, second = open_dist(folder), open_dist(folder)
    entry = first.manifest["targets"]["cpu"]
    with new_library(first, "cpu:one") as (one, filled), new_library(second, "cpu:two") as (two, other):
        for beside, into, slot in ((one, filled, "cpu-one"), (two, other, "cpu-two")):
            shutil.copy(folder / "cpu/lib.so", beside)
            into |= {**entry, "library": f"{slot}/lib.so"}
    assert list(open_dist(folder).manifest["targets"]) == ["cpu", "cpu:two", "cpu:one"]
    assert check_target(open_dist(folder), "cpu:one") and check_target(open_dist(folder), "cpu:two")


def test_converted_anew_while_compiling(private):
    folder = private()
    dist = open_dist(folder)
    dist.manifest["params"]["signature"] = "of before"
    before = snapshot(folder)
    with (
        pytest.raises(MlcrtError, match="was converted anew while cpu was compiled; compile it again"),
        new_library(dist, "cpu"),
    ):
        pass
    assert snapshot(folder) == before


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("mlcrt.scratch.fcntl", None)
    (tmp_path / ".a.abcdefgh.building").mkdir()
    sweep(tmp_path)
    with locked(tmp_path) as sure, scratch_folder(tmp_path, "b") as beside:
        assert not sure
        put_in_place(beside, tmp_path / "b")
    assert names(tmp_path) == [".a.abcdefgh.building", "b"]


def test_a_library_that_fails_its_check_does_not_stay(private, monkeypatch):
    folder = private("q4f32_1")
    before, seen = snapshot(folder.parent), []

    def wrong(path, target, tokens):
        seen.append((path, target, snapshot(folder).keys()))
        raise MlcrtError(f"{path}: the library for {target} computes wrong results")

    monkeypatch.setattr(check, "trace", wrong)
    with pytest.raises(MlcrtError) as caught:
        compile_model(folder, None, "cpu", check=True)
    assert str(caught.value) == f"{folder}: the library for cpu computes wrong results"
    (built, target, there) = seen[0]
    assert built.parent == folder and f"{built.name}/lib.so" in there, "it was another file that was checked"
    assert snapshot(folder.parent) == before
