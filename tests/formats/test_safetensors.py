"""Safetensors folders, against files written by the safetensors package."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model
from mlcrt.formats.huggingface import open_tensors
from mlcrt.formats.safetensors_file import read_safetensors

CONFIG = {"model_type": "llama", "eos_token_id": 2}


def model(folder: Path, weights: dict[str, np.ndarray], **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(weights, folder / "model.safetensors")
    return folder


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


shapes = st.lists(st.integers(0, 7), min_size=0, max_size=3).map(tuple)


@given(st.dictionaries(st.text("abc.é", min_size=1, max_size=6), st.tuples(shapes, st.sampled_from("fe")), max_size=5))
@settings(max_examples=40, deadline=None)
def test_round_trip(tensors):
    draw = np.random.default_rng(1)
    weights = {name: draw.standard_normal(shape).astype(kind) for name, (shape, kind) in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, Path(folder) / "model.safetensors")
        source = open_tensors(Path(folder))
        assert sorted(source.names()) == sorted(weights)
        for name, expected in weights.items():
            info = source.info(name)
            assert (info.shape, info.dtype) == (expected.shape, {"f": "F32", "e": "F16"}[expected.dtype.char])
            got = source.load(name)
            assert got.dtype == np.float32 and got.shape == expected.shape
            np.testing.assert_array_equal(got, expected.astype(np.float32))
            assert source.blocks(name) is None


@given(st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=20, deadline=None)
def test_rows(start, stop):
    weight = np.random.default_rng(2).standard_normal((10, 3, 5)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        save_file({"w": weight, "v": weight[:, 0, 0].copy()}, Path(folder) / "model.safetensors")
        source = open_tensors(Path(folder))
        np.testing.assert_array_equal(source.load("w", slice(start, stop)), weight[start:stop].astype(np.float32))
        np.testing.assert_array_equal(source.load("v", slice(start, stop)), weight[start:stop, 0, 0].astype(np.float32))


def test_every_bfloat16(tmp_path):
    codes = np.arange(1 << 16, dtype=np.uint16)
    header = {"w": entry("BF16", [256, 256], 0, 1 << 17)}
    (tmp_path / "model.safetensors").write_bytes(raw_file(header, codes.tobytes()))
    got = open_tensors(tmp_path).load("w").reshape(-1)
    # the definition: sign, 8 exponent bits, 7 fraction bits
    sign, exponent, fraction = codes >> 15, (codes >> 7) & 0xFF, codes & 0x7F
    scale = np.where(exponent == 0, 2.0**-126, 2.0 ** (exponent.astype(float) - 127))
    value = (-1.0) ** sign * scale * (np.where(exponent == 0, 0, 1) + fraction / 128)
    finite = exponent != 255
    np.testing.assert_array_equal(got[finite], value[finite].astype(np.float32))
    assert np.isinf(got[~finite & (fraction == 0)]).all() and np.isnan(got[~finite & (fraction != 0)]).all()


def test_large_tensor_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("mlcrt.formats.tensors.CHUNK_BYTES", 1000)
    weight = np.random.default_rng(3).standard_normal((77, 13)).astype(np.float32)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(open_tensors(tmp_path).load("w", slice(5, 70)), weight[5:70])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "header length"),
        (b"\x02\0\0", "header length"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header length"),
        (struct.pack("<Q", 50) + b"{}", "inside its header"),
        (raw_file(b"{nonsense}"), "not valid JSON"),
        (raw_file(b"[" * 100_000), "not valid JSON"),
        (raw_file(b'{"\xff": 1}'), "not valid JSON"),
        (raw_file([1, 2]), "not a JSON object"),
        (raw_file(b'{"a": {}, "a": {}}'), "repeated key"),
        (raw_file({"w": {"dtype": "F32"}}), "malformed entry"),
        (raw_file({"w": entry("F32", [2], 0, 8)}), "bytes long"),  # truncated
        (raw_file({"w": entry("F32", [2], 0, 8)}, bytes(9)), "bytes long"),  # trailing bytes
        (raw_file({"w": entry("F32", [3], 0, 8)}, bytes(8)), "does not fill"),  # shape against bytes
        (raw_file({"w": entry("F32", [-2], 0, 8)}, bytes(8)), "impossible shape"),
        (raw_file({"w": entry("F32", [2.0], 0, 8)}, bytes(8)), "impossible shape"),
        (raw_file({"w": entry("F32", [1 << 40, 1 << 40], 0, 8)}, bytes(8)), "does not fill"),
        (raw_file({"w": entry("F32", [2], 8, 0)}, bytes(8)), "does not fill"),
        (raw_file({"w": entry("F31", [2], 0, 8)}, bytes(8)), "unknown dtype"),
        (raw_file({"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 0, 4)}, bytes(4)), "overlap"),
        (raw_file({"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 8, 12)}, bytes(12)), "hole"),
    ],
)
def test_malformed_file(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MlcrtError, match=says) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


VALID = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "s": np.float32([[7]])})


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(VALID)))
@settings(max_examples=400, deadline=None)
def test_fuzz(changes, length):
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data if length < 8 else data[:length] if length % 2 else data)
        try:
            source = open_tensors(Path(folder))
            for name in source.names():
                assert source.load(name).shape == source.info(name).shape
        except MlcrtError as error:
            assert "\n" not in str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]), inner, max_size=3),
                    max_leaves=12))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_fuzz_header(header):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(raw_file(header, bytes(8)))
        try:
            open_tensors(Path(folder)).names()
        except MlcrtError as error:
            assert "\n" not in str(error)


def test_integer_tensors_are_refused_when_loaded(tmp_path):
    save_file({"w": np.zeros((2, 2), np.int32), "v": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    source = open_tensors(tmp_path)
    assert source.info("w").dtype == "I32" and source.load("v").sum() == 2
    with pytest.raises(MlcrtError, match="'w' has dtype I32"):
        source.load("w")
    with pytest.raises(MlcrtError, match="no tensor 'u'"):
        source.load("u")


def test_file_that_shrinks_after_opening(tmp_path):
    save_file({"w": np.zeros((64, 64), np.float32)}, tmp_path / "model.safetensors")
    source = open_tensors(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(MlcrtError, match="ended inside tensor 'w'"):
        source.load("w")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MlcrtError, match="cannot be read"):
        source.load("w")


# --- folders ---


def sharded(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    weights = {name: np.full((2, 2), value, np.float32) for value, name in enumerate("abcd")}
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: weights[name] for name in "ab"}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in "cd"}, folder / "model-00002-of-00002.safetensors")
    places = {name: f"model-0000{1 + (name in 'cd')}-of-00002.safetensors" for name in "abcd"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return weights


def test_shards(tmp_path):
    weights = sharded(tmp_path / "m")
    source = open_model(tmp_path / "m")
    assert source.kind == "hf" and source.name == "m" and sorted(source.tensors.names()) == list("abcd")
    for name, value in weights.items():
        np.testing.assert_array_equal(source.tensors.load(name), value)
    assert source.tensors.info("c").file.name == "model-00002-of-00002.safetensors"


def edit_index(folder: Path, **places: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= places
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "lacks the shard model-00002-of-00002"),
        (lambda f: edit_index(f, e="model-00001-of-00002.safetensors"), "lacks tensor 'e'"),
        (lambda f: edit_index(f, a="../../secret"), "outside its folder"),
        (lambda f: edit_index(f, a=3), "no weight_map"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("{'a': 1}"), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "not UTF-8"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
    ],
)
def test_broken_folder(tmp_path, spoil, says):
    sharded(tmp_path)
    spoil(tmp_path)
    with pytest.raises(MlcrtError, match=says) as caught:
        open_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 1


def test_folder_without_usable_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MlcrtError, match=r"no \*.safetensors weights"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(MlcrtError, match="pytorch_model.bin.*convert it to safetensors"):
        open_model(tmp_path)


def test_files_without_index(tmp_path):
    model(tmp_path, {"a": np.ones(2, np.float32)})
    shutil.move(tmp_path / "model.safetensors", tmp_path / "part1.safetensors")
    save_file({"b": np.ones(3, np.float32)}, tmp_path / "part2.safetensors")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    assert open_model(tmp_path).tensors.names() == ["a", "b"]
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "part3.safetensors")
    with pytest.raises(MlcrtError, match="repeats tensor 'a'"):
        open_model(tmp_path)


def test_end_tokens_of_both_files(tmp_path):
    model(tmp_path, {"a": np.ones(2, np.float32)}, eos_token_id=7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7], "temperature": 0.7}))
    assert open_model(tmp_path).config["eos_token_id"] == [7, 9]
