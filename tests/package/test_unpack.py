"""Packages are verified when they are unpacked, kept, and refused in one sentence when anything about them is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcrt.chat import resolve_model
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.package import write_package
from mlcrt.unpack import is_package, unpacked

LIBRARY = b"\x7fELF library"


def left(cache: Path) -> list[str]:
    """Everything in the cache."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*")) if cache.exists() else []


def test_unpacked_once(packed, compiled, cache, monkeypatch):
    said = []
    folder = unpacked(packed, said.append)
    assert said == [f"unpacking {packed}"] and folder.name == "tiny-q4f16_1"
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("mlcrt.json", "package.json"):
            assert path.read_bytes() == (compiled / path.relative_to(folder)).read_bytes()
    assert not [n for n in left(cache) if n.startswith(".")]
    monkeypatch.setattr("mlcrt.unpack._unpack", None)  # nothing is read again
    assert unpacked(packed, said.append) == folder and len(said) == 1


def test_a_copy_shares_the_folder(packed, tmp_path):
    copy = shutil.copy(packed, tmp_path / "copy.tar.zst")
    assert unpacked(packed) == unpacked(Path(copy))


def test_another_file_under_the_same_name(packed, dist, tmp_path):
    file = Path(shutil.copy(packed, tmp_path / "model.tar.zst"))
    first = unpacked(file)
    write_package(dist, "cpu:x86-64-v2", file)
    assert unpacked(file) != first and not (unpacked(file) / "cpu").exists()


def test_what_was_touched_in_the_cache_is_unpacked_again(packed):
    folder = unpacked(packed)
    (library,) = folder.glob("cpu/*")
    good = library.read_bytes()
    library.write_bytes(b"x" * len(good))
    os.utime(library, (1, 1))
    assert unpacked(packed) == folder and library.read_bytes() == good
    library.unlink()
    assert unpacked(packed) == folder and library.read_bytes() == good


# --- archives that are damaged, or made to do harm ---


def tar(files: dict[str, bytes | tarfile.TarInfo], end: bytes = b"", **settings) -> bytes:
    """A zstd-compressed tar archive of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=settings.pop("format", tarfile.GNU_FORMAT)) as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=False)
    frame = compressor.compressobj()
    return signed(frame.compress(out.getvalue() + end) + frame.flush())


def signed(data: bytes) -> bytes:
    """With the skippable frame that holds the SHA-256 of what is before it."""
    return data + bytes.fromhex("502a4d18 20000000") + hashlib.sha256(data).digest()


@pytest.fixture
def contents(compiled) -> dict[str, bytes]:
    """A right package's files, small ones."""
    manifest = json.loads((compiled / "mlcrt.json").read_text())
    manifest["params"]["files"], manifest["targets"] = [], {"cpu": {"library": "cpu/lib.so"}}
    return {"cpu/lib.so": LIBRARY, "mlcrt.json": json.dumps(manifest).encode()}


def archive(contents: dict[str, bytes], index: dict | None = None, top: str = "m", **settings) -> bytes:
    files = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
    whole = {"format": "mlcrt package", "version": 1, "files": files, **(index or {})}
    return tar({f"{top}/package.json": json.dumps(whole).encode(), **{f"{top}/{n}": d for n, d in contents.items()}},
               **settings)  # fmt: skip


def refused(data: bytes, cache: Path, folder: Path, sentence: str) -> None:
    file = folder / "bad.tar.zst"
    file.write_bytes(data)
    with pytest.raises(MlcrtError, match=sentence) as caught:
        unpacked(file)
    assert "\n" not in str(caught.value)
    assert left(cache) == [], "something of it was kept"
    assert not (folder.parent / "evil").exists() and not (folder / "evil").exists()


def test_the_archives_of_these_tests_are_right(contents, tmp_path):
    file = tmp_path / "good.tar.zst"
    file.write_bytes(archive(contents))
    assert (unpacked(file) / "cpu/lib.so").read_bytes() == LIBRARY


EVIL = (
    "../evil", "/evil", "cpu/../../evil", "./evil", "a//evil", "a/b/evil", "..", "C:evil", "a\\evil", ".evil", "e\nvil",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_paths_that_lead_outside(contents, cache, tmp_path, name):
    data = dict(sorted({**contents, name: b"evil"}.items()))
    refused(archive(data), cache, tmp_path, r"is not a whole mlcrt package \(it has a file named ")


def test_names_that_differ_from_the_index(contents, cache, tmp_path):
    listed = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
    index = {"format": "mlcrt package", "version": 1, "files": listed}
    files = {"m/package.json": json.dumps(index).encode(), "m/../../evil": LIBRARY, "m/mlcrt.json": b""}
    refused(tar(files), cache, tmp_path, "cpu/lib.so is not where package.json says")
    files = {"m/package.json": json.dumps(index).encode(), "other/cpu/lib.so": LIBRARY}
    refused(tar(files), cache, tmp_path, "cpu/lib.so is not where package.json says")


@pytest.mark.parametrize("top", ["..", ".", "", "/", "a b", ".hidden"])
def test_odd_folders(contents, cache, tmp_path, top):
    refused(archive(contents, top=top), cache, tmp_path, "is not a whole mlcrt package")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(contents, cache, tmp_path, kind):
    listed = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
    index = {"format": "mlcrt package", "version": 1, "files": listed}
    link = tarfile.TarInfo("m/cpu/lib.so")
    link.type, link.linkname = kind, "/etc/passwd"
    files = {"m/package.json": json.dumps(index).encode(), "link": link}
    refused(tar(files), cache, tmp_path, "in it is no regular file")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"format": "another"}, "package.json cannot be read"),
        ({"version": 2}, "this package has version 2, and this mlcrt reads 1; update mlcrt"),
        ({"files": {}}, "package.json cannot be read"),
        ({"files": []}, "package.json cannot be read"),
        ({"files": {"a": {"bytes": -1, "sha256": "0" * 64}}}, "package.json cannot be read"),
        ({"files": {"a": {"bytes": True, "sha256": "0" * 64}}}, "package.json cannot be read"),
        ({"files": {"a": {"bytes": 10**18, "sha256": "0" * 64}}}, "takes 1000000000.0 GB unpacked, and .* GB are free"),
        ({"files": {"b": {"bytes": 0, "sha256": "0" * 64}, "a": {"bytes": 0, "sha256": "0" * 64}}}, "cannot be read"),
    ],
)
def test_wrong_indexes(contents, cache, tmp_path, index, sentence):
    refused(archive(contents, index), cache, tmp_path, sentence)


def test_a_hash_that_differs(contents, cache, tmp_path):
    files = {n: {"bytes": len(d), "sha256": "0" * 64} for n, d in contents.items()}
    refused(archive(contents, {"files": files}), cache, tmp_path, "the hash of cpu/lib.so differs")


def test_more_than_is_listed(contents, cache, tmp_path):
    listed = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
    more = {**contents, "zzz": b"more"}
    refused(archive(more, {"files": listed}), cache, tmp_path, "there is more after its files")
    refused(archive(contents, end=b"hidden"), cache, tmp_path, "there is more after its files")
    refused(archive(contents, end=bytes(1 << 20)), cache, tmp_path, "there is more after its files")
    good = archive(contents)
    refused(good + b"x", cache, tmp_path, "there is more after its end")
    refused(good + good, cache, tmp_path, "there is more after its end")
    refused(signed(good), cache, tmp_path, "there is more after its end")
    refused(signed(good[:-40] + good[:-40]), cache, tmp_path, "there is more after its end")
    refused(good[:-1] + bytes([good[-1] ^ 1]), cache, tmp_path, "it does not end with its hash")


@pytest.mark.parametrize("name", ["../../../evil.so", "/etc/hostname", "cpu/../cpu/lib.so"])
@pytest.mark.parametrize("where", ["targets", "params"])
def test_a_manifest_that_names_files_outside(contents, cache, tmp_path, where, name):
    manifest = json.loads(contents["mlcrt.json"])
    if where == "targets":
        manifest["targets"]["cpu"]["library"] = name
    else:
        manifest["params"]["files"] = [name]
    data = {**contents, "mlcrt.json": json.dumps(manifest).encode()}
    refused(archive(data), cache, tmp_path, "its mlcrt.json (names .*, which is not in it|is not one, or files)")


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"not a package", b"PK\x03\x04", bytes(100)])
def test_other_files(cache, tmp_path, data):
    refused(data, cache, tmp_path, "is not a whole mlcrt package")


def test_other_archives(contents, cache, tmp_path):
    refused(tar({"a": b"b"}), cache, tmp_path, "does not begin with package.json")
    foreign = zstandard.ZstdCompressor(level=3).compress(b"x" * 100)
    refused(signed(foreign), cache, tmp_path, "it does not begin as one")
    refused(archive(contents, format=tarfile.PAX_FORMAT), cache, tmp_path, "no regular file")


@given(cut=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_off_anywhere(packed, cache, tmp_path, cut):
    data = packed.read_bytes()
    refused(data[: int(cut * len(data))], cache, tmp_path, "is not a whole mlcrt package")


@given(place=st.floats(0, 0.99999), bit=st.integers(0, 7))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bit_flipped(packed, cache, tmp_path, place, bit):
    data = bytearray(packed.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    refused(bytes(data), cache, tmp_path, "bad.tar.zst ")


def test_every_bit_of_a_small_one(contents, cache, tmp_path):
    good = archive(contents)
    for place in range(0, len(good), 3):
        data = bytearray(good)
        data[place] ^= 1 << (place % 8)
        refused(bytes(data), cache, tmp_path, "bad.tar.zst ")


def test_a_disk_that_is_full(packed, cache, monkeypatch):
    import errno

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlcrt.unpack.os.fsync", full)
    with pytest.raises(MlcrtError, match="cannot be unpacked to .*: No space left on device; make room"):
        unpacked(packed)
    assert left(cache) == []


def test_a_cache_that_cannot_be_made(packed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLCRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MlcrtError, match="cannot be unpacked to .*set MLCRT_CACHE to another folder"):
        unpacked(packed)


def test_killed_while_unpacking(packed, cache):
    """What it leaves is removed by the next, and hinders nobody."""
    code = "import os, sys, mlcrt.unpack as u\nfrom pathlib import Path\n" \
           "u._Archive.finish = lambda self: os.kill(os.getpid(), 9)\nu.unpacked(Path(sys.argv[1]))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code, str(packed)]).returncode == -9
    assert [n for n in os.listdir(cache) if n.startswith(".new.")]
    unpacked(packed)
    assert not [n for n in os.listdir(cache) if n.startswith(".")]


# --- the verbs that take one ---


def test_resolving_a_package(packed, dist, tmp_path):
    folder = resolve_model(packed, None, "auto", tmp_path, lambda line: None)
    assert folder == unpacked(packed) == resolve_model(str(packed), "q4f16_1", "cpu", tmp_path)
    with pytest.raises(UsageError, match="is quantised as q4f16_1; package the model as q0f32"):
        resolve_model(packed, "q0f32", "auto", tmp_path)
    with pytest.raises(MlcrtError, match=r"no library that this machine can run as cpu:x86-64 \(it has: cpu, "):
        resolve_model(packed, None, "cpu:x86-64", tmp_path)  # its own level and v2 are there
    assert not is_package(tmp_path / "gone.tar.zst") and not is_package(dist)
    other = tmp_path / "model.bin"  # whatever somebody called it
    shutil.copyfile(packed, other)
    assert is_package(other) and not is_package(dist / "mlcrt.json")


def test_a_package_for_another_machine(dist, tmp_path):
    manifest = json.loads((dist / "mlcrt.json").read_text())
    manifest["targets"]["cpu"]["platform"] = "aarch64-macos"
    (dist / "mlcrt.json").write_text(json.dumps(manifest))
    file = write_package(dist, f"cpu:{manifest['targets']['cpu']['arch']}", tmp_path / "mac.tar.zst")
    with pytest.raises(MlcrtError, match=r"that this machine can run \(it has: cpu for ARM64 macOS\); package"):
        resolve_model(file, None, "auto", tmp_path)


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mlcrt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_command_line(packed, compiled, tmp_path):
    chat = ("--prompt", "Hello", "--max-tokens", "6", "--temperature", "0")
    answers = [run("chat", model, *chat) for model in (compiled, packed, packed)]
    assert [a.returncode for a in answers] == [0, 0, 0], answers[1].stderr
    assert len({a.stdout for a in answers}) == 1 and answers[0].stdout.strip()
    assert "unpacking" in answers[1].stderr and "unpacking" not in answers[2].stderr
    (tmp_path / "text").write_text("A short text is enough here. " * 3)
    scored = [run("eval", m, "--perplexity", tmp_path / "text", "--window", 32, "--json") for m in (compiled, packed)]
    assert len({json.loads(done.stdout)["perplexity"] for done in scored}) == 1
    bad = tmp_path / "bad.tar.zst"
    bad.write_bytes(packed.read_bytes()[:-5])
    for verb in (("chat", bad, *chat), ("info", bad)):
        done = run(*verb)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == f"mlcrt: {bad} is not a whole mlcrt package (it is cut off); " \
            "fetch or package it again"  # fmt: skip
    done = run("compile", packed, "--target", "cpu")
    assert done.returncode == 2 and "is a package, which is only run; compile the folder or the model" in done.stderr
