"""Tokens to text while they arrive: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves, the others for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(0x100 + i): b for i, b in enumerate(hidden)}}


class TokenTable:
    """Token id → the UTF-8 bytes it stands for, read off the decoder in tokenizer.json.

    Byte-level decoders (GPT-2, Llama 3, Qwen) and SentencePiece ones (Replace, ByteFallback, Fuse, Strip; Metaspace)
    are turned into bytes here, so that text can be cut at any byte. `exact` is false for any other decoder.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.exact = True
        self.strip: tuple[str, int] = ("", 0)  # this character, so often, is taken off the front of the whole text
        self.strip_first_token = ""  # this character is taken out of the first token
        self._alphabet: dict[str, int] = {}
        self._replace: list[tuple[str, str]] = []
        self._byte_fallback = False
        self._cache: dict[int, bytes] = {}
        self._read(_decoder_steps(tokenizer))

    def _read(self, steps: list[dict]) -> None:
        fused = False
        for step in steps:
            kind = step.get("type")
            if kind == "ByteLevel" and len(steps) == 1:
                self._alphabet = _byte_level_alphabet()
            elif kind == "Replace" and "String" in step.get("pattern", {}) and not (self._byte_fallback or fused):
                self._replace.append((step["pattern"]["String"], step["content"]))
            elif kind == "ByteFallback" and not fused:
                self._byte_fallback = True
            elif kind == "Metaspace":
                self._replace.append((step["replacement"], " "))
                if step.get("prepend_scheme", "always") != "never":
                    self.strip_first_token = " "
            elif kind == "Fuse":
                fused = True
            elif kind == "Strip" and fused and step.get("stop", 0) == 0:
                self.strip = (step["content"], step["start"])
            else:
                self.exact = False
        self.exact = self.exact and bool(steps)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token inside a text; empty for an id the tokenizer lacks (padded vocabularies)."""
        piece = self._cache.get(token)
        if piece is None:
            piece = self._cache[token] = self._bytes_of(token)
        return piece

    def _bytes_of(self, token: int) -> bytes:
        text = self.tokenizer.id_to_token(token)
        if text is None:
            return b""
        if not self.exact:
            return self.tokenizer.decode([token], skip_special_tokens=False).encode()
        if self._alphabet:
            if all(c in self._alphabet for c in text):
                return bytes(self._alphabet[c] for c in text)
            return text.encode()  # an added token is stored as it is
        for old, new in self._replace:
            text = text.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(text) if self._byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.encode()


def _decoder_steps(tokenizer: Tokenizer) -> list[dict]:
    """The decoder's parts as in tokenizer.json, sequences flattened."""
    if tokenizer.decoder is None:
        return []
    state = tokenizer.decoder.__getstate__()
    pending, steps = [json.loads(state)], []
    while pending:
        step = pending.pop(0)
        if step.get("type") == "Sequence":
            pending = step["decoders"] + pending
        else:
            steps.append(step)
    return steps


class Detokenizer:
    """The text of one answer, piece by piece.

    The pieces put together, `finish` included, are what `tokenizer.decode` gives for all the tokens, with one
    difference: of a run of byte tokens that is not UTF-8, only the offending bytes become U+FFFD, not the whole run.
    `continuation` keeps the space at the front that SentencePiece decoders take off: the text goes on from another.
    `keep` are special tokens to show all the same (only where the decoder is `exact`).
    """

    def __init__(
        self,
        table: TokenTable,
        skip_special: bool = True,
        continuation: bool = False,
        keep: frozenset[int] = frozenset(),
    ):
        self._table = table
        self._skip = table.special - keep if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = 0 if continuation else table.strip[1]
        self._first = "" if continuation else table.strip_first_token
        self._stream = None
        if not table.exact:
            from tokenizers.decoders import DecodeStream

            self._stream = DecodeStream(skip_special_tokens=skip_special)

    def add(self, token: int) -> str:
        """The text that is certain now that `token` is known; empty while a character is incomplete."""
        if self._stream is not None:
            return self._stream.step(self._table.tokenizer, token) or ""
        if token in self._skip:
            return ""
        piece = self._table.bytes_of(token)
        if self._first and piece:
            piece = piece.replace(self._first.encode(), b"")
            self._first = ""
        return self._stripped(self._utf8.decode(piece))

    def finish(self) -> str:
        """What an unfinished character at the end amounts to: U+FFFD."""
        return "" if self._stream is not None else self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(self._table.strip[0]):
                self._strip = 0
                break
            text = text[len(self._table.strip[0]) :]
            self._strip -= 1
        return text


def decode(table: TokenTable, tokens: Iterable[int], skip_special: bool = True, continuation: bool = False) -> str:
    """The text of `tokens` in one go."""
    detokenizer = Detokenizer(table, skip_special, continuation)
    return "".join(map(detokenizer.add, tokens)) + detokenizer.finish()


class StopMatcher:
    """Passes text through until one of `stops` is complete, and never passes a part of it.

    The stop string that is complete first wins, the longest if two are complete at once, so the outcome does not
    depend on how the text was cut. Text that may still become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """What can be shown now. After a hit (`self.hit`) nothing comes any more."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.hit = min(found)
            self._held = ""
            return text[:at]
        hold = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
