"""Tokenizers rebuilt from GGUF, against llama.cpp, sentencepiece and the tokenizers library.

smollm2.json.gz holds what llama.cpp's own tokenizer gives for SmolLM2's file, spm.json.gz what sentencepiece gives for
a vocabulary it trained; make_golden.py wrote both, and compares further vocabularies where their files are at hand.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import gguf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model
from mlcrt.formats.gguf_file import read_gguf
from mlcrt.formats.gguf_tokenizer import tokenizer_files

HERE = Path(__file__).parent


def golden(name: str) -> dict:
    return json.loads(gzip.decompress((HERE / name).read_bytes()))


def vocabulary_file(path: Path, kind: str, tokens: list[str], types: list[int], arch: str = "llama", **extra) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in extra.items():
        {"merges": writer.add_token_merges, "scores": writer.add_token_scores, "pre": writer.add_tokenizer_pre,
         "bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "add_bos": writer.add_add_bos_token,
         "add_eos": writer.add_add_eos_token, "prefix": writer.add_add_space_prefix,
         "template": writer.add_chat_template}[key](value)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rebuilt(path: Path) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(read_gguf(path))["tokenizer.json"])


def test_smollm2_equals_llama_cpp(smollm2, tmp_path):
    data = golden("smollm2.json.gz")
    assert data["file"] == smollm2.name and len(data["texts"]) == 3000
    open_model(smollm2).write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    wrong = [
        (text, ids)
        for text, ids in zip(data["texts"], data["ids"], strict=True)
        if tokenizer.encode(text, add_special_tokens=True).ids != ids
    ]
    assert wrong == []
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["add_bos_token"] is False and "<|im_start|>" in settings["chat_template"]
    for text in data["texts"]:
        if "<|" not in text and "<repo" not in text and "<jupyter" not in text:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabulary(tmp_path, prefix):
    data = golden("spm.json.gz")
    path = vocabulary_file(tmp_path / "v.gguf", "llama", data["tokens"], data["types"], scores=data["scores"],
                           bos=1, eos=2, prefix=prefix)  # fmt: skip
    tokenizer = rebuilt(path)
    if prefix:
        wrong = [
            text
            for text, ids in zip(data["texts"], data["ids"], strict=True)
            if tokenizer.encode(text, add_special_tokens=False).ids != ids
        ]
        assert wrong == [] and len(data["texts"]) == 2000
        assert tokenizer.encode("The fox").ids[0] == 1  # SentencePiece vocabularies add bos unless they say otherwise
        marked = tokenizer.encode("The</s>The", add_special_tokens=False).ids
        once = tokenizer.encode("The", add_special_tokens=False).ids
        assert marked == [*once, 2, *once]
    assert any(len(tokenizer.encode(text, add_special_tokens=False).ids) > len(text) for text in "🏳é\x01")  # bytes
    for text in data["texts"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


# --- a byte-level vocabulary trained here, its own tokenizer.json being the judge ---

PATTERNS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],  # noqa: E501
    "qwen2": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],  # noqa: E501
}  # fmt: skip


def trained(pre: str) -> Tokenizer:
    """A tokenizer assembled as the models' published tokenizer.json are: library parts, and their own patterns."""
    regex = any(isinstance(part, str) for part in PATTERNS[pre])
    parts = [pre_tokenizers.Split(Regex(p), "isolated") if isinstance(p, str) else p for p in PATTERNS[pre]]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|start|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(golden("spm.json.gz")["texts"], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


@pytest.fixture(scope="module", params=list(PATTERNS))
def pair(request, tmp_path_factory):
    original = trained(request.param)
    model = json.loads(original.to_str())["model"]
    tokens = [original.id_to_token(number) for number in range(original.get_vocab_size())]
    types = [3 if token in ("<|start|>", "<|end|>") else 4 if token == "<tool>" else 1 for token in tokens]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    path = tmp_path_factory.mktemp("bpe") / "v.gguf"
    vocabulary_file(path, "gpt2", tokens, types, merges=merges, pre=request.param, bos=0, add_bos=False)
    return original, rebuilt(path)


texts = st.lists(
    st.text(max_size=8) | st.sampled_from(["<|start|>", "<|end|>", "<tool>", "<|", "'ll", "'S", " ", "\n\n", "\t"]
                                          + ["12345", "the ", "fox", "e\u0301", "각", "नमस्ते", "🏳️‍🌈", "\r\n", "\u3000"]),
    max_size=6,
).map("".join)  # fmt: skip


@given(text=texts)
@example(text="")
@example(text="It'S 1234567 <|start|>user\n\n  hello<tool> world\u0301 ")
@settings(max_examples=300, deadline=None)
def test_byte_level_vocabulary(pair, text):
    original, ours = pair
    expected = original.encode(text)
    got = ours.encode(text)
    assert (got.ids, got.tokens) == (expected.ids, expected.tokens)
    assert ours.decode(got.ids, skip_special_tokens=False) == original.decode(expected.ids, skip_special_tokens=False)
    assert ours.decode(got.ids) == original.decode(expected.ids)


def test_byte_level_vocabulary_on_the_golden_texts(pair):
    original, ours = pair
    for text in golden("smollm2.json.gz")["texts"]:
        assert ours.encode(text).ids == original.encode(text).ids


BASIC = ["a", "b", "ab", "<s>", "</s>"]


@pytest.mark.parametrize(("add_bos", "add_eos", "ids"), [(True, False, [3, 2]), (False, True, [2, 4]),
                                                          (True, True, [3, 2, 4]), (False, False, [2])])  # fmt: skip
def test_bos_and_eos(tmp_path, add_bos, add_eos, ids):
    path = vocabulary_file(tmp_path / "v.gguf", "gpt2", BASIC, [1, 1, 1, 3, 3], merges=["a b"], pre="gpt-2", bos=3,
                           eos=4, add_bos=add_bos, add_eos=add_eos, template="{{ x }}")  # fmt: skip
    files = tokenizer_files(read_gguf(path))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.encode("ab").ids == ids and tokenizer.encode("ab", add_special_tokens=False).ids == [2]
    assert tokenizer.encode("ab", "a").ids == [*ids, *ids[: ids.index(2)], 0, *ids[ids.index(2) + 1 :]]
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (add_bos, add_eos)
    assert (settings["bos_token"], settings["eos_token"], settings["chat_template"]) == ("<s>", "</s>", "{{ x }}")


@pytest.mark.parametrize(("pre", "says"), [("wondrous", "'wondrous', is unknown"), (None, "does not say how to split")])
def test_unknown_word_splitting_is_announced(tmp_path, caplog, pre, says):
    extra = {"pre": pre} if pre else {}
    path = vocabulary_file(tmp_path / "v.gguf", "gpt2", BASIC, [1, 1, 1, 3, 3], merges=["a b"], **extra)
    assert rebuilt(path).encode("ab").ids == [2]
    assert says in caplog.text


def test_phi3_marks_swallow_the_blanks_behind_them(tmp_path):
    tokens, types = ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a", "<|end|>"], [2, 3, 3, 1, 1, 1, 3]
    path = vocabulary_file(
        tmp_path / "v.gguf", "llama", tokens, types, arch="phi3", scores=[0.0, 0.0, 0.0, -3.0, -2.0, -1.0, 0.0]
    )
    assert rebuilt(path).encode("<|end|> \n<s> a", add_special_tokens=False).ids == [6, 1, 3, 5]


def test_embedded_tokenizer_json_is_used(tmp_path):
    original = Tokenizer(models.WordLevel({"x": 0, "<unk>": 1}, unk_token="<unk>"))
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["x", "<unk>"])
    writer.add_string("tokenizer.huggingface.json", original.to_str())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert rebuilt(tmp_path / "v.gguf").encode("x").ids == [0]


@pytest.mark.parametrize(
    ("kind", "tokens", "types", "extra", "says"),
    [
        ("bert", BASIC, [1] * 5, {}, "kind 'bert' is not supported"),
        ("gpt2", BASIC, [1] * 5, {"pre": "gpt-2"}, "no tokenizer.ggml.merges"),
        ("gpt2", BASIC, [1] * 5, {"pre": "gpt-2", "merges": ["ab"]}, "no second half"),
        ("gpt2", BASIC, [1] * 5, {"pre": "gpt-2", "merges": ["a z"]}, "usable tokenizer"),
        ("gpt2", ["a", "a"], [1, 1], {"merges": ["a a"]}, "a token twice"),
        ("gpt2", BASIC, [1] * 4, {"merges": ["a b"]}, "token_type does not fit the 5 tokens"),
        ("llama", BASIC, [1] * 5, {}, "no usable scores"),
        ("llama", BASIC, [1] * 5, {"scores": [0.0, float("nan"), 0.0, 0.0, 0.0]}, "no usable scores"),
        ("llama", BASIC, [1] * 5, {"scores": [0.0]}, "scores does not fit"),
    ],
)
def test_unusable_vocabulary(tmp_path, kind, tokens, types, extra, says):
    path = vocabulary_file(tmp_path / "v.gguf", kind, tokens, types, **extra)
    with pytest.raises(MlcrtError, match=says) as caught:
        tokenizer_files(read_gguf(path))
    assert str(path) in str(caught.value)


def test_model_without_vocabulary(tiny_gguf, tmp_path):
    source = open_model(tiny_gguf()[0])
    with pytest.raises(MlcrtError, match="holds no tokenizer"):
        source.write_tokenizer(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.lists(st.text(max_size=4), min_size=1, max_size=6, unique=True), st.data())
@settings(max_examples=150, deadline=None)
def test_fuzz_vocabulary(tokens, data):
    """Any texts, types, scores and merges: a tokenizer that encodes, or a sentence."""
    count = len(tokens)
    kind = data.draw(st.sampled_from(["gpt2", "llama"]))
    types = data.draw(st.lists(st.integers(0, 7), min_size=count, max_size=count))
    extra = {
        "scores": data.draw(st.lists(st.floats(width=32), min_size=count, max_size=count)),
        "merges": data.draw(st.lists(st.text("ab \u2581", max_size=4), min_size=1, max_size=3)),
        "bos": data.draw(st.integers(0, 7)), "eos": data.draw(st.integers(0, 7)),
        "add_bos": data.draw(st.booleans()), "pre": data.draw(st.sampled_from(["qwen2", "default", "tekken"])),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = vocabulary_file(Path(folder) / "v.gguf", kind, tokens, types, **extra)
        try:
            rebuilt(path).encode("a b " + "".join(tokens))
        except MlcrtError as error:
            assert "\n" not in str(error)
