"""What the operators compute: shapes and switches that every kernel library takes."""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.quant.scheme import Scheme


@dataclass(frozen=True)
class Linear:
    """A fused linear layer. `tokens` is 1 or None (any number); gated halves the output features.

    alike: every token is computed in the order of the one-token form, so that its result does not depend on the others.
    steady: the tokens are pieces of several prompts; how many they are must not change the order of a token's sums.
    packed_in, packed_out: x, or y, is float16 [1, n] in the order and scale of simt.linear.PACKED, for one token.
    """

    scheme: Scheme
    rows: int
    columns: int
    tokens: int | None
    norm_eps: float | None = None
    bias: bool = False
    gate: str | None = None
    residual: bool = False
    alike: bool = False
    packed_in: bool = False
    packed_out: bool = False
    steady: bool = False

    @property
    def units(self) -> int:
        return self.rows // 2 if self.gate else self.rows

    @property
    def many_in_half(self) -> bool:
        """Any number of tokens in half precision, as matrix units multiply; other schemes compute in float32."""
        return self.tokens is None and not self.alike and self.scheme.dtype == "float16"


@dataclass(frozen=True)
class Attention:
    """Shapes and switches of one attention layer; `tokens` is 1 or None (any number).

    paged: each token has its own sequence and position (see arguments.Places), and a sequence's blocks lie anywhere;
    alike: besides, the tokens are the newest ones of sequences that decode together;
    packed_out: the result of rope_attention is float16 in the order that a product wants (see Linear).
    """

    heads: int
    kv_heads: int
    head_dim: int
    tokens: int | None
    kv_dtype: str
    scale: float
    window: int | None = None
    softcap: float | None = None
    rotary_dim: int = 0
    norm_eps: float | None = None  # RMSNorm over head_dim on q and k before rotating
    paged: bool = False
    packed_out: bool = False
    alike: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Moe:
    """A routed MLP: of `experts` MLPs each token runs the top_k by router logits, weighted by their softmax.

    normalize: the weights of the chosen experts add up to 1. norm_eps: RMSNorm in front of the experts (the router's
    logits are given). `tokens` is 1 or None (any number).
    """

    gate_up: Scheme
    down: Scheme
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    normalize: bool
    activation: str
    tokens: int | None
    norm_eps: float | None = None
    residual: bool = False


@dataclass(frozen=True)
class Embed:
    """Rows of an embedding, dequantised and scaled."""

    scheme: Scheme
    vocab: int
    hidden: int
    tokens: int | None
    scale: float = 1.0
