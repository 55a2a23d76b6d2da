"""The GGUF container, against files written by gguf.GGUFWriter and values decoded by gguf.quants."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model
from mlcrt.formats.gguf_file import read_gguf
from mlcrt.formats.gguf_tokenizer import tokenizer_files

QUANTISERS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
NO_DECODER = {"Q8_1", "Q8_K", "Q1_0"}  # activation formats, and one that the package only names
DECODED = [kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1 and kind.name not in NO_DECODER]


def test_metadata_round_trip(write_gguf):
    values = {
        "general.name": "näme\n", "a.int": 7, "a.float": 0.5, "a.bool": True, "a.list": [1, -2, 3],
        "a.texts": ["", "a b", "🦙"], "a.nested": [[1, 2], [3]], "a.floats": [0.25, -1.5],
    }  # fmt: skip
    file = read_gguf(write_gguf("llama", values, {"t": np.ones((2, 3), np.float32)}))
    assert file.metadata["general.architecture"] == "llama"
    for key, value in values.items():
        got = file.metadata[key if key.startswith("general") else f"llama.{key}"]
        if key == "a.nested":
            got = [list(inner) for inner in got]
        assert (got.tolist() if isinstance(got, np.ndarray) else got) == value
    assert file.tensors["t"].shape == (2, 3)
    with pytest.raises(MlcrtError, match="'general.name' is not a usable int"):
        file.get("general.name", int)
    with pytest.raises(MlcrtError, match="lacks the metadata 'x'"):
        file.require("x", int)


def test_agrees_with_the_gguf_package_on_a_real_file(smollm2):
    file, reader = read_gguf(smollm2), gguf.GGUFReader(smollm2)
    assert {name for name in reader.fields if not name.startswith("GGUF.")} == set(file.metadata)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "llama.attention.layer_norm_rms_epsilon"):
        assert reader.fields[key].contents() == file.metadata[key]
    assert len(reader.tensors) == len(file.tensors) == 272
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert (ours.offset, ours.dtype) == (tensor.data_offset, tensor.tensor_type.name)
        assert ours.shape == tuple(int(n) for n in tensor.shape[::-1])


def embed(write_gguf, data: np.ndarray, kind: str, columns: int):
    """A model whose only quantised tensor is the embedding."""
    metadata = {"block_count": 1, "context_length": 8, "embedding_length": columns, "feed_forward_length": 4}
    metadata |= {"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    return open_model(write_gguf("llama", metadata, {"token_embd.weight": (data, kind)})).tensors


@pytest.mark.parametrize("kind", QUANTISERS)
def test_quantised_values(write_gguf, kind):
    values = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    raw = gguf.quantize(values, Type[kind])
    tensors = embed(write_gguf, raw, kind, 512)
    got = tensors.load("model.embed_tokens.weight")
    np.testing.assert_array_equal(got, gguf.dequantize(raw, Type[kind]))
    assert np.abs(got - values).mean() < 0.7  # even ternary keeps this much
    np.testing.assert_array_equal(tensors.blocks("model.embed_tokens.weight"), raw)
    np.testing.assert_array_equal(tensors.blocks("model.embed_tokens.weight", slice(1, 4)), raw[1:4])


@pytest.mark.parametrize("kind", DECODED)
def test_random_blocks_of_every_type(write_gguf, kind, monkeypatch):
    """K- and I-quants have no quantiser in Python, but any bytes are blocks."""
    block, size = GGML_QUANT_SIZES[Type[kind]]
    raw = np.random.default_rng(1).integers(0, 256, (7, 1024 // block * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, Type[kind])
    monkeypatch.setattr("mlcrt.formats.tensors.CHUNK_BYTES", 3 * 4096)  # 3 rows a chunk
    monkeypatch.setattr("mlcrt.formats.tensors.GROUP", 640)  # not a divisor of a row
    tensors = embed(write_gguf, raw, kind, 1024)
    np.testing.assert_array_equal(tensors.load("model.embed_tokens.weight"), expected)
    np.testing.assert_array_equal(tensors.load("model.embed_tokens.weight", slice(2, 6)), expected[2:6])
    assert tensors.info("model.embed_tokens.weight").dtype == kind


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_types(write_gguf, kind):
    values = np.random.default_rng(2).standard_normal((5, 32)).astype(np.float32)
    raw = gguf.quantize(values, Type[kind])
    tensors = embed(write_gguf, raw, kind, 32)
    np.testing.assert_array_equal(tensors.load("model.embed_tokens.weight"), gguf.dequantize(raw, Type[kind]))
    assert tensors.blocks("model.embed_tokens.weight") is None


@pytest.mark.parametrize("kind", ["Q8_K", "I32"])
def test_types_that_cannot_be_decoded(write_gguf, kind):
    block, size = GGML_QUANT_SIZES[Type[kind]]
    raw = np.zeros((2, 256 // block * size), np.uint8) if block > 1 else np.zeros((2, 256), np.int32)
    with pytest.raises(MlcrtError, match=kind):
        embed(write_gguf, raw, kind, 256).load("model.embed_tokens.weight")


def test_version_2_and_custom_alignment(tiny_gguf):
    path, weights = tiny_gguf(metadata={"general.alignment": 256})
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<I", data, 4) == (3,)
    data[4] = 2  # the layouts of versions 2 and 3 are the same
    path.write_bytes(data)
    tensors = open_model(path).tensors
    np.testing.assert_array_equal(tensors.load("model.norm.weight"), weights["output_norm.weight"])
    assert read_gguf(path).tensors["output_norm.weight"].offset % 256 == 0


def test_split_file(tiny_gguf):
    path, weights = tiny_gguf(name="model.gguf", split_max_tensors=4)
    parts = sorted(path.parent.glob("*-of-*.gguf"))
    assert len(parts) == 3
    for part in (parts[0], parts[2]):  # any part opens the whole
        source = open_model(part)
        assert source.name == "model" and len(source.tensors.names()) == len(weights)
        down = source.tensors.load("model.layers.0.mlp.down_proj.weight")
        np.testing.assert_array_equal(down, weights["blk.0.ffn_down.weight"])
    parts[1].unlink()
    with pytest.raises(MlcrtError, match="00002-of-00003.gguf is missing"):
        open_model(parts[0])


def bits(path: Path, position: int, form: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, position, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("position", "form", "value", "says"),
    [
        (0, "<I", 0, "GGUF magic"),
        (4, "<I", 1, "version 1"),
        (4, "<I", 99, "version 99"),
        (4, "<I", 3 << 24, "big-endian"),
        (8, "<Q", 1 << 60, "length in it is corrupt"),
        (16, "<Q", 1 << 60, "length in it is corrupt"),
        (24, "<Q", 1 << 63, "length in it is corrupt"),
    ],
)
def test_corrupt_header(tiny_gguf, position, form, value, says):
    path, _ = tiny_gguf()
    bits(path, position, form, value)
    with pytest.raises(MlcrtError, match=says) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_corrupt_tensor_table(tiny_gguf):
    path, _ = tiny_gguf()
    original = path.read_bytes()
    # behind the name: u32 rank, 2 × u64 dimensions, u32 type, u64 offset
    at = original.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight")
    for position, form, value, says in [
        (at, "<I", 5, "5 dimensions"),
        (at + 4, "<Q", 0, "impossible shape"),
        (at + 4, "<Q", 1 << 62, "outside the file"),
        (at + 20, "<I", 777, "GGML type 777"),
        (at + 20, "<I", int(Type.Q4_K), "impossible shape"),
        (at + 24, "<Q", 1 << 63, "outside the file"),
        (at + 24, "<Q", 4, "off its alignment"),
        (at + 24, "<Q", 0, "overlap"),
    ]:
        path.write_bytes(original)
        bits(path, position, form, value)
        with pytest.raises(MlcrtError, match=says):
            open_model(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99, 0.9999])
def test_truncated_real_file(smollm2, tmp_path, share):
    size = smollm2.stat().st_size
    path = tmp_path / "cut.gguf"
    with open(smollm2, "rb") as whole:
        path.write_bytes(whole.read(min(int(size * share), 4 << 20)))  # the rest as a hole, which costs no disk
    with open(path, "r+b") as cut:
        cut.truncate(int(size * share))
    with pytest.raises(MlcrtError, match="cut.gguf"):
        open_model(path)


def use(path: Path) -> None:
    """Everything a conversion does with a file."""
    source = open_model(path)
    for name in source.tensors.names():
        assert source.tensors.load(name, slice(0, 3)).dtype == np.float32
        source.tensors.blocks(name)
    tokenizer_files(read_gguf(path))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"block_count": 1, "context_length": 8, "embedding_length": 32, "feed_forward_length": 32,
                       "attention.head_count": 2, "attention.head_count_kv": 1}.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", "Ġ", "<|im_end|>"])
    writer.add_token_types([1, 1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    draw = np.random.default_rng(0)
    quantised = gguf.quantize(draw.standard_normal((32, 32)).astype(np.float32), Type.Q4_0)
    writer.add_tensor("token_embd.weight", draw.standard_normal((5, 32)).astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight", quantised, raw_dtype=Type.Q4_0)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    use(path)
    return path.read_bytes()


def attempt(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(data)
        try:
            use(path)
        except MlcrtError as error:
            assert "\n" not in str(error)
            return False
        return True


@given(st.data())
@settings(max_examples=1000, deadline=None)
def test_fuzz_bytes(small_file, data):
    header = small_file.index(b"output_norm.weight") + 60
    changed = bytearray(small_file)
    places = st.integers(0, header)
    for position, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        changed[position] = value
    attempt(bytes(changed))


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_fuzz_numbers(small_file, data):
    """Lengths, counts, types and offsets replaced by values that break arithmetic."""
    header = small_file.index(b"output_norm.weight") + 60
    changed = bytearray(small_file)
    extreme = [0, 1, 2, 8, 9, 31, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
    large = [*extreme, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
    position = data.draw(st.integers(4, header))
    if data.draw(st.booleans()):
        struct.pack_into("<Q", changed, position, data.draw(st.sampled_from(large)))
    else:
        struct.pack_into("<I", changed, position, data.draw(st.sampled_from(extreme)))
    attempt(bytes(changed))


def test_fuzz_every_truncation(small_file):
    assert not any(attempt(small_file[:length]) for length in range(0, len(small_file) - 64, 7))
    assert attempt(small_file)
