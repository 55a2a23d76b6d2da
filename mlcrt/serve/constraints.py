"""Grammars that an answer has to follow, by llguidance (https://github.com/guidance-ai/llguidance).

A grammar becomes a mask over the vocabulary for every step: the scheduler applies it before it samples.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.serve.errors import ApiError, bad_request

# Between two tokens of JSON a model may put a blank, or a line break and indentation, but not whitespace without end.
_WHITESPACE = r" |\r?\n[ \t]{0,20}"
_CACHED = 64  # compiled grammars that are kept
# llguidance resolves rules and $refs recursively in native code: a chain of 1,000 overran a stack of 8 MB and took the
# process with it. What these limits let through was measured to need less than 64 MB.
_STACK = 256 << 20
MAX_GRAMMAR, MAX_SCHEMA = 32 << 10, 256 << 10  # characters


class GrammarConstraint:
    """One answer's way through a grammar: the scheduler's `Constraint`, used by its thread alone."""

    def __init__(self, matcher: Any):
        self._matcher = matcher
        self.error = ""

    def mask(self, out: np.ndarray) -> None:
        """Fill int32 [ceil(vocab / 32)], bit t % 32 of word t // 32 for token t."""
        self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        self._check()

    def accept(self, token: int) -> None:
        """Go on with `token`."""
        self._matcher.consume_token(int(token))
        self._check()

    @property
    def finished(self) -> bool:
        """Nothing may follow; also after an error, for the grammar says nothing any more."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if not self.error and self._matcher.is_error():
            self.error = self._matcher.get_error().partition("\n")[0] or "unknown"


class Grammars:
    """Makes constraints for one tokenizer, and keeps what it compiled.

    `vocab` is the number of logits, which may be more than the tokenizer has tokens. Tokens that the tokenizer calls
    special are no text for a grammar: only `<[ID]>` in Lark names them. Safe to use from several threads.
    """

    def __init__(self, tokenizer: ModelTokenizer, vocab: int):
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._native: Any = None
        self._made: OrderedDict[str, Any] = OrderedDict()
        self._compiler = _thread_with_stack(_STACK)

    def json(self, schema: dict[str, Any] | None, param: str, strict: bool = True) -> GrammarConstraint:
        """JSON that fits a JSON Schema; None: any object. Not `strict`: keywords that are not known are passed over."""
        text = schema_text({"type": "object"} if schema is None else schema, param, strict)
        return self.lark(f"start: %json {text}", param)

    def grammar(self, kind: str, text: str, param: str = "grammar") -> GrammarConstraint:
        """`kind` is 'lark', 'gbnf', 'regex', or 'auto' for either of the first two."""
        if len(text) > MAX_GRAMMAR:
            raise bad_request(f"The grammar has {len(text)} characters; {MAX_GRAMMAR} are allowed.", param)
        return self._constraint("grammar" if kind in ("auto", "gbnf") else kind, text, param)

    def lark(self, text: str, param: str) -> GrammarConstraint:
        """A grammar made here, of parts whose size was checked."""
        return self._constraint("lark", text, param)

    def close(self) -> None:
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def _constraint(self, kind: str, text: str, param: str) -> GrammarConstraint:
        key = f"{kind} {text}"
        with self._lock:
            ready = self._made.get(key)
            if ready is not None:
                self._made.move_to_end(key)
        if ready is None:
            ready = self._compiler.submit(self._compile, kind, text, param).result()
            with self._lock:
                self._made[key] = ready
                while len(self._made) > _CACHED:
                    self._made.popitem(last=False)
        with self._lock:  # copying while another thread copies is not promised to be safe
            return GrammarConstraint(ready.deep_copy())

    def _compile(self, kind: str, text: str, param: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits, grammar_from

        try:
            grammar = grammar_from(kind, text)
        except ValueError as error:
            raise bad_request(f"The grammar cannot be read: {_first_line(error)}.", param) from None
        except RecursionError:
            raise bad_request("The grammar is nested too deeply.", param) from None
        matcher = LLMatcher(self._llguidance(), grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise bad_request(f"The grammar cannot be used: {_first_line(matcher.get_error())}.", param)
        return matcher

    def _llguidance(self) -> Any:
        """The tokenizer as llguidance wants it: the bytes of every token as they will be shown, made once."""
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._native is None:
                if not self._tokenizer.table.exact:
                    raise ApiError(
                        400, "This model's tokenizer cannot be used with grammars, JSON formats or forced tools.",
                        "unsupported_parameter",
                    )  # fmt: skip
                vocabulary = _Vocabulary(self._tokenizer, self._vocab)
                ends = sorted(i for i in self._tokenizer.stop_ids if i < self._vocab)
                self._native = LLTokenizer(TokenizerWrapper(vocabulary), self._vocab, eos_token=ends)
            return self._native


class _Vocabulary:
    """What llguidance's TokenizerWrapper reads."""

    def __init__(self, tokenizer: ModelTokenizer, vocab: int):
        table, ends = tokenizer.table, tokenizer.stop_ids
        # Text that looks like a special token is text here, and has to be split as such.
        self._tokenizer = type(tokenizer.raw).from_str(tokenizer.raw.to_str())
        self._tokenizer.encode_special_tokens = True
        self.eos_token_id = min(ends, default=0)
        self.bos_token_id = tokenizer.bos
        self.special_token_ids = sorted({i for i in {*table.special, *ends} if i < vocab})
        self.tokens = [table.bytes_of(i) for i in range(vocab)]

    def __call__(self, text: str) -> Iterable[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # TokenizerWrapper tries which one is taken
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def schema_text(schema: dict[str, Any], param: str, strict: bool = True) -> str:
    """A JSON Schema as text for `%json` in a Lark grammar, with bounded whitespace between the answer's tokens."""
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    text = json.dumps({**schema, "x-guidance": options})
    if len(text) > MAX_SCHEMA:
        raise bad_request(f"The JSON schema has {len(text)} characters; {MAX_SCHEMA} are allowed.", param)
    return text


def _thread_with_stack(size: int) -> ThreadPoolExecutor:
    """An executor with one thread, whose stack has `size` bytes (address space; memory only as far as it is used)."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
    before = threading.stack_size(size)
    try:
        pool.submit(int).result()
    finally:
        threading.stack_size(before)
    return pool


def _first_line(error: object) -> str:
    line = str(error).strip().partition("\n")[0]
    return line.rpartition("failed to compile JSON schema: ")[2].strip().rstrip(".:")[:300]
