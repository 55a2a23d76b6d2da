"""Whatever is wrong with the input: exit code 1 or 2, one line that names the thing and the remedy, nothing left."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from mlcrt.cli import main
from mlcrt.compile import compile_model

CASE = "qwen3_norms"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A good model folder `model` in an empty current folder, for a test to spoil."""
    monkeypatch.chdir(tmp_path)
    return tiny.make_tiny(CASE, tmp_path / "model")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A compiled model."""
    root = tmp_path_factory.mktemp("good")
    return compile_model(tiny.make_tiny(CASE, root / "model"), "q0f32", "cpu", dist_root=root, slots=0)


@pytest.fixture
def dist(good, model, tmp_path):
    """A copy of the compiled model, for a test to spoil."""
    import shutil

    return shutil.copytree(good, tmp_path / "compiled")


@pytest.fixture
def fails(capfd, tmp_path):
    """fails(arguments, code, *texts): the command line fails that way, and a dist folder does not appear."""

    def check(arguments: str, code: int, *texts: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments.split()) == code
        out, err = capfd.readouterr()
        assert out == ""
        lines = err.splitlines()
        progress = [line for line in lines if line.startswith(("converting", "compiling"))]
        rest = [line for line in lines if line not in progress]
        assert len(rest) == 1 and rest[0] == lines[-1], err
        assert rest[0].startswith("mlcrt: ") and "internal error" not in err and "Traceback" not in err
        for text in texts:
            assert text in rest[0]
        after = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
        assert [p for p in after if p.name != "dist" or any(p.iterdir())] == []

    return check


VERBS = ["compile model --target cpu", "convert model", "chat model --prompt hi", "bench model -p 8 -n 2"]


@pytest.mark.parametrize("verb", VERBS)
def test_truncated_safetensors(model, fails, verb):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    fails(verb, 1, "model/model.safetensors", "again")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, b"<html>not found</html>"])
def test_a_weight_file_that_is_none(model, fails, content):
    (model / "model.safetensors").write_bytes(content)
    fails("compile model", 1, "model/model.safetensors", "again")


def change_weights(model, change) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def test_a_wrong_shape(model, fails):
    def change(tensors):
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    change_weights(model, change)
    fails(
        "compile model", 1, "model.layers.1.mlp.down_proj.weight", "model/model.safetensors", "[200, 72]", "[72, 200]"
    )


def test_a_missing_tensor(model, fails):
    change_weights(model, lambda tensors: tensors.pop("model.layers.2.self_attn.k_proj.weight"))
    fails("compile model", 1, "model.layers.2.self_attn.k_proj.weight")


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("quantization", ["q4f16_1", "q0f32"])
def test_not_a_number_in_the_weights(model, fails, value, word, name, quantization):
    def change(tensors):
        tensors[name].reshape(-1)[-3] = value

    change_weights(model, change)
    fails(f"compile model --quantization {quantization}", 1, name, "model/model.safetensors", word, "again")


def test_values_that_float16_cannot_hold(model, fails):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e9

    change_weights(model, change)
    for quantization in ("q4f16_1", "q0f16", "q8f16_1", "q3f16_1"):
        texts = "model.layers.0.mlp.up_proj.weight", "model/model.safetensors", "--quantization q0f32"
        fails(f"convert model --quantization {quantization}", 1, *texts)


def test_no_tokenizer(model, fails):
    (model / "tokenizer.json").unlink()
    fails("compile model", 1, "model has no tokenizer.json", "download")
    (model / "tokenizer.model").write_bytes(b"sentencepiece")
    fails("compile model", 1, "tokenizer.model", "save_pretrained")
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    fails("compile model", 1, "model/tokenizer.json", "again")


@pytest.mark.parametrize(
    "change, texts",
    [
        ({"model_type": "mamba"}, ["mamba"]),
        ({"model_type": None}, ["model_type"]),
        ({"hidden_size": "many"}, ["hidden_size"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
    ],
)
def test_an_unusable_configuration(model, fails, change, texts):
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    fails("compile model", 1, "model", *texts)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_configuration_that_is_none(model, fails, text):
    (model / "config.json").write_text(text)
    fails("compile model", 1, "model/config.json")


def test_a_folder_without_a_configuration(model, fails):
    (model / "config.json").unlink()
    fails("compile model", 1, "config.json")


# --- GGUF ---

_HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<I", 3),
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        _HEADER,
        _HEADER[:-1] + b"\xff" * 60,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**50) + b"general.architecture",
        b"some other file",
    ],
)
def test_a_corrupt_gguf(model, fails, tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    fails("compile bad.gguf --target cpu", 1, "bad.gguf")


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
def test_a_truncated_real_gguf(model, gguf, fails, tmp_path, share):
    with open(gguf, "rb") as whole, open(tmp_path / "cut.gguf", "wb") as cut:
        cut.write(whole.read(int(gguf.stat().st_size * share)))
    fails("compile cut.gguf", 1, "cut.gguf", "again")


def test_a_gguf_with_a_broken_scale(model, gguf, fails, tmp_path):
    """NaN in the scale of one block in the middle of a real file, found when its tensor is repacked."""
    content = bytearray(gguf.read_bytes())
    at = len(content) * 3 // 4
    content[at : at + 4000] = b"\xff\x7f" * 2000  # 0x7fff is a NaN as float16
    (tmp_path / "nan.gguf").write_bytes(content)
    fails("convert nan.gguf", 1, "nan.gguf", "NaN", "again")


# --- requests ---


@pytest.mark.parametrize(
    "arguments, code, texts",
    [
        ("compile model --quantization q5f16_7", 2, ["q5f16_7", "q4f16_1"]),
        ("chat model --quantization q5f16_7 --prompt hi", 2, ["q5f16_7", "q4f16_1"]),
        ("convert model --quantization int4", 2, ["int4", "q4f16_1"]),
        ("convert model --quantization gguf", 1, ["gguf", "model"]),
        ("compile model --target abacus", 2, ["abacus", "cpu"]),
        ("compile model --target cpu:z80", 2, ["z80", "x86-64-v3"]),
        ("chat model --prompt hi --device abacus", 2, ["abacus", "cpu"]),
        ("compile no-such-model", 2, ["no-such-model", "folder"]),
        ("chat dist/none --prompt hi", 1, ["dist/none"]),
        ("compile model --output model", 1, ["model", "--output"]),
    ],
)
def test_requests_that_cannot_be_met(model, fails, arguments, code, texts, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # "dist/none" may be a name on the hub
    fails(arguments, code, *texts)


def test_an_output_folder_that_is_a_file(model, fails, tmp_path):
    (tmp_path / "there").write_text("mine")
    for verb in ("compile", "convert"):
        fails(f"{verb} model --output there", 1, "there", "--output")
        fails(f"{verb} model --output there/inside", 1, "there/inside")
    assert (tmp_path / "there").read_text() == "mine"


def test_a_dist_that_is_a_file(model, fails, tmp_path):
    (tmp_path / "dist").write_text("mine")
    fails("compile model", 1, "dist/model-q4f16_1")
    assert (tmp_path / "dist").read_text() == "mine"


def test_an_output_folder_with_something_else_in_it(model, fails, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    fails("compile model --output photos", 1, "photos", "--output")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"


# --- compiled models ---


def test_a_prompt_longer_than_the_context(dist, fails):
    fails("chat compiled --context 16 --prompt " + "x" * 60, 1, "context", "16")
    fails("chat compiled --context 99999999 --prompt x", 1, "--context 32768")


def change_manifest(dist, **changes) -> None:
    file = dist / "mlcrt.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


CHAT = "chat compiled --prompt hi"


def test_a_dist_of_another_version(dist, fails):
    manifest = json.loads((dist / "mlcrt.json").read_text())
    change_manifest(dist, format=99, mlcrt="9.9")
    fails(CHAT, 1, "compiled", "9.9", "mlcrt compile")
    for key, value in (("abi", 99), ("tvm", "0.1")):
        change_manifest(dist, format=manifest["format"], targets={"cpu": {**manifest["targets"]["cpu"], key: value}})
        fails(CHAT, 1, "compiled/cpu/lib.so", "mlcrt compile")


def test_a_damaged_dist(dist, fails):
    manifest, library = (dist / "mlcrt.json").read_bytes(), (dist / "cpu/lib.so").read_bytes()
    (dist / "mlcrt.json").write_bytes(manifest[:100])
    fails(CHAT, 1, "compiled/mlcrt.json", "mlcrt compile")
    (dist / "mlcrt.json").write_bytes(manifest)
    (dist / "cpu/lib.so").write_bytes(library[:-1])
    fails(CHAT, 1, "compiled/cpu/lib.so", "mlcrt compile")
    (dist / "cpu/lib.so").write_bytes(library)
    params = next(dist.glob("params-*"))
    params.write_bytes(params.read_bytes()[:-4])
    fails(CHAT, 1, f"compiled/{params.name}", "mlcrt convert")
    params.unlink()
    fails(CHAT, 1, f"compiled/{params.name}", "mlcrt convert")


def test_a_dist_without_its_tokenizer(dist, fails):
    (dist / "tokenizer.json").write_text("{}")
    fails(CHAT, 1, "compiled/tokenizer.json")
    (dist / "tokenizer.json").unlink()
    fails(CHAT, 1, "compiled/tokenizer.json")


def test_the_spoiled_models_were_good(model, dist, capfd):
    """Without the damage the very same command lines work."""
    assert main(["convert", "model", "--output", "made"]) == 0
    assert capfd.readouterr().out == "made\n"
    assert main([*CHAT.split(), "--max-tokens", "4"]) == 0
    assert capfd.readouterr().out.endswith("\n")
