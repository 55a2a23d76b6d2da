"""A Hugging Face model folder: config.json, safetensors (one file or shards), tokenizer files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlcrt.errors import MlcrtError
from mlcrt.formats.safetensors_file import read_safetensors
from mlcrt.formats.tensors import FileTensors, StoredTensor

INDEX = "model.safetensors.index.json"
MAX_JSON = 256 << 20  # bytes; tokenizer.json, the largest of these files, is some 30 MB for a vocabulary of 256k


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises MlcrtError when it is missing, oversized or not UTF-8."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise MlcrtError(f"{path} is too large to be a configuration or tokenizer file; fetch it again.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MlcrtError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise MlcrtError(f"{path} is not UTF-8 text ({str(error)[:80]}); fetch it again.") from error


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON file's object; {} when `optional` and absent. Raises MlcrtError for anything else."""
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise MlcrtError(f"{path} is not valid JSON ({str(error)[:80]}); fetch it again.") from error
    if not isinstance(value, dict):
        raise MlcrtError(f"{path} does not hold a JSON object; fetch it again.")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, its `eos_token_id` joined with that of generation_config.json.

    Checkpoints list the tokens that end a turn in either file (Qwen2.5 keeps `<|im_end|>` only in the latter), and
    generation has to stop at all of them, so `eos_token_id` becomes the list of both, config.json's first.
    """
    if not (folder / "config.json").is_file():
        hint = "it holds GGUF files: name one of them" if any(folder.glob("*.gguf")) else "point at a model folder"
        raise MlcrtError(f"{folder} has no config.json; {hint}.")
    config = read_object(folder / "config.json")
    ends = [*_ids(config), *_ids(read_object(folder / "generation_config.json", optional=True))]
    if ends:
        config["eos_token_id"] = list(dict.fromkeys(ends))
    return config


def _ids(config: dict[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int]


def open_tensors(folder: Path) -> FileTensors:
    """The folder's tensors. Raises MlcrtError for missing shards, tensors missing in them, and pickled weights."""
    if (folder / INDEX).is_file():
        return FileTensors(_sharded(folder))
    files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else _loose(folder)
    if not files:
        pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
        if pickled:
            raise MlcrtError(
                f"{folder} has its weights only as {pickled[0].name}, a pickle that could run code when opened; "
                "convert it to safetensors (transformers: save_pretrained(..., safe_serialization=True)) first."
            )
        raise MlcrtError(f"{folder} has no *.safetensors weights; download the whole model.")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_safetensors(file):
            if tensor.info.name in tensors:
                raise MlcrtError(
                    f"{file} repeats tensor '{tensor.info.name}' of {tensors[tensor.info.name].info.file.name}; "
                    f"remove the file that does not belong to the model, or add {INDEX}."
                )
            tensors[tensor.info.name] = tensor
    return FileTensors(tensors.values())


def _loose(folder: Path) -> list[Path]:
    """Weight files of a folder without index; adapters and Mistral's own second copy are not the model."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith(("adapter_", "consolidated"))]


def _sharded(folder: Path) -> list[StoredTensor]:
    index = folder / INDEX
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        raise MlcrtError(f"{index} has no weight_map of file names; fetch it again.")
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name in dict.fromkeys(weights.values()):
        if Path(name).name != name or not name:  # a shard lies beside its index, never elsewhere
            raise MlcrtError(f"{index} names a shard outside its folder, '{name}'; fetch the model again.")
        if not (folder / name).is_file():
            raise MlcrtError(f"{folder} lacks the shard {name} that {INDEX} lists; finish the download.")
        shards[name] = {tensor.info.name: tensor for tensor in read_safetensors(folder / name)}
    tensors = []
    for tensor, name in weights.items():
        if tensor not in shards[name]:
            raise MlcrtError(f"{folder / name} lacks tensor '{tensor}' that {INDEX} places there; fetch it again.")
        tensors.append(shards[name][tensor])
    return tensors


# --- tokenizer files ---


def tokenizer_files(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """File name → text of the tokenizer files to ship.

    tokenizer.json is passed on unchanged; tokenizer_config.json gets the chat template from wherever it is kept, the
    bos/eos strings and `add_bos_token`. Raises MlcrtError when there is no usable tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tokenizer.model").is_file():
            raise MlcrtError(
                f"{folder} has only tokenizer.model and no tokenizer.json; save the model's fast tokenizer there "
                "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...))."
            )
        raise MlcrtError(f"{folder} has no tokenizer.json; download the tokenizer files of the model too.")
    text = read_text(path)
    tokenizer = parse_tokenizer(text, path)

    settings = read_object(folder / "tokenizer_config.json", optional=True)
    special = read_object(folder / "special_tokens_map.json", optional=True)
    for role in ("bos", "eos", "unk", "pad"):
        key = f"{role}_token"
        token = _token_text(settings.get(key)) or _token_text(special.get(key))
        if token is None and role in ("bos", "eos"):
            token = _token_of_id(tokenizer, config.get(f"{role}_token_id"))
        settings[key] = token
    if not isinstance(settings.get("add_bos_token"), bool):  # the tokenizer's post-processor decides
        ids = tokenizer.encode("a").ids
        bos = settings["bos_token"]
        settings["add_bos_token"] = bool(bos and ids and ids[0] == tokenizer.token_to_id(bos))
    template = _chat_template(folder, settings.get("chat_template"))
    settings.pop("chat_template", None)
    if template is not None:
        settings["chat_template"] = template

    files = {"tokenizer.json": text, "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2)}
    generation = read_object(folder / "generation_config.json", optional=True)
    if generation:
        files["generation_config.json"] = json.dumps(generation, ensure_ascii=False, indent=2)
    return files


def parse_tokenizer(text: str, path: Path) -> Any:
    """tokenizers.Tokenizer of a tokenizer.json's text; MlcrtError naming `path` when the library refuses it."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every kind of malformed file
        raise MlcrtError(f"{path} does not hold a usable tokenizer ({str(error)[:120]}); fetch it again.") from error


def _token_text(value: Any) -> str | None:
    """A special token is a string or an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _token_of_id(tokenizer: Any, value: Any) -> str | None:
    for item in value if isinstance(value, list) else [value]:
        if type(item) is int and 0 <= item < 1 << 32:
            return tokenizer.id_to_token(item)
    return None


def _chat_template(folder: Path, inline: Any) -> str | None:
    """The template text; a file of its own wins over tokenizer_config.json, as it does in transformers."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return read_text(own)
    if (folder / "chat_template.json").is_file():
        inline = read_object(folder / "chat_template.json").get("chat_template", inline)
    if isinstance(inline, list):  # [{"name": "default", "template": …}, {"name": "tool_use", …}]
        named = {entry.get("name"): entry.get("template") for entry in inline if isinstance(entry, dict)}
        inline = named.get("default", next(iter(named.values()), None))
    return inline if isinstance(inline, str) and inline else None
