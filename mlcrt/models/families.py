"""Model families: what each `model_type` assumes when its `config.json` is silent, and how its layers differ.

Adding a family means adding one `Family` record; `decoder_config` and `names.py` are shared by all.
The meaning of keys and defaults follows the configuration classes of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ModuleNames = Mapping[str, tuple[tuple[str, ...], ...]]

# Per parameter: the alternatives in which checkpoints store it, the usual one first, each an ordered list of tensors
# whose rows follow one another. {e} stands for an expert; without it an experts tensor is 3-D, experts in dimension 0.
QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
MODULES: ModuleNames = {
    "embed.weight": (("embed_tokens.weight",),),
    "attn_norm": (("input_layernorm.weight",),),
    "qkv.weight": (QKV, ("self_attn.qkv_proj.weight",)),
    "qkv.bias": (
        ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        ("self_attn.qkv_proj.bias",),
    ),
    "q_norm": (("self_attn.q_norm.weight",),),
    "k_norm": (("self_attn.k_norm.weight",),),
    "o.weight": (("self_attn.o_proj.weight",),),
    "o.bias": (("self_attn.o_proj.bias",),),
    "mlp_norm": (("post_attention_layernorm.weight",),),
    "gate_up.weight": (GATE_UP, ("mlp.gate_up_proj.weight",)),
    "gate_up.bias": (("mlp.gate_proj.bias", "mlp.up_proj.bias"), ("mlp.gate_up_proj.bias",)),
    "down.weight": (("mlp.down_proj.weight",),),
    "down.bias": (("mlp.down_proj.bias",),),
    "router.weight": (("mlp.gate.weight",),),
    "experts.gate_up.weight": (
        ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
        ("mlp.experts.gate_up_proj",),  # as transformers 5 holds them in memory
        ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"),  # as GGUF stacks them
    ),
    "experts.down.weight": (
        ("mlp.experts.{e}.down_proj.weight",),
        ("mlp.experts.down_proj",),
        ("mlp.experts.down_proj.weight",),
    ),
    "final_norm": (("norm.weight",),),
}

# What transformers assumes for any family whose record says nothing else.
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}


@dataclass(frozen=True)
class Experts:
    """Config keys of a routed MLP.

    `count`: its alternatives, the first one present counts. `normalize`: a key, or True where the family always does.
    """

    count: tuple[str, ...]
    intermediate: str
    normalize: str | bool = True


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    defaults: values for absent keys, over COMMON.
    bias: "none"; "qkv" (q, k and v always have one); "config" (attention_bias decides for q, k, v, o; mlp_bias for the
        MLP).
    windows: which layers use `sliding_window` where no layer_types say so: "none"; "all"; "from_layer" (from
        max_window_layers on); "pattern" (all but every sliding_window_pattern-th). layer_types are only honoured in
        the last two, as transformers does.
    window_switch: whether use_sliding_window must be true for windows to apply.
    local_theta: the key with the RoPE base of sliding-window layers, where they have their own unscaled table.
    activation: the key that names the MLP's activation.
    gemma: RMSNorm by 1 + weight, norms after attention and MLP too, embeddings scaled by sqrt(hidden), scores by
        query_pre_attn_scalar ** -0.5.
    score_cap: whether attn_logit_softcapping applies.
    names: entries that replace those of MODULES.
    """

    model_type: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    bias: str = "none"
    qk_norm: bool = False
    windows: str = "none"
    window_switch: bool = False
    local_theta: str | None = None
    activation: str = "hidden_act"
    gemma: bool = False
    score_cap: bool = False
    experts: Experts | None = None
    names: ModuleNames = field(default_factory=dict)


# Gemma has a norm on both sides of each block, so that `post_attention_layernorm` is not the norm before the MLP.
GEMMA_NAMES = {
    "attn_post_norm": (("post_attention_layernorm.weight",),),
    "mlp_norm": (("pre_feedforward_layernorm.weight",),),
    "mlp_post_norm": (("post_feedforward_layernorm.weight",),),
}
GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LLAMA_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}

# Llama 1 to 3.x, SmolLM and SmolLM2, and the many checkpoints that say "llama" (early Mistral, Yi, TinyLlama …).
LLAMA = Family("llama", LLAMA_TOKENS, bias="config")

MISTRAL = Family(
    "mistral",
    {
        **LLAMA_TOKENS,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    windows="all",
)

QWEN2 = Family(
    "qwen2",
    {
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    bias="qkv",
    windows="from_layer",
    window_switch=True,
)

QWEN3 = Family(
    "qwen3",
    {**QWEN2.defaults, "head_dim": 128},
    bias="config",
    qk_norm=True,
    windows="from_layer",
    window_switch=True,
)

# Phi-3, 3.5 and Phi-4-mini.
PHI3 = Family(
    "phi3",
    {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    windows="all",
    names={
        "qkv.weight": (("self_attn.qkv_proj.weight",), QKV),
        "gate_up.weight": (("mlp.gate_up_proj.weight",), GATE_UP),
    },
)

GEMMA2 = Family(
    "gemma2",
    {
        **GEMMA_DEFAULTS,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    bias="config",
    windows="pattern",
    activation="hidden_activation",
    gemma=True,
    score_cap=True,
    names=GEMMA_NAMES,
)

# Multimodal checkpoints nest this under text_config, and Google's leave every key at its default out.
GEMMA3 = Family(
    "gemma3_text",
    {
        **GEMMA_DEFAULTS,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
    bias="config",
    qk_norm=True,
    windows="pattern",
    local_theta="rope_local_base_freq",
    activation="hidden_activation",
    gemma=True,
    names=GEMMA_NAMES,
)

MIXTRAL = Family(
    "mixtral",
    {
        **LLAMA_TOKENS,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_experts_per_tok": 2,
    },
    windows="all",
    experts=Experts(("num_local_experts", "num_experts"), "intermediate_size"),
    names={
        "router.weight": (("block_sparse_moe.gate.weight",), *MODULES["router.weight"]),
        "experts.gate_up.weight": (
            ("block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"),
            *MODULES["experts.gate_up.weight"],
        ),
        "experts.down.weight": (("block_sparse_moe.experts.{e}.w2.weight",), *MODULES["experts.down.weight"]),
    },
)

QWEN3_MOE = Family(
    "qwen3_moe",
    {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    bias="config",
    qk_norm=True,
    windows="all",
    window_switch=True,
    experts=Experts(("num_experts", "num_local_experts"), "moe_intermediate_size", "norm_topk_prob"),
)

FAMILIES = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, MIXTRAL, QWEN3_MOE)
}
