"""The vocabulary in a GGUF file rebuilt as a tokenizer.json of the `tokenizers` library.

Two kinds exist: "gpt2", byte-level BPE with merges, whose word-splitting patterns GGUF names but does not hold; and
"llama", SentencePiece BPE, which has scores for merges. Written against the key list of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the patterns are those of the models' own tokenizer.json.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.formats.gguf_file import GGUFFile
from mlcrt.formats.huggingface import parse_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "\u2581"  # SentencePiece's mark for a blank

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL
QWEN2_WORDS = SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{{0}}|"
TEKKEN_WORDS = CASED.replace("{0}", "") + r"\p{N}|" + TAIL_SLASH
GPT4O_WORDS = CASED.replace("{0}", SUFFIXES + "?") + r"\p{N}{1,3}|" + TAIL_SLASH
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")
PATTERNS: dict[str, tuple[str, ...]] = {  # tokenizer.ggml.pre → patterns applied one after the other
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3", "lfm2"), (LLAMA3_WORDS,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), (QWEN2_WORDS,)),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), (GPT2_WORDS,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b", "exaone"), (r"\p{N}", GPT2_WORDS)
    ),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O_WORDS,)),
    "tekken": (TEKKEN_WORDS,),
    "deepseek-v3": DEEPSEEK3,
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "default": DEFAULT,
}
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2", "tekken"}  # a word in the vocabulary is one token
ADDS_BOS = WHOLE_WORDS  # when the file does not say
COMPOSES = {"qwen2", "deepseek-r1-qwen"}  # their tokenizer.json normalises to NFC

SAMPLING = (
    ("temperature", "temp", float),
    ("top_k", "top_k", int),
    ("top_p", "top_p", float),
    ("min_p", "min_p", float),
)


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """File name → text: tokenizer.json, tokenizer_config.json and, if sampling is recommended, generation_config.json.

    Raises MlcrtError when there is no vocabulary or it is of a kind mlcrt cannot rebuild.
    """
    vocabulary = _Vocabulary(file)
    text = file.get("tokenizer.huggingface.json", str)
    if text is None:
        text = json.dumps(vocabulary.build(), ensure_ascii=False, separators=(",", ":"))
    parse_tokenizer(text, file.path)
    files = {"tokenizer.json": text, "tokenizer_config.json": _dump(vocabulary.settings())}
    sampling = {name: file.get(f"general.sampling.{key}", kind) for name, key, kind in SAMPLING}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if sampling:
        files["generation_config.json"] = _dump(sampling)
    return files


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


class _Vocabulary:
    def __init__(self, file: GGUFFile):
        self.file = file
        self.kind = file.get("tokenizer.ggml.model", str)
        self.tokens: list[str] = file.get("tokenizer.ggml.tokens", list, [])
        if self.kind is None or not self.tokens:
            raise MlcrtError(f"{file.path} holds no tokenizer; convert the model to GGUF with its vocabulary.")
        if self.kind not in ("gpt2", "llama"):
            raise MlcrtError(
                f"{file.path}: tokenizer kind '{self.kind[:20]}' is not supported (only gpt2 and llama); "
                "use the model's Hugging Face folder."
            )
        if not all(isinstance(token, str) for token in self.tokens):
            raise self.bad("its vocabulary is not a list of texts")
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.bad("its vocabulary holds a token twice")
        self.pre = file.get("tokenizer.ggml.pre", str, "default")
        self.types = self.vector("token_type", "i")
        self.bos, self.eos, self.eot = (self.special(role) for role in ("bos", "eos", "eot"))
        known_to_add = self.kind == "llama" or self.pre in ADDS_BOS
        self.add_bos = file.get("tokenizer.ggml.add_bos_token", bool, known_to_add) and self.bos is not None
        self.add_eos = file.get("tokenizer.ggml.add_eos_token", bool, False) and self.eos is not None

    def bad(self, what: str) -> MlcrtError:
        return MlcrtError(f"{self.file.path}: {what}; convert the model to GGUF again.")

    def vector(self, key: str, kind: str) -> np.ndarray | None:
        value = self.file.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind != kind or len(value) != len(self.tokens):
            raise self.bad(f"its tokenizer.ggml.{key} does not fit the {len(self.tokens)} tokens")
        return value

    def special(self, role: str) -> str | None:
        """The text of a special token by role ("bos", "unknown", …)."""
        number = self.file.get(f"tokenizer.ggml.{role}_token_id", int)
        return self.tokens[number] if number is not None and 0 <= number < len(self.tokens) else None

    def type_of(self, number: int) -> int:
        if self.types is not None:
            return int(self.types[number])
        if self.tokens[number] in (self.bos, self.eos, self.special("unknown")):
            return CONTROL
        return BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", self.tokens[number]) else NORMAL

    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        roles = {"bos": self.bos, "eos": self.eos, "eot": self.eot}
        roles |= {"unk": self.special("unknown"), "pad": self.special("padding")}
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        settings |= {f"{role}_token": token for role, token in roles.items() if token is not None}
        settings |= {"add_bos_token": self.add_bos, "add_eos_token": self.add_eos}
        template = self.file.get("tokenizer.chat_template", str)
        if template:
            settings["chat_template"] = template
        return settings

    # --- tokenizer.json ---

    def build(self) -> dict[str, Any]:
        parts = self.sentencepiece() if self.kind == "llama" else self.byte_level()
        return {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": self.added_tokens(),
            "post_processor": self.post_processor(), **parts,
        }  # fmt: skip

    def added_tokens(self) -> list[dict[str, Any]]:
        """Tokens matched in the text before BPE: control tokens (special) and user-defined ones."""
        # Phi-3's own tokenizer.json lets its chat marks swallow the blanks after them; GGUF has no place for that.
        phi3 = self.kind == "llama" and self.file.metadata.get("general.architecture") == "phi3"
        added = []
        for number, token in enumerate(self.tokens):
            kind = self.type_of(number)
            if kind not in (CONTROL, USER_DEFINED, UNKNOWN) or not token:
                continue
            strip = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
            added.append(
                {
                    "id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": strip,
                    "normalized": False, "special": kind != USER_DEFINED,
                }
            )  # fmt: skip
        return added

    def post_processor(self) -> dict[str, Any] | None:
        before = [self.bos] if self.add_bos else []
        after = [self.eos] if self.add_eos else []
        if not before and not after:
            return None

        def template(*sequences: str) -> list[dict[str, Any]]:
            items: list[dict[str, Any]] = []
            for number, sequence in enumerate(sequences):
                items += [{"SpecialToken": {"id": token, "type_id": number}} for token in before]
                items.append({"Sequence": {"id": sequence, "type_id": number}})
                items += [{"SpecialToken": {"id": token, "type_id": number}} for token in after]
            return items

        used = dict.fromkeys(before + after)
        return {
            "type": "TemplateProcessing", "single": template("A"), "pair": template("A", "B"),
            "special_tokens": {token: {"id": token, "ids": [self.ids[token]], "tokens": [token]} for token in used},
        }  # fmt: skip

    def byte_level(self) -> dict[str, Any]:
        merges = self.file.get("tokenizer.ggml.merges", list)
        if merges is None or not all(isinstance(merge, str) for merge in merges):
            raise self.bad("it has no tokenizer.ggml.merges")
        pairs = []
        for merge in merges:
            cut = merge.find(" ", 1)
            if cut < 0:
                raise self.bad(f"its merge '{merge[:20]}' has no second half")
            pairs.append([merge[:cut], merge[cut + 1 :]])
        if self.pre not in PATTERNS:
            logging.getLogger("mlcrt").warning(
                "%s: its way to split words, '%s', is unknown; splitting as GPT-2 does, which may cost quality.",
                self.file.path, self.pre[:40],
            )  # fmt: skip
        elif "tokenizer.ggml.pre" not in self.file.metadata:
            logging.getLogger("mlcrt").warning(
                "%s does not say how to split words; splitting as llama.cpp does then, which may cost quality.",
                self.file.path,
            )
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in PATTERNS.get(self.pre, (GPT2_WORDS,))
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return {
            "normalizer": {"type": "NFC"} if self.pre in COMPOSES else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": self.pre in WHOLE_WORDS, "vocab": self.ids, "merges": pairs,
            },
        }  # fmt: skip

    def sentencepiece(self) -> dict[str, Any]:
        scores = self.vector("scores", "f")
        if scores is None or not np.isfinite(scores).all():
            raise self.bad("its SentencePiece vocabulary has no usable scores")
        prefix = self.file.get("tokenizer.ggml.add_space_prefix", bool, True)
        blanks = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
        if prefix:
            blanks.insert(0, {"type": "Prepend", "prepend": SPACE})
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unknown = next((token for n, token in enumerate(self.tokens) if self.type_of(n) == UNKNOWN), None)
        return {
            "normalizer": {"type": "Sequence", "normalizers": blanks},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                "vocab": self.ids, "merges": self.merges(scores),
            },
        }  # fmt: skip

    def merges(self, scores: np.ndarray) -> list[list[str]]:
        """SentencePiece joins the adjacent pair whose union scores highest, so each way to split a piece is a merge."""
        ids = {token: n for token, n in self.ids.items() if self.type_of(n) == NORMAL}
        found = []
        for token, number in ids.items():
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in ids and right in ids:
                    found.append((-float(scores[number]), -len(left), left, right))
        found.sort(key=lambda merge: merge[:2])
        return [[left, right] for _, _, left, right in found]
