"""`mlcrt package`: equal contents give equal bytes, and nothing is inside that is not needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import zstandard

from mlcrt.commands import package as verb
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.package import write_package
from mlcrt.unpack import unpacked


def members(package) -> dict[str, tarfile.TarInfo]:
    """The archive as Python's own reader sees it."""
    with open(package, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: m for m in archive.getmembers()}


def content(package, name) -> bytes:
    with open(package, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.extractfile(name).read()


def test_what_is_inside(dist, tmp_path):
    (dist / "notes.txt").write_text("mine")
    (dist / "cpu" / "stray").touch()
    file = write_package(dist, "cpu:x86-64-v2", tmp_path / "one.tar.zst")
    found = members(file)
    assert list(found) == [f"tiny-q4f16_1/{name}" for name in (
        "package.json", "cpu-x86-64-v2/lib.so", "mlcrt.json", "params-00001-of-00001.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    )]  # fmt: skip
    for info in found.values():
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
        assert info.isreg()
    manifest = json.loads(content(file, "tiny-q4f16_1/mlcrt.json"))
    assert list(manifest["targets"]) == ["cpu:x86-64-v2"] and "source" not in manifest
    index = json.loads(content(file, "tiny-q4f16_1/package.json"))
    for name, entry in index["files"].items():
        data = content(file, f"tiny-q4f16_1/{name}")
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert file.stat().st_mode & 0o777 == 0o644 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_library_unless_targets_are_named(packed, dist, tmp_path):
    assert {n for n in members(packed) if n.endswith(".so")} == {
        "tiny-q4f16_1/cpu/lib.so", "tiny-q4f16_1/cpu-x86-64-v2/lib.so",
    }  # fmt: skip
    assert write_package(dist, "cpu", tmp_path / "a.tar.zst").read_bytes() == packed.read_bytes()


def test_equal_contents_give_equal_bytes(dist, packed, tmp_path, monkeypatch):
    """Whatever process, hash seed, times, modes and order of the manifest; where the weights came from is left out."""
    manifest = json.loads((dist / "mlcrt.json").read_text())
    manifest["source"] = [["elsewhere.safetensors", 1, 2]]
    manifest["targets"] = dict(reversed(manifest["targets"].items()))
    (dist / "mlcrt.json").write_text(json.dumps(dict(reversed(manifest.items()))))
    for path in dist.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    command = [sys.executable, "-m", "mlcrt.cli", "package", str(dist), "-o", str(tmp_path / "again.tar.zst")]
    done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'again.tar.zst'}\n", done.stderr
    assert (tmp_path / "again.tar.zst").read_bytes() == packed.read_bytes()


def test_a_package_of_a_package(packed, tmp_path):
    """What was unpacked packs to the same bytes."""
    assert write_package(unpacked(packed), None, tmp_path / "again.tar.zst").read_bytes() == packed.read_bytes()


def test_tar_and_zstd_can_unpack_it(packed, compiled, tmp_path):
    """By hand it becomes a folder that works."""
    if shutil.which("tar") is None or shutil.which("zstd") is None:
        with open(packed, "rb") as file, tarfile.open(
            fileobj=zstandard.ZstdDecompressor().stream_reader(file), mode="r|"
        ) as archive:
            archive.extractall(tmp_path)
    else:
        subprocess.run(["tar", "--zstd", "-xf", str(packed), "-C", str(tmp_path)], check=True)
    from mlcrt.runtime.engine import Engine

    tokens = []
    for folder in (tmp_path / "tiny-q4f16_1", compiled):
        engine = Engine(folder, "cpu")
        engine.prefill([5, 6, 7])
        tokens.append(engine.greedy(5))
        engine.close()
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("targets", "error", "sentence"),
    [
        ("cpu:aarch64-linux", MlcrtError, r"has no library for cpu:aarch64-linux \(it has: cpu, .*\); add it"),
        ("cuda", MlcrtError, r"has no library for cuda \(it has: .*\); add it with mlcrt compile .* --target cuda"),
        ("gpu", UsageError, "unknown target 'gpu'"),
        ("cpu:pentium", UsageError, "unknown CPU architecture 'pentium'"),
        ("", UsageError, "no target in ''"),
        ("auto", UsageError, "name its targets instead of --target auto"),
    ],
)
def test_targets_that_are_not_there(dist, tmp_path, targets, error, sentence):
    with pytest.raises(error, match=sentence):
        write_package(dist, targets, tmp_path / "out" / "no.tar.zst")
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_not_the_compiled_one(dist, tmp_path):
    (dist / "cpu/lib.so").write_bytes(b"\x7fELF")
    with pytest.raises(MlcrtError, match="lib.so is not the file that was compiled .*compile again with"):
        write_package(dist, "cpu", tmp_path / "no.tar.zst")
    write_package(dist, "cpu:x86-64-v2", tmp_path / "yes.tar.zst")
    (dist / "cpu-x86-64-v2/lib.so").unlink()
    with pytest.raises(MlcrtError, match="lib.so is missing; compile again with mlcrt .* --target cpu:x86-64-v2"):
        write_package(dist, "cpu:x86-64-v2", tmp_path / "no.tar.zst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dist", "yes.tar.zst"]


def test_a_file_that_changes_while_it_is_packed(dist, tmp_path, monkeypatch):
    import mlcrt.package

    (params,) = dist.glob("params-*")
    real = mlcrt.package.sha256
    monkeypatch.setattr(mlcrt.package, "sha256", lambda path: "0" * 64 if path == params else real(path))
    with pytest.raises(MlcrtError, match="params-.* changed while it was packed; try again"):
        write_package(dist, None, tmp_path / "no.tar.zst")
    assert [p.name for p in tmp_path.iterdir()] == ["dist"]


def test_nothing_compiled(dist, tmp_path):
    manifest = json.loads((dist / "mlcrt.json").read_text())
    (dist / "mlcrt.json").write_text(json.dumps({**manifest, "targets": {}}))
    with pytest.raises(MlcrtError, match="has no library to package; make one with mlcrt compile"):
        write_package(dist, None, tmp_path / "no.tar.zst")


def test_an_output_that_cannot_be_written(dist, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MlcrtError, match="no.tar.zst cannot be written: "):
        write_package(dist, None, tmp_path / "file" / "no.tar.zst")


def test_the_default_name_and_an_older_package(dist, tmp_path, monkeypatch, packed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-q4f16_1.tar.zst").write_bytes(b"older")
    assert str(write_package(dist)) == "tiny-q4f16_1.tar.zst"
    assert (tmp_path / "tiny-q4f16_1.tar.zst").read_bytes() == packed.read_bytes()
    assert "tar.zst" in verb.EXAMPLES


def test_a_folder_with_an_odd_name(dist, tmp_path):
    """Inside it is called model; the name of the folder is the user's."""
    odd = dist.rename(dist.parent / "mein Modell ä")
    file = write_package(odd, "cpu", tmp_path / "odd.tar.zst")
    assert {name.split("/")[0] for name in members(file)} == {"model"}
    assert unpacked(file).name == "model"
