"""Perplexity of a text: exp of the mean negative log-likelihood per token, in windows of fixed length.

    perplexity = exp(-1/N * sum over scored tokens t of ln p(t | the tokens before it in its window))
    bits per byte = -sum ln p / ln 2 / (UTF-8 bytes of the scored tokens)

Windows. The text is tokenised once. Every window is `window` tokens, the next one starts `stride` tokens on, and what
an earlier window has scored is not scored again (https://huggingface.co/docs/transformers/perplexity). A model with a
beginning-of-text token gets it in front of every window, in the place of one text token, so that each text token is
scored; without one the first token of the text has nothing before it and is not scored, nor is, with stride = window,
the first of every window.

llama.cpp's way (`llama-perplexity`): windows do not overlap, a last incomplete one is left out, the beginning-of-text
token replaces a window's first token, and only the second half is scored: targets from window // 2 + 1 on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.tokenizer import ModelTokenizer

_WINDOW, _LLAMA_WINDOW = 1024, 512  # unless told otherwise, or the context is smaller


@dataclass(frozen=True)
class Window:
    """Tokens to run from an empty cache; those at `first` and later are scored."""

    tokens: list[int]
    first: int


def perplexity(
    engine: Any,
    tokenizer: ModelTokenizer,
    path: Path,
    window: int | None = None,
    stride: int | None = None,
    llama_cpp: bool = False,
    limit: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score the text file `path`; a JSON-ready dict with `perplexity`, its standard error, `bits_per_byte`, counts."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise MlcrtError(f"{path} is not UTF-8 text; convert it first.") from None
    window = window or min(_LLAMA_WINDOW if llama_cpp else _WINDOW, engine.context)
    if window > engine.context:
        raise UsageError(f"A window of {window} tokens does not fit into the context of {engine.context}.")
    if window < 2 or (stride or 1) > window:
        raise UsageError("--window must be 2 or more, and --stride not larger than the window.")
    if llama_cpp and stride:
        raise UsageError("--stride does not go with --llama-cpp, whose windows do not overlap.")
    tokens = tokenizer.encode(text)
    bos = tokenizer.bos
    cut = list(llama_windows(tokens, window, bos) if llama_cpp else windows(tokens, window, stride or window, bos))
    if not cut:
        raise MlcrtError(f"{path} has {len(tokens)} tokens, too few for windows of {window}; use a longer text.")
    started, losses, scored_bytes = time.perf_counter(), [], 0
    for number, part in enumerate(cut[:limit], 1):
        losses.append(score(engine, part))
        scored_bytes += sum(len(tokenizer.table.bytes_of(token)) for token in part.tokens[part.first :])
        if number % 10 == 0 or number == len(cut[:limit]):
            so_far = math.exp(np.concatenate(losses).mean())
            report(f"window {number} of {len(cut[:limit])}: perplexity {so_far:.4f}")
    loss = np.concatenate(losses)
    mean = float(loss.mean())
    error = float(loss.std(ddof=1) / math.sqrt(loss.size)) if loss.size > 1 else 0.0
    return {
        "text": path.name,
        "perplexity": math.exp(mean),
        "standard_error": math.exp(mean) * error,
        "nll_per_token": mean,
        "bits_per_byte": float(loss.sum()) / math.log(2) / scored_bytes if scored_bytes else None,
        "scored_tokens": int(loss.size),
        "scored_bytes": scored_bytes,
        "text_tokens": len(tokens),
        "windows": len(losses),
        "window": window,
        "stride": stride or window,
        "method": "llama.cpp" if llama_cpp else "all tokens",
        "tokens_per_s": sum(len(part.tokens) for part in cut[:limit]) / (time.perf_counter() - started),
    }


def windows(tokens: list[int], window: int, stride: int, bos: int | None) -> Iterator[Window]:
    """Cut `tokens` for scoring all of them (see the module)."""
    front = [] if bos is None else [bos]
    room = window - len(front)
    stride = min(stride, room)
    done = 0
    for start in range(0, len(tokens), stride):
        end = min(start + room, len(tokens))
        # a token with nothing before it in its window cannot be scored
        first = max(done - start, 0) + len(front) if front else max(done - start, 1)
        if first < end - start + len(front):
            yield Window([*front, *tokens[start:end]], first)
        done = end
        if end == len(tokens):
            return


def llama_windows(tokens: list[int], window: int, bos: int | None) -> Iterator[Window]:
    """Cut `tokens`, which do not begin with `bos`, as llama.cpp does (see the module)."""
    tokens = tokens if bos is None else [bos, *tokens]
    for start in range(0, len(tokens) - window + 1, window):
        part = tokens[start : start + window]
        yield Window(part if bos is None else [bos, *part[1:]], window // 2 + 1)


def score(engine: Any, part: Window) -> np.ndarray:
    """Negative natural-log likelihoods, float64 [len(part.tokens) - part.first], of the scored tokens."""
    engine.rollback(0)
    inputs, targets, out = part.tokens[:-1], part.tokens[1:], []
    for start in range(0, len(inputs), engine.score_chunk):
        logits = engine.score(inputs[start : start + engine.score_chunk])
        skip = max(part.first - 1 - start, 0)
        if skip < len(logits):
            out.append(losses(logits[skip:], targets[start + skip : start + len(logits)]))
    return np.concatenate(out)


def losses(logits: np.ndarray, targets: list[int]) -> np.ndarray:
    """-log softmax(logits)[target] for float32 logits [n, vocab]; float64 [n]. Raises `MlcrtError` for NaN."""
    peak = logits.max(axis=1)
    total = np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64)
    out = peak.astype(np.float64) + np.log(total) - logits[np.arange(len(targets)), targets].astype(np.float64)
    if not np.isfinite(out).all():
        raise MlcrtError("The model returned logits that are not finite; its weights are damaged or overflow.")
    return out


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people."""
    return [
        ("perplexity", f"{result['perplexity']:.4f} ± {result['standard_error']:.4f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}" if result["bits_per_byte"] is not None else "-"),
        ("scored", f"{result['scored_tokens']} of {result['text_tokens']} tokens in {result['windows']} windows"),
        ("window", f"{result['window']} tokens, stride {result['stride']}, {result['method']}"),
        ("speed", f"{result['tokens_per_s']:.0f} tok/s"),
    ]
