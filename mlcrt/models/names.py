"""Parameters of the decoder, and the checkpoint tensors they are made of.

A checkpoint here means Hugging Face tensor names (GGUF readers map theirs to them). Weights are [out, in], row-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.models.config import DecoderConfig
from mlcrt.models.families import FAMILIES, MODULES

PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")
LM_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")
# Buffers that old checkpoints carry along; the decoder computes them itself.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


class TensorInfo(Protocol):
    name: str
    shape: tuple[int, ...]
    file: object


class TensorSource(Protocol):
    """What this module needs of mlcrt.formats.TensorSource."""

    def names(self) -> list[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...
    def load(self, name: str, rows: slice | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class Parameter:
    """One array of the decoder.

    kind: "linear", "embedding", "norm" or "bias". parts: rows that each packed part contributes (q, k, v; gate, up),
    per expert for 3-D shapes. transform: None, or "plus_one" where the checkpoint stores a norm weight less 1.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: tuple[int, ...]
    transform: str | None = None


@dataclass(frozen=True)
class Piece:
    """A checkpoint tensor, or `rows` of its dimension 0, and the shape that the whole tensor must have."""

    tensor: str
    shape: tuple[int, ...]
    rows: slice | None = None


def parameters(config: DecoderConfig) -> list[Parameter]:
    """All parameters of the decoder in the order in which they are stored and passed."""
    result = [Parameter("embed.weight", (config.vocab, config.hidden), "embedding", (config.vocab,))]
    for i in range(config.layers):
        result += _layer(config, f"layers.{i}.")
    result.append(_norm(config, "final_norm", config.hidden))
    if not config.tie_embeddings:
        result.append(Parameter("lm_head.weight", (config.vocab, config.hidden), "linear", (config.vocab,)))
    return result


def _norm(config: DecoderConfig, name: str, size: int) -> Parameter:
    return Parameter(name, (size,), "norm", (size,), "plus_one" if config.norm_plus_one else None)


def _layer(config: DecoderConfig, layer: str) -> Iterator[Parameter]:
    def linear(name: str, parts: tuple[int, ...], inner: int, bias: bool = False) -> Iterator[Parameter]:
        yield Parameter(f"{layer}{name}.weight", (sum(parts), inner), "linear", parts)
        if bias:
            yield Parameter(f"{layer}{name}.bias", (sum(parts),), "bias", parts)

    def experts(name: str, parts: tuple[int, ...], inner: int) -> Parameter:
        return Parameter(f"{layer}experts.{name}.weight", (config.moe.experts, sum(parts), inner), "linear", parts)

    hidden, q, kv = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield _norm(config, f"{layer}attn_norm", hidden)
    yield from linear("qkv", (q, kv, kv), hidden, config.qkv_bias)
    if config.qk_norm:
        yield _norm(config, f"{layer}q_norm", config.head_dim)
        yield _norm(config, f"{layer}k_norm", config.head_dim)
    yield from linear("o", (hidden,), q, config.o_bias)
    if config.post_norms:
        yield _norm(config, f"{layer}attn_post_norm", hidden)
    yield _norm(config, f"{layer}mlp_norm", hidden)
    if config.moe:
        width = config.moe.intermediate
        yield from linear("router", (config.moe.experts,), hidden)
        yield experts("gate_up", (width, width), hidden)
        yield experts("down", (hidden,), width)
    else:
        yield from linear("gate_up", (config.intermediate, config.intermediate), hidden, config.mlp_bias)
        yield from linear("down", (hidden,), config.intermediate, config.mlp_bias)
    if config.post_norms:
        yield _norm(config, f"{layer}mlp_post_norm", hidden)


def sources(config: DecoderConfig, tensors: TensorSource) -> dict[str, list[Piece]]:
    """Per parameter, the pieces of the checkpoint whose rows, one after the other, make it up.

    A 3-D experts parameter is the same: expert 0's gate rows, its up rows, expert 1's … Of the alternatives the most
    complete one counts, or else the family's usual one, so that `verify` can name what is missing.
    """
    names = {**MODULES, **FAMILIES[config.family].names}
    prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in tensors), PREFIXES[0])
    result = {}
    for parameter in parameters(config):
        if parameter.name == "lm_head.weight":
            options = [[Piece(name, parameter.shape)] for name in LM_HEADS]
        else:
            base, key = prefix, parameter.name
            if key.startswith("layers."):
                _, i, key = key.split(".", 2)
                base = f"{prefix}layers.{i}."
            options = [_pieces(parameter, base, alternative) for alternative in names[key]]
        result[parameter.name] = max(options, key=lambda pieces: sum(p.tensor in tensors for p in pieces) / len(pieces))
    return result


def _pieces(parameter: Parameter, base: str, alternative: tuple[str, ...]) -> list[Piece]:
    parts = parameter.parts if len(alternative) > 1 else (sum(parameter.parts),)
    named = list(zip(alternative, parts, strict=True))
    if len(parameter.shape) < 3:
        return [Piece(base + name, (rows, *parameter.shape[1:])) for name, rows in named]
    experts, inner = parameter.shape[0], parameter.shape[2]
    if "{e}" in alternative[0]:
        return [Piece(base + name.format(e=e), (rows, inner)) for e in range(experts) for name, rows in named]
    if len(named) == 1:
        return [Piece(base + alternative[0], parameter.shape)]
    return [
        Piece(base + name, (experts, rows, inner), slice(e, e + 1)) for e in range(experts) for name, rows in named
    ]


def verify(config: DecoderConfig, tensors: TensorSource) -> dict[str, list[Piece]]:
    """Check that the checkpoint has every tensor of the decoder in its shape and none that the decoder would ignore.

    Returns `sources`. Raises MlcrtError, naming the tensor and the file, for the first that does not fit.
    """
    result = sources(config, tensors)
    used = set()
    for pieces in result.values():
        for piece in pieces:
            if piece.tensor in used:
                continue
            used.add(piece.tensor)
            if piece.tensor not in tensors:
                raise MlcrtError(
                    f"Tensor {piece.tensor} {_text(piece.shape)} is missing from {_location(tensors)}: the file is"
                    f" incomplete or does not belong to its config.json ({config.family})."
                )
            info = tensors.info(piece.tensor)
            if tuple(info.shape) != piece.shape:
                raise MlcrtError(
                    f"Tensor {piece.tensor} in {info.file} has shape {_text(info.shape)}, but config.json"
                    f" ({config.family}) asks for {_text(piece.shape)}; fetch config.json and weights of one model."
                )
    layers = result["layers.0.attn_norm"][0].tensor.split("layers.0.")[0] + "layers."
    for name in tensors.names():
        if name.startswith(layers) and name not in used and not name.endswith(IGNORED_SUFFIXES):
            raise MlcrtError(
                f"Tensor {name} in {tensors.info(name).file} has no place in the model that config.json describes"
                f" ({config.family}, {config.layers} layers), so leaving it out would change the model."
            )
    return result


def load(parameter: Parameter, pieces: list[Piece], tensors: TensorSource) -> np.ndarray:
    """Read one whole parameter: float32 of `parameter.shape`, with its transform applied."""
    parts = [tensors.load(piece.tensor, piece.rows).reshape(-1, *parameter.shape[1:][-1:]) for piece in pieces]
    value = (np.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(parameter.shape)
    return value + np.float32(1.0) if parameter.transform == "plus_one" else value


def _location(tensors: TensorSource) -> str:
    files = sorted({str(tensors.info(name).file) for name in tensors.names()})
    if not files:
        return "the checkpoint, which is empty"
    return files[0] if len(files) == 1 else f"{files[0]} and the {len(files) - 1} other files of the checkpoint"


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
