"""Tiny random models with awkward shapes, made without torch, and the logits transformers gives for them.

golden/CASE.json holds the config.json that transformers wrote and the names and shapes of the tensors it saved;
golden/CASE.npz holds tokens and logits. make_golden.py writes both.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).parent / "golden"
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2


@dataclass(frozen=True)
class Golden:
    """Logits of `tokens` (int64 [n]) by transformers: float32 [n, len(columns)] at the vocabulary entries `columns`.

    `argmax` (int64 [n]) is over the whole vocabulary, `std` of the logits too. `inv_freq` and `attention_factor` are
    those of transformers by layer type ("all" where it has one table).
    """

    tokens: np.ndarray
    logits: np.ndarray
    columns: np.ndarray
    argmax: np.ndarray
    std: float
    inv_freq: dict[str, np.ndarray]
    attention_factor: dict[str, float]


def cases() -> list[str]:
    """Names of the golden cases, each a folder for `make_tiny`."""
    return sorted(p.stem for p in GOLDEN.glob("*.npz"))


def golden(case: str) -> Golden:
    with np.load(GOLDEN / f"{case}.npz") as data:
        inv_freq = {k.split("/")[1]: data[k] for k in data.files if k.startswith("inv_freq/")}
        factor = {k.split("/")[1]: float(data[k]) for k in data.files if k.startswith("attention_factor/")}
        fields = {k: data[k] for k in ("tokens", "logits", "columns", "argmax")}
        return Golden(**fields, std=float(data["std"]), inv_freq=inv_freq, attention_factor=factor)


def record(case: str) -> dict:
    """{"config": the config.json, "tensors": {name: shape}} of a case."""
    return json.loads((GOLDEN / f"{case}.json").read_text())


def weight(name: str, shape: tuple[int, ...], plus_one: bool = False) -> np.ndarray:
    """The float32 weights of tensor `name`: uniform, from the bits of PCG64 seeded with the CRC-32 of the name.

    Raw generator bits never change between NumPy versions, unlike its distributions. Scales keep activations near 1:
    projections have variance 1 / fan-in, norms spread around 1 (around 0 where the model adds the 1: `plus_one`).
    """
    count = math.prod(shape)
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
    uniform = ((bits >> 8).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)).reshape(shape)
    uniform *= np.float32(math.sqrt(12))  # variance 1
    if "norm" in name.split(".")[-2]:
        return uniform * np.float32(0.3) + np.float32(0.0 if plus_one else 1.0)
    if name.endswith(".bias"):
        return uniform * np.float32(0.2)
    gain = 0.7 if "o_proj" in name or "down_proj" in name or ".w2." in name else 1.0
    return uniform * np.float32(gain / math.sqrt(shape[-1]))


def weights(shapes: dict[str, tuple[int, ...]], model_type: str) -> dict[str, np.ndarray]:
    return {name: weight(name, tuple(shape), model_type.startswith("gemma")) for name, shape in shapes.items()}


def make_tiny(case: str, folder: Path | str) -> Path:
    """Write a case as a Hugging Face folder: config.json, model.safetensors (F32), tokenizer files. Returns it."""
    folder, data = Path(folder), record(case)
    write_folder(folder, data["config"], data["tensors"])
    return folder


def write_folder(folder: Path, config: dict, shapes: dict[str, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights(shapes, config["model_type"]), folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def make_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level tokenizer with exactly `vocab` entries: 3 special ones, the 256 bytes, and filler."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIAL, *alphabet]
    entries += [f"<filler{i}>" for i in range(len(entries), vocab)]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(entries)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


@dataclass(frozen=True)
class Info:
    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path


class MemoryTensors:
    """A tensor source over arrays in memory, with the interface of mlcrt.formats.TensorSource."""

    def __init__(self, arrays: dict[str, np.ndarray], file: str = "model.safetensors"):
        self.arrays, self.file = arrays, Path(file)

    def names(self) -> list[str]:
        return list(self.arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def info(self, name: str) -> Info:
        return Info(name, self.arrays[name].shape, "F32", self.file)

    def load(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.arrays[name] if rows is None else self.arrays[name][rows]

    def blocks(self, name: str, rows: slice | None = None) -> None:
        return None


def tensors(case: str) -> MemoryTensors:
    """The weights of a case, without writing a folder."""
    data = record(case)
    return MemoryTensors(weights(data["tensors"], data["config"]["model_type"]))
