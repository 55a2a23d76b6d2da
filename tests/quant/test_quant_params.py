"""The parameter files, read by the safetensors package; alignment, sharding, damage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mlcrt.errors import MlcrtError
from mlcrt.quant import params
from mlcrt.quant.params import ParamsWriter, read_params

METADATA = {"format": "mlcrt", "model": "m"}


def some_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "odd": draw.standard_normal((3, 5)).astype(np.float16),
        "embed": draw.integers(0, 2**32, (40, 16), dtype=np.uint32),
        "norm": draw.standard_normal(32).astype(np.float32),
        "ü.scales": draw.standard_normal((7, 3, 2)).astype(np.float16),
        "one": np.ones(1, np.float32),
    }


def write(folder: Path, arrays: dict[str, np.ndarray], pieces: int = 1) -> list[str]:
    specs = [(name, a.shape, str(a.dtype)) for name, a in arrays.items()]
    writer = ParamsWriter(folder, specs, METADATA)
    for name, array in reversed(arrays.items()):  # any order
        for part in np.array_split(array, min(pieces, len(array))):
            writer.write(name, part)
    return writer.close()


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_safetensors_package_reads_them(tmp_path, pieces):
    arrays = some_arrays()
    assert write(tmp_path, arrays, pieces) == ["params-00001-of-00001.safetensors"]
    same(load_file(tmp_path / "params-00001-of-00001.safetensors"), arrays)
    same(read_params(tmp_path, ["params-00001-of-00001.safetensors"]), arrays)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12),
    kinds=st.lists(st.sampled_from(["uint32", "float16", "float32"]), min_size=12, max_size=12),
    limit=st.sampled_from([1, 500, 5000, 1 << 30]),
)
@settings(max_examples=40, deadline=None)
def test_shards_and_alignment(shapes, kinds, limit):
    draw = np.random.default_rng(1)
    arrays = {
        f"t{i}": draw.integers(0, 1000, shape).astype(kind)
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "MAX_SHARD_BYTES", limit)
        files = write(Path(folder), arrays)
        assert files == [f"params-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        read = {}
        for file in files:
            path = Path(folder, file)
            one = load_file(path)
            assert not read.keys() & one.keys()
            read |= one
            data = sum(a.nbytes for a in one.values())
            assert len(one) == 1 or data <= limit
            length = int.from_bytes(path.read_bytes()[:8], "little")
            header = json.loads(path.read_bytes()[8 : 8 + length])
            assert header.pop("__metadata__") == METADATA
            assert path.stat().st_size == 8 + length + data  # no holes
            for name, entry in header.items():
                if arrays[name].nbytes % 64 == 0:
                    assert (8 + length + entry["data_offsets"][0]) % 64 == 0, "cannot be used without a copy"
        same(read, arrays)
        mapped = read_params(Path(folder), files)
        same(mapped, arrays)
        del mapped  # before the files go
    assert len(files) == 1 or limit < 1 << 30


def test_mapped_tensors_never_change_the_file(tmp_path):
    arrays = some_arrays()
    (file,) = write(tmp_path, arrays)
    read_params(tmp_path, [file])["norm"][...] = 7
    same(load_file(tmp_path / file), arrays)


def test_a_writer_that_is_misused(tmp_path):
    writer = ParamsWriter(tmp_path, [("a", (4, 8), "float32")], METADATA)
    writer.write("a", np.zeros((3, 8), np.float32))
    with pytest.raises(ValueError, match="a: 32 bytes were never written"):
        writer.close()
    with pytest.raises(ValueError, match="a: more data than declared"):
        writer.write("a", np.zeros((2, 8), np.float32))
    writer.abort()


def test_truncated_anywhere(tmp_path):
    """Every length short of the whole is noticed when the files are mapped."""
    (file,) = write(tmp_path, some_arrays())
    whole = (tmp_path / file).read_bytes()
    for length in [*range(0, 20), *range(20, len(whole), 97), len(whole) - 1]:
        (tmp_path / file).write_bytes(whole[:length])
        with pytest.raises(MlcrtError) as error:
            read_params(tmp_path, [file])
        assert str(tmp_path / file) in str(error.value) and "mlcrt convert" in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(MlcrtError, match="params-1.safetensors cannot be read .*mlcrt convert"):
        read_params(tmp_path, ["params-1.safetensors"])


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"5", b"{", b'{"a": 5}', b'{"a": {}}', b"\xff\xfe", b'{"a": null}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": ["0", 16]}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}',
    ],
)  # fmt: skip
def test_damaged_headers(tmp_path, header):
    (tmp_path / "p.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(MlcrtError, match="p.safetensors is truncated or damaged; convert"):
        read_params(tmp_path, ["p.safetensors"])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_never_crash(data):
    with tempfile.TemporaryDirectory() as folder:
        (file,) = write(Path(folder), some_arrays())
        raw = bytearray(Path(folder, file).read_bytes())
        length = int.from_bytes(raw[:8], "little")
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
        Path(folder, file).write_bytes(raw)
        try:
            for array in read_params(Path(folder), [file]).values():
                array.sum()
        except MlcrtError as error:
            assert file in str(error)  # noqa: PT017
