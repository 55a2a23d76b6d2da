"""Ctrl-C and a full disk at every stage: no half-written folder, nothing hidden left, what was there stays usable."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_llama import snapshot

import mlcrt.dist
from mlcrt.compile import compile_model
from mlcrt.dist import check_target, open_dist, put_in_place
from mlcrt.errors import MlcrtError
from mlcrt.quant import convert_model
from mlcrt.quant.params import ParamsWriter

STAGES = ["converting small", "100%", "fuse-dequantize-matmul", "lower-operators", "plan-memory", "lower-to-vm"]


def stop_at(stage: str, error: BaseException = KeyboardInterrupt()):  # noqa: B008
    """A report callback that raises at a stage, as a signal handler would."""

    def report(line: str) -> None:
        if stage in line:
            raise error

    return report


def usable(folder: Path) -> None:
    check_target(open_dist(folder), "cpu")


@pytest.mark.parametrize("stage", STAGES[:2])
def test_interrupt_while_converting(model, tmp_path, stage):
    with pytest.raises(KeyboardInterrupt):
        compile_model(model, "q4f16_1", "cpu", dist_root=tmp_path / "dist", report=stop_at(stage))
    assert snapshot(tmp_path) in ({}, {"dist": None})


@pytest.mark.parametrize("stage", STAGES[:2])
def test_interrupt_while_converting_over_a_good_folder(model, private, stage):
    folder = private()
    manifest = (folder / "mlcrt.json").read_text()
    (folder / "mlcrt.json").write_text(manifest.replace("model.safetensors", "another.safetensors"))
    before = snapshot(folder.parent)
    with pytest.raises(KeyboardInterrupt):
        compile_model(model, "q0f32", "cpu", out=folder, report=stop_at(stage))
    assert snapshot(folder.parent) == before
    usable(folder)


@pytest.mark.parametrize("stage", STAGES[2:])
def test_interrupt_while_compiling(private, stage):
    folder = private()
    before = snapshot(folder.parent)
    with pytest.raises(KeyboardInterrupt):
        compile_model(folder, None, "cpu", report=stop_at(stage))
    assert snapshot(folder.parent) == before
    usable(folder)


@pytest.mark.parametrize("first", [True, False], ids=["new", "over a good one"])
@pytest.mark.parametrize("call", range(1, 4))
def test_interrupt_between_any_two_renames(tmp_path, monkeypatch, first, call):
    """put_in_place restores what was there, wherever it is stopped: before or after any of its steps."""
    place, beside = tmp_path / "place", tmp_path / ".beside"
    for after in (True, False):
        for folder in (place, beside):
            shutil.rmtree(folder, ignore_errors=True)
        beside.mkdir()
        (beside / "new").touch()
        if not first:
            place.mkdir()
            (place / "old").touch()
        steps, real = [], os.replace

        def step(*paths, after=after, steps=steps, real=real):
            steps.append(paths)
            if len(steps) == call and not after:
                raise KeyboardInterrupt
            if paths:
                real(*paths)
            if len(steps) == call and after:
                raise KeyboardInterrupt

        monkeypatch.setattr(mlcrt.dist.os, "replace", step)
        count = 2 if first else 3  # renames and the commit
        if call <= count:
            with pytest.raises(KeyboardInterrupt):
                put_in_place(beside, place, step)
            assert [p.name for p in place.iterdir()] == ["old"] if not first else not place.exists()
        else:
            put_in_place(beside, place, step)
            assert [p.name for p in place.iterdir()] == ["new"]
        monkeypatch.undo()
        assert not (tmp_path / ".beside.old").exists()


COMMAND = [sys.executable, "-m", "mlcrt.cli", "compile"]


def interrupted(command: list[str], trigger: str, delay: float = 0) -> int:
    """Run it, send SIGINT when a line of its stderr contains `trigger`; the exit status."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in child.stderr:
            if trigger in line:
                time.sleep(delay)
                child.send_signal(signal.SIGINT)
                break
        child.communicate(timeout=120)
        return child.returncode
    finally:
        child.kill()


@pytest.mark.parametrize(
    ("trigger", "delay"), [("converting", 0), ("fuse-gate", 0.02), ("lower-operators", 0.05), ("generate code", 0.4)]
)
def test_real_interrupts(model, tmp_path, trigger, delay):
    folder = tmp_path / "dist" / "small-q4f16_1"
    code = interrupted([*COMMAND, str(model), "--quantization", "q4f16_1", "--target", "cpu", "--output", str(folder)],
                       trigger, delay)  # fmt: skip
    assert code == 130
    if trigger == "converting":
        assert snapshot(tmp_path) in ({}, {"dist": None}) or open_dist(folder).manifest["targets"] == {}
    else:
        assert open_dist(folder).manifest["targets"] == {}, "weights converted, nothing compiled"
    assert [p.name for p in tmp_path.rglob(".*")] == []


# --- a full disk ---


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("over", [False, True], ids=["new", "over a good one"])
@pytest.mark.parametrize("method", ["write", "close", "_create"])
def test_full_disk_while_converting(model, private, tmp_path, monkeypatch, method, over):
    out = private() if over else tmp_path / "dist" / "out"
    before = snapshot(tmp_path)
    monkeypatch.setattr(ParamsWriter, method, no_space)
    with pytest.raises(MlcrtError, match="cannot be written: No space left on device; nothing was changed"):
        convert_model(model, "q8f16_1", out)
    monkeypatch.undo()
    assert snapshot(tmp_path) == (before if over else {"dist": None})
    if over:
        usable(out)


def test_full_disk_for_the_manifest(private, monkeypatch):
    """The library is there already when the manifest cannot be written: the old one has to come back."""
    folder = private()
    before = snapshot(folder.parent)
    monkeypatch.setattr(mlcrt.dist, "write_json", no_space)
    with pytest.raises(MlcrtError, match="cpu cannot be written: No space left on device; nothing was changed"):
        compile_model(folder, None, "cpu")
    assert snapshot(folder.parent) == before
    usable(folder)


def limited(arguments: list[str], size: int) -> subprocess.CompletedProcess:
    """Run `mlcrt compile` where no file may grow beyond `size` bytes: writes fail as on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, preexec_fn=limit, timeout=200)


@pytest.mark.parametrize("size", [100, 20_000])
def test_files_that_cannot_grow_while_converting(model, tmp_path, size):
    done = limited([str(model), "--quantization", "q4f16_1", "--target", "cpu", "--output", str(tmp_path / "o")], size)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and done.stdout == ""
    assert last.startswith("mlcrt: ") and "File too large" in last and "Traceback" not in done.stderr
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("size", [5_000, 60_000])
def test_files_that_cannot_grow_while_compiling(private, size):
    """Objects and the library are written by others: TVM and the linker."""
    folder = private()
    before = snapshot(folder.parent)
    assert (folder / "cpu" / "lib.so").stat().st_size > size
    done = limited([str(folder), "--target", "cpu"], size)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("mlcrt: ") and "internal error" not in last, done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(folder.parent) == before
    usable(folder)


def test_a_linker_that_fails(private, monkeypatch):
    folder = private()
    before = snapshot(folder.parent)
    monkeypatch.setattr("mlcrt.targets.cpu.link._NEEDED", ("no/such/folder/libm.so.6",))
    with pytest.raises(MlcrtError, match="linking failed .*: check that the ziglang package is installed whole"):
        compile_model(folder, None, "cpu")
    assert snapshot(folder.parent) == before
    usable(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB; skips where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (that takes root): the limits on file sizes stand in for it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk(model, compiled, small_disk):
    with pytest.raises(MlcrtError, match="cannot be written: No space left on device; nothing was changed"):
        convert_model(model, "q0f32", small_disk / "out")
    assert list(small_disk.iterdir()) == []
    folder = shutil.copytree(compiled("q4f16_1"), small_disk / "good", ignore=shutil.ignore_patterns("cpu"))
    before = snapshot(small_disk)
    with pytest.raises(MlcrtError, match="cannot be written|linking failed"):
        compile_model(folder, None, "cpu")
    assert snapshot(small_disk) == before


def test_a_folder_that_may_not_be_written(private, monkeypatch):
    folder = private()
    if os.geteuid() == 0:  # root may write everywhere: the refusal has to be played

        def refuse(*_args, **_kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("mlcrt.compile.build.tempfile.mkdtemp", refuse)
    folder.chmod(0o555)
    try:
        with pytest.raises(MlcrtError, match="cannot be written: Permission denied"):
            compile_model(folder, None, "cpu")
    finally:
        folder.chmod(0o755)
