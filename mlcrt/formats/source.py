"""What `--model` names, opened: a local folder, a GGUF file or a hub repository, all as one `ModelSource`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.formats import gguf_model, gguf_tokenizer, hub, huggingface
from mlcrt.formats.gguf_file import read_gguf
from mlcrt.formats.tensors import TensorSource

# …-Q4_K_M, .Q8_0, -f16, .IQ3_XXS, -UD-Q4_K_XL, before it possibly -imat; and the part number of a split file
QUANT_SUFFIX = re.compile(
    r"([-._](imat|i1|ud))?[-._](i?q[1-8](_[a-z0-9]+)*|tq[12]_0|mxfp4(_moe)?|nvfp4|f16|bf16|f32|fp16|fp32)$",
    re.IGNORECASE,
)
PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
ANONYMOUS = re.compile(r"(ggml-)?model|[0-9a-f]{32,}|sha256-[0-9a-f]+", re.IGNORECASE)


@dataclass(frozen=True)
class ModelSource:
    """A model to convert. `config` has config.json's keys, and `tensors` Hugging Face names, in both kinds."""

    name: str  # for people and file names, without the quantisation
    path: Path
    kind: str  # "hf" or "gguf"
    config: dict[str, Any]
    tensors: TensorSource
    _tokenizer_files: Callable[[], dict[str, str]] = field(repr=False)

    def write_tokenizer(self, folder: Path | str) -> None:
        """Writes tokenizer.json, tokenizer_config.json and generation_config.json (if the model has one) to `folder`.

        tokenizer_config.json holds the chat template, the bos/eos texts and `add_bos_token`. Raises MlcrtError,
        having written nothing, when the model has no usable tokenizer; call it before the long work.
        """
        files = self._tokenizer_files()
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as beside:
                for name, text in files.items():
                    (Path(beside) / name).write_text(text, encoding="utf-8")
                for name in files:
                    os.replace(Path(beside) / name, folder / name)
        except UnicodeEncodeError as error:
            raise MlcrtError(f"{self.path}: its tokenizer holds text that is not Unicode; fetch it again.") from error
        except OSError as error:
            raise MlcrtError(f"The tokenizer cannot be written to {folder}: {error.strerror or error}.") from error


def open_model(spec: str | os.PathLike[str], revision: str | None = None, progress: bool = True) -> ModelSource:
    """Opens a model folder, a .gguf file (any part of a split one), or a hub model.

    `spec` is a path, "owner/name" or "owner/name/file.gguf"; a path that exists wins. `revision` (branch, tag or
    commit) and `progress` (a bar on stderr) matter for the hub only. Only headers are read. Raises MlcrtError with one
    sentence for anything unusable, UsageError when `spec` can be neither a path nor a hub name.
    """
    text = os.fspath(spec)
    if not text:
        raise UsageError("The model's name is empty; give a folder, a .gguf file, or a hub name like owner/model.")
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, _folder_name(path))
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not _has_gguf_magic(path):
            raise MlcrtError(f"{path} is not a GGUF file; give a .gguf file or a Hugging Face model folder.")
        return _open_gguf(path)
    if match := hub.HUB_GGUF.fullmatch(text):
        return _open_gguf(hub.fetch_gguf(match[1], match[2], revision, progress))
    if hub.HUB_ID.fullmatch(text) and not text.lower().endswith((".gguf", ".json", ".safetensors")):
        return _open_folder(hub.fetch_model(text, revision, progress), text.split("/")[1])
    raise UsageError(f"There is no model at '{text}'; give a folder, a .gguf file, or a hub name like owner/model.")


def _open_folder(folder: Path, name: str) -> ModelSource:
    if not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return _open_gguf(files[0])
    config = huggingface.read_config(folder)
    tensors = huggingface.open_tensors(folder)
    return ModelSource(_clean(name), folder, "hf", config, tensors, lambda: huggingface.tokenizer_files(folder, config))


def _open_gguf(path: Path) -> ModelSource:
    file = read_gguf(path)
    config = gguf_model.hf_config(file)
    tensors = gguf_model.map_tensors(file, config)
    name = QUANT_SUFFIX.sub("", PART_SUFFIX.sub("", path.stem))
    if ANONYMOUS.fullmatch(name):  # a cache's blob, or a file nobody named
        name = file.get("general.name", str) or name
    return ModelSource(_clean(name), path, "gguf", config, tensors, lambda: gguf_tokenizer.tokenizer_files(file))


def _folder_name(folder: Path) -> str:
    """The folder's own name; for a snapshot in the hub's cache, the repository's."""
    full = folder.resolve()
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        return full.parent.parent.name.split("--")[-1]
    return full.name


def _clean(name: str) -> str:
    """A name that is safe as a folder name on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _has_gguf_magic(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
