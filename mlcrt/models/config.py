"""The one description of a decoder that everything after `models/` sees.

A family (families.py) turns a Hugging Face `config.json` into a `DecoderConfig`; nothing downstream asks
which family it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class Rope:
    """One rotary table, already scaled.

    `inv_freq` has rotary_dim/2 angular frequencies in rad/token (float32 values); dimension i rotates with dimension
    i + rotary_dim/2 (the "half" pairing of Hugging Face checkpoints). `attention_factor` multiplies cos and sin
    (YaRN, https://arxiv.org/abs/2309.00071, eq. 22).
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class MixtureOfExperts:
    """A routed MLP: softmax over `experts` router logits, the top `top_k` run."""

    experts: int
    top_k: int
    intermediate: int
    normalize_top_k: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a pre-norm transformer decoder. Sizes count elements, `window` counts tokens."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int  # positions the weights were trained for
    norm_eps: float
    ropes: tuple[Rope, ...]
    layer_rope: tuple[int, ...]  # per layer, an index into `ropes`
    layer_window: tuple[int | None, ...]  # per layer: attend to the last `window` positions, the own one included
    attention_scale: float  # multiplies q·k
    activation: str = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm over head_dim on q and k, before RoPE
    post_norms: bool = False  # RMSNorm on the attention and MLP outputs too, before the residual add
    norm_plus_one: bool = False  # checkpoint stores w and multiplies by 1 + w; folded when converting
    embed_scale: float = 1.0
    attention_softcap: float | None = None  # cap * tanh(score / cap)
    final_softcap: float | None = None
    moe: MixtureOfExperts | None = None
    bos: int | None = None
    eos: tuple[int, ...] = field(default=())

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> DecoderConfig:
        data = dict(data)
        data["ropes"] = tuple(Rope(tuple(r["inv_freq"]), r["attention_factor"]) for r in data["ropes"])
        if data.get("moe"):
            data["moe"] = MixtureOfExperts(**data["moe"])
        for name in ("layer_rope", "layer_window", "eos"):
            data[name] = tuple(data[name])
        return cls(**data)
