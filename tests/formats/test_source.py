"""open_model's answer to a path or a name, and what write_tokenizer leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, processors

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.formats import TensorSource, open_model
from mlcrt.formats.source import QUANT_SUFFIX


def make_folder(folder: Path, tokenizer: bool = True, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "bos_token_id": 1, "eos_token_id": [2, 9]}))
    save_file({"w": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    if tokenizer:
        made = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        made.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        name = name.replace("__", ".")
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def written(folder: Path, out: Path) -> dict:
    open_model(folder).write_tokenizer(out)
    return json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_local_folder(tmp_path):
    source = open_model(make_folder(tmp_path / "My Model"))
    assert (source.name, source.kind, source.path) == ("My-Model", "hf", tmp_path / "My Model")
    assert isinstance(source.tensors, TensorSource) and "w" in source.tensors and "v" not in source.tensors
    assert source.config["model_type"] == "llama"
    assert open_model(str(tmp_path / "My Model") + "/").name == "My-Model"


def test_snapshot_in_the_hub_cache_is_named_after_its_repository(tmp_path):
    folder = make_folder(tmp_path / "models--owner--Tiny-1B" / "snapshots" / "0123abcd")
    assert open_model(folder).name == "Tiny-1B"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"), ("m-7B-Q4_K_M", "m-7B"), ("m.q8_0", "m"),
        ("m-IQ3_XXS", "m"), ("m-f16", "m"), ("m-BF16", "m"), ("m.i1-Q6_K", "m"), ("m-UD-Q4_K_XL", "m"),
        ("m-tq2_0", "m"), ("Qwen2.5-0.5B", "Qwen2.5-0.5B"), ("q4-model", "q4-model"), ("m-MXFP4_MOE", "m"),
    ],
)  # fmt: skip
def test_quantisation_is_no_part_of_the_name(file, name):
    assert QUANT_SUFFIX.sub("", file) == name


def test_gguf_names(tiny_gguf):
    assert open_model(tiny_gguf(name="Tiny-x.Q8_0.gguf")[0]).name == "Tiny-x"
    path, _ = tiny_gguf(metadata={"general.name": "Tiny / Chat"}, name="ggml-model-q4_0.gguf")
    assert open_model(path).name == "Tiny-Chat"  # a file nobody named takes the name inside
    blob = path.rename(path.with_name("sha256-" + "0f" * 32))  # as other programs' caches keep them
    assert open_model(blob).name == "Tiny-Chat"


def test_folder_with_one_gguf_file(tiny_gguf):
    path, _ = tiny_gguf()
    assert open_model(path.parent).kind == "gguf"
    (path.parent / "n.gguf").write_bytes(b"")
    with pytest.raises(MlcrtError, match="name one of them"):
        open_model(path.parent)


@pytest.mark.parametrize("spec", ["", "nowhere", "./no/where/at/all", "a/b/c", "owner/model.gguf", "/x.gguf", "a b/c"])
def test_neither_path_nor_name(spec, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MlcrtError) as caught:
        open_model(spec)
    assert isinstance(caught.value, UsageError) and spec in str(caught.value)


def test_file_that_is_no_model(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"hello")
    with pytest.raises(MlcrtError, match="x.bin is not a GGUF file"):
        open_model(tmp_path / "x.bin")


# --- tokenizer files ---


def test_tokenizer_files(tmp_path):
    folder = make_folder(
        tmp_path / "m", tokenizer_config__json={"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>",
                                                "chat_template": "{{ inline }}", "model_max_length": 99},
        generation_config__json={"temperature": 0.5},
    )  # fmt: skip
    settings = written(folder, tmp_path / "out")
    assert (settings["bos_token"], settings["eos_token"], settings["chat_template"]) == ("<s>", "</s>", "{{ inline }}")
    assert settings["model_max_length"] == 99
    assert settings["add_bos_token"] is True  # its post-processor adds it
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert sorted(os.listdir(tmp_path / "out")) == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_special_tokens_from_elsewhere(tmp_path):
    settings = written(make_folder(tmp_path / "m", special_tokens_map__json={"eos_token": "a"}), tmp_path / "out")
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "a")  # the first by config.json's id
    assert "chat_template" not in settings and not (tmp_path / "out" / "generation_config.json").exists()
    given = written(make_folder(tmp_path / "n", tokenizer_config__json={"add_bos_token": False}), tmp_path / "out")
    assert given["add_bos_token"] is False


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config__json": {"chat_template": [{"name": "tool", "template": "T"},
                                                       {"name": "default", "template": "D"}]}}, "D"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "R"}]}}, "R"),
        ({"chat_template__jinja": "J é"}, "J é"),
        ({"chat_template__jinja": "J", "tokenizer_config__json": {"chat_template": "C"}}, "J"),
        ({"chat_template__json": {"chat_template": "K"}}, "K"),
        ({"tokenizer_config__json": {"chat_template": None}}, None),
        ({"tokenizer_config__json": {"chat_template": [3, {}]}}, None),
    ],
)  # fmt: skip
def test_chat_template_in_each_of_its_places(tmp_path, files, template):
    assert written(make_folder(tmp_path / "m", **files), tmp_path / "out").get("chat_template") == template


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"), "only tokenizer.model"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": {}}'), "does not hold a usable tokenizer"),
        (lambda f: (f / "tokenizer.json").write_bytes(b"\xfe\xff"), "not UTF-8"),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "chat_template.jinja is not UTF-8"),
        (lambda f: (f / "tokenizer_config.json").write_text(r'{"chat_template": "\ud800"}'), "not Unicode"),
    ],
)
def test_unusable_tokenizer_writes_nothing(tmp_path, spoil, says):
    folder = make_folder(tmp_path / "m")
    spoil(folder)
    source = open_model(folder)
    with pytest.raises(MlcrtError, match=says) as caught:
        source.write_tokenizer(tmp_path / "out")
    assert str(folder) in str(caught.value)
    assert not list((tmp_path / "out").rglob("*"))


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MlcrtError, match="cannot be written to"):
        open_model(make_folder(tmp_path / "m")).write_tokenizer(tmp_path / "out")


# --- memory ---

STREAM = """
import re, sys
import numpy as np
from mlcrt.formats import open_model
def peak():  # KiB; getrusage would count the parent's memory from before exec
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
source = open_model(sys.argv[1])
before = peak()
seen = total = 0
for name in source.tensors.names():
    rows = source.tensors.info(name).shape[0]
    for start in range(0, rows, 256):
        part = source.tensors.load(name, slice(start, start + 256))
        total += int(np.count_nonzero(part)); seen += part.size
print(seen, total, peak() - before)
"""


def stream(path: Path) -> tuple[int, int, int]:
    """(elements read, non-zero ones, growth of the peak resident set in KiB) of a fresh process reading by rows."""
    command = [sys.executable, "-c", STREAM, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    elements, nonzero, growth = map(int, result.stdout.split())
    return elements, nonzero, growth


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_set_stays_small(tmp_path):
    """Six tensors of 64 MiB (a sparse file of 384 MiB) streamed by rows: the peak grows by less than one of them."""
    rows, columns, count = 8192, 4096, 6
    size = rows * columns * 2
    header = {f"w{n}": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [n * size, n * size + size]}
              for n in range(count)}  # fmt: skip
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text("{}")
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for n in range(count):
            file.seek(start + n * size + 2 * n)
            file.write(b"\x80\x3f")  # a single 1.0
        file.truncate(start + count * size)
    elements, nonzero, growth = stream(tmp_path)
    assert (elements, nonzero) == (count * rows * columns, count)
    assert growth < 40 << 10, f"{growth} KiB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_set_of_a_real_gguf(smollm2):
    elements, _, growth = stream(smollm2)
    assert elements == 134_515_008  # the model's 135 M parameters, and 98 MB on disk
    assert growth < 64 << 10, f"{growth} KiB"
