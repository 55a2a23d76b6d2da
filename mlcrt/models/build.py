"""`config.json` of any supported family → the one `DecoderConfig`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from mlcrt.errors import MlcrtError
from mlcrt.models import rope
from mlcrt.models.config import DecoderConfig, MixtureOfExperts, Rope
from mlcrt.models.families import COMMON, FAMILIES, Family
from mlcrt.models.fields import Fields

log = logging.getLogger("mlcrt")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
SLIDING = {"sliding_attention": True, "full_attention": False}
MOST_LAYERS = 4096
MOST_EXPERTS = 4096
MOST_HEAD_DIM = 1 << 16
# Top-level keys of a multimodal config.json that the nested text_config leaves to it.
OUTER_KEYS = ("bos_token_id", "eos_token_id", "tie_word_embeddings")


def decoder_config(
    hf_config: Mapping[str, object], where: str = "config.json", long_context: bool = False
) -> DecoderConfig:
    """Describe the decoder that a Hugging Face `config.json` asks for.

    Both spellings are read: rope_theta with rope_scaling, and rope_parameters (transformers 5), flat or per layer type.
    `where` names the file in error messages. `long_context` concerns models with "longrope" only: their frequencies
    depend on the length of the text, and here one table serves a model. By default it is the short one, exact up to
    original_max_position_embeddings, which then is `context`; True picks the long one and max_position_embeddings.

    Raises MlcrtError, naming the key, for an unknown architecture and for values that are missing or make no sense.
    """
    outer = Fields(hf_config, where)
    values = dict(hf_config)
    if outer.get("model_type") == "gemma3":
        text = Fields(outer.get("text_config"), f"{where}: text_config").values
        values = {**text, "model_type": "gemma3_text"}
        for key in OUTER_KEYS:
            if outer.has(key) and (key != "tie_word_embeddings" or values.get(key) is None):
                values[key] = outer.get(key)
    model_type = values.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise MlcrtError(
            f"{where}: the architecture {model_type!r} (model_type) is not supported; the supported ones are {known}."
        )
    return _build(family, Fields(values, where, {**COMMON, **family.defaults}), long_context)


def _build(family: Family, fields: Fields, long_context: bool) -> DecoderConfig:
    hidden, layers = fields.size("hidden_size"), fields.size("num_hidden_layers", MOST_LAYERS)
    heads, kv_heads, head_dim = _heads(fields, hidden)
    vocab, intermediate = fields.size("vocab_size"), fields.size("intermediate_size")
    if fields.get("use_bidirectional_attention"):
        raise MlcrtError(f"{fields.where}: use_bidirectional_attention is not supported; only causal decoders are.")
    sliding = _sliding_layers(family, fields, layers)
    window = fields.size("sliding_window") if any(sliding) else None
    ropes, layer_rope, context = _ropes(family, fields, head_dim, sliding, long_context)
    attention_bias = family.bias == "config" and fields.flag("attention_bias")
    scale_of = fields.number("query_pre_attn_scalar") if family.gemma else head_dim
    return DecoderConfig(
        family=family.model_type,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        context=context,
        norm_eps=fields.number("rms_norm_eps"),
        ropes=ropes,
        layer_rope=layer_rope,
        layer_window=tuple(window if slides else None for slides in sliding),
        attention_scale=scale_of**-0.5,
        activation=fields.choice(family.activation, ACTIVATIONS),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or family.bias == "qkv",
        o_bias=attention_bias,
        mlp_bias=family.bias == "config" and fields.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        post_norms=family.gemma,
        norm_plus_one=family.gemma,
        embed_scale=math.sqrt(hidden) if family.gemma else 1.0,
        attention_softcap=fields.optional_number("attn_logit_softcapping") if family.score_cap else None,
        final_softcap=fields.optional_number("final_logit_softcapping") if family.gemma else None,
        moe=_experts(family, fields),
        bos=fields.token("bos_token_id", vocab),
        eos=fields.tokens("eos_token_id", vocab),
    )


def _heads(fields: Fields, hidden: int) -> tuple[int, int, int]:
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads") if fields.has("num_key_value_heads") else heads
    if heads % kv_heads:
        raise MlcrtError(
            f"{fields.where}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}."
        )
    if fields.has("head_dim"):
        head_dim = fields.size("head_dim", MOST_HEAD_DIM)
    elif hidden % heads:
        raise MlcrtError(
            f"{fields.where} has no head_dim, and hidden_size {hidden} is not a multiple of num_attention_heads"
            f" {heads}."
        )
    else:
        head_dim = hidden // heads
        if head_dim > MOST_HEAD_DIM:
            raise MlcrtError(
                f"{fields.where}: hidden_size {hidden} over num_attention_heads {heads} gives a head_dim above"
                f" {MOST_HEAD_DIM}."
            )
    if head_dim % 2:
        raise MlcrtError(f"{fields.where}: head_dim must be even for rotary embeddings, not {head_dim}.")
    return heads, kv_heads, head_dim


def _sliding_layers(family: Family, fields: Fields, layers: int) -> list[bool]:
    """Per layer, whether it attends to a window only."""
    if family.window_switch and not fields.flag("use_sliding_window"):
        return [False] * layers
    if family.windows in ("all", "from_layer") and fields.null("sliding_window"):
        return [False] * layers
    if family.windows in ("from_layer", "pattern") and fields.has("layer_types"):
        types = fields.get("layer_types")
        if not isinstance(types, (list, tuple)) or len(types) != layers or any(
            not isinstance(t, str) or t not in SLIDING for t in types
        ):
            raise fields.bad("layer_types", f"a list of {layers} entries out of {', '.join(SLIDING)}")
        return [SLIDING[t] for t in types]
    if family.windows == "all":
        return [fields.has("sliding_window")] * layers
    if family.windows == "from_layer":
        first = fields.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise fields.bad("max_window_layers", "an integer from 0 upwards")
        return [i >= first for i in range(layers)]
    if family.windows == "pattern":
        period = fields.size("sliding_window_pattern")
        return [(i + 1) % period != 0 for i in range(layers)]
    return [False] * layers


def _ropes(
    family: Family, fields: Fields, head_dim: int, sliding: list[bool], long_context: bool
) -> tuple[tuple[Rope, ...], tuple[int, ...], int]:
    """Rotary tables, the table of each layer, and the context in tokens that they serve."""
    context = fields.size("max_position_embeddings")
    key = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    given = Fields(fields.get(key) or {}, f"{fields.where}: {key}").values
    per_type = {name: given[name] for name in SLIDING if given.get(name) is not None}
    shared = {
        "rope_theta": fields.get("rope_theta"),
        "partial_rotary_factor": fields.get("partial_rotary_factor"),
        "original_max_position_embeddings": context,
    }

    def section(layer_type: str) -> Fields:
        values, defaults = per_type.get(layer_type), {**rope.DEFAULTS, **shared}
        if layer_type == "sliding_attention" and family.local_theta:
            defaults["rope_theta"] = fields.get(family.local_theta)
            values = values or {}
        elif values is None:
            values = {} if per_type else dict(given)
            if fields.has("original_max_position_embeddings"):  # at the top level it wins, as in Phi-3
                values["original_max_position_embeddings"] = fields.get("original_max_position_embeddings")
            if family.model_type == "phi3" and values.get("type", values.get("rope_type")) == "yarn":
                values.update(rope_type="longrope")  # Phi-3 checkpoints of 2024 say "yarn" and mean this
        return Fields(values, f"{fields.where}: {key}", defaults)

    kinds = dict.fromkeys(sliding)
    sections = {slides: section("sliding_attention" if slides else "full_attention") for slides in kinds}
    ropes: list[Rope] = []
    index = {}
    for slides, scaling in sections.items():
        table = rope.rope_table(scaling, head_dim, context, long_context)
        if table not in ropes:
            ropes.append(table)
        index[slides] = ropes.index(table)
    served = context
    for scaling in sections.values():
        original = rope.longrope_original(scaling)
        if original is not None and original < context and not long_context:
            log.warning(
                "%s: longrope has two frequency tables; this model is built with the short one, for texts of up to %d"
                " tokens (the checkpoint allows %d with the long one).",
                fields.where, original, context,
            )
            served = original
        served = max(served, rope.yarn_context(scaling) or 0)
    return tuple(ropes), tuple(index[slides] for slides in sliding), served


def _experts(family: Family, fields: Fields) -> MixtureOfExperts | None:
    if family.experts is None:
        return None
    keys = family.experts
    count = next((key for key in keys.count if fields.has(key)), keys.count[0])
    experts, top_k = fields.size(count, MOST_EXPERTS), fields.size("num_experts_per_tok", MOST_EXPERTS)
    if top_k > experts:
        raise MlcrtError(f"{fields.where}: num_experts_per_tok {top_k} exceeds {count} {experts}.")
    if fields.get("mlp_only_layers") or fields.get("decoder_sparse_step") not in (None, 1):
        raise MlcrtError(
            f"{fields.where}: mlp_only_layers and decoder_sparse_step (dense layers between routed ones) are not"
            " supported; only models whose layers are all routed are."
        )
    normalize = keys.normalize if isinstance(keys.normalize, bool) else fields.flag(keys.normalize)
    return MixtureOfExperts(experts, top_k, fields.size(keys.intermediate), normalize)
