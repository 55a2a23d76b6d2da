"""The tokenizer of a compiled model with what belongs to it: special strings, chat template, where an answer ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlcrt.errors import MlcrtError
from mlcrt.runtime.template import ChatTemplate
from mlcrt.runtime.text import TokenTable, decode

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# Ends of a turn that models emit though their eos_token is another (often only the end of a document). They count
# when they are special tokens and the chat template writes them.
_TURN_ENDS = "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>", "<|return|>"


class ModelTokenizer:
    """Text to tokens and back for the model in `folder` (tokenizer.json, tokenizer_config.json).

    `eos` adds token ids (from the model's config) to those that end an answer. `stop_ids` are all of these;
    `defaults` holds the sampling settings that generation_config.json recommends. Raises `MlcrtError`.
    """

    def __init__(self, folder: str | Path, eos: Iterable[int] = (), name: str | None = None):
        from tokenizers import Tokenizer

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise MlcrtError(
                f"{path} is missing; convert the model again, or copy the tokenizer.json of the model there."
            )
        try:
            self.raw = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise MlcrtError(f"{path} is not a usable tokenizer ({error}); convert the model again.") from None
        self.raw.no_truncation()
        self.raw.no_padding()
        self.name = name or folder.name
        self.config = _json(folder / "tokenizer_config.json")
        generation = _json(folder / "generation_config.json")
        self.special = {key: text for key in _SPECIAL if (text := _token_text(self.config.get(key)))}
        self.template = ChatTemplate(self.config.get("chat_template"), self.special, self.name)
        self.table = TokenTable(self.raw)
        self.stop_ids = frozenset(self._stop_ids(generation, eos))
        self.defaults = _defaults(generation)
        self.bos = self._id(self.special.get("bos_token", "")) if self._adds_bos() else None

    def encode(self, text: str) -> list[int]:
        """Tokens of a rendered prompt: special strings in it are special tokens, nothing is added."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        """Tokens of ordinary text, with the beginning-of-text token in front if the model wants one."""
        return ([] if self.bos is None else [self.bos]) + self.encode(text)

    def encode_after(self, text: str, known: Iterable[tuple[str, Sequence[int]]]) -> list[int]:
        """Tokens of `text`, where beginnings that are `known` as (text, tokens) keep their tokens.

        That way an answer's own tokens stay in the next prompt: encoding its text anew may split it otherwise. It is
        done only where it cannot change how the rest is split, which is when the rest begins with an added token.
        """
        for start, tokens in sorted(known, key=lambda pair: -len(pair[0])):
            rest = text[len(start) :]
            if text.startswith(start) and (not rest or rest.startswith(self._added)):
                return [*tokens, *self.encode(rest)]
        return self.encode(text)

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        """The text of `tokens`."""
        return decode(self.table, tokens, skip_special)

    @cached_property
    def _added(self) -> tuple[str, ...]:
        """Added tokens that are found whatever stands around them, and take no space from the text before."""
        added = self.raw.get_added_tokens_decoder().values()
        return tuple(t.content for t in added if t.special and t.content and not (t.lstrip or t.single_word))

    def _id(self, text: str) -> int | None:
        return self.raw.token_to_id(text) if text else None

    def _adds_bos(self) -> bool:
        wanted = self.config.get("add_bos_token")
        if wanted is None:  # not said there: then the post-processor in tokenizer.json decides
            bos = self._id(self.special.get("bos_token", ""))
            return bos is not None and self.raw.encode("a").ids[:1] == [bos]
        return bool(wanted)

    def _stop_ids(self, generation: dict, eos: Iterable[int]) -> Iterable[int]:
        yield from eos
        listed = generation.get("eos_token_id")
        yield from listed if isinstance(listed, list) else [] if listed is None else [listed]
        own = self._id(self.special.get("eos_token", ""))
        if own is not None:
            yield own
        for text in _TURN_ENDS:
            token = self._id(text)
            if token in self.table.special and text in self.template.text:
                yield token


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise MlcrtError(f"{path} cannot be read as JSON ({error}); convert the model again.") from None
    if not isinstance(data, dict):
        raise MlcrtError(f"{path} holds a JSON {type(data).__name__} where an object belongs; convert the model again.")
    return data


def _token_text(value: Any) -> str:
    """A special token is written as text, or as an object with a `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _defaults(generation: dict) -> dict[str, Any]:
    if generation.get("do_sample") is False:
        return {"temperature": 0.0}
    names = "temperature", "top_p", "top_k", "min_p", "repetition_penalty"
    found = {name: generation[name] for name in names if isinstance(generation.get(name), (int, float))}
    return {name: int(value) if name == "top_k" else value for name, value in found.items()}
