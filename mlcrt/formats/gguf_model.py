"""A GGUF file seen as a Hugging Face model: its metadata as a config.json dict, its tensors under their HF names.

Where GGUF differs, this module undoes it: the `llama` architecture stores q and k with each head's rotary halves
interleaved, Gemma files store norm weights with the 1 of `1 + w` already added, and experts are stacked in one tensor.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.formats.gguf_file import GGUFFile, GGUFTensor
from mlcrt.formats.tensors import FLOATS, FileTensors, StoredTensor, TensorInfo, quant_sizes

MODEL_TYPES = {  # general.architecture → model_type of config.json; experts turn llama into mixtral
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe",
    "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3_text",
}  # fmt: skip
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj", "ffn_down_exps": "mlp.experts.{}.down_proj",
}  # fmt: skip
OWN_NAMES = {  # what an architecture names differently or has in addition; {} is the expert's number
    "llama": {
        "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2", "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    },
    "qwen2": {}, "qwen3": QK_NORMS, "qwen2moe": QWEN_EXPERTS, "qwen3moe": {**QWEN_EXPERTS, **QK_NORMS},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "gemma2": GEMMA_NORMS, "gemma3": {**GEMMA_NORMS, **QK_NORMS},
}  # fmt: skip
# Rotary tables travel in the config; attn_rot_embd is a leftover of early converters.
NOT_WEIGHTS = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")
BLOCK = re.compile(r"blk\.(\d{1,5})\.([a-z_]+)(?:\.(\d{1,5}))?\.(weight|bias)")


def architecture(file: GGUFFile) -> str:
    """general.architecture; MlcrtError when mlcrt does not support it."""
    arch = file.require("general.architecture", str)
    if arch not in MODEL_TYPES:
        raise MlcrtError(
            f"{file.path}: GGUF architecture '{arch[:40]}' is not supported; mlcrt reads {', '.join(MODEL_TYPES)}."
        )
    return arch


# --- tensors ---


def map_tensors(file: GGUFFile, config: dict[str, Any]) -> FileTensors:
    """All weights under Hugging Face names. Raises MlcrtError for a tensor the architecture should not have."""
    arch = architecture(file)
    stored: dict[str, StoredTensor] = {}
    for tensor in file.tensors.values():
        if NOT_WEIGHTS.fullmatch(tensor.name):
            continue
        for item in _map(tensor, arch, config):
            if item.info.name in stored:
                raise MlcrtError(f"{file.path} holds '{item.info.name}' twice; convert the model again.")
            stored[item.info.name] = item
    return FileTensors(stored.values())


def _map(tensor: GGUFTensor, arch: str, config: dict[str, Any]) -> list[StoredTensor]:
    top, _, kind = tensor.name.rpartition(".")
    if top in TOP_NAMES and kind in ("weight", "bias"):
        return [_stored(tensor, f"{TOP_NAMES[top]}.{kind}", arch, config)]
    match = BLOCK.fullmatch(tensor.name)
    names = {**BLOCK_NAMES, **OWN_NAMES[arch]}
    if not match or int(match[1]) >= config["num_hidden_layers"]:
        raise _unknown(tensor, arch)
    layer, part, expert, kind = match.groups()
    prefix = f"model.layers.{int(layer)}."
    if expert is not None:  # Mixtral files of 2023 hold one tensor per expert
        part += "_exps"
    if part not in names:
        raise _unknown(tensor, arch)
    name = prefix + names[part] + "." + kind
    if "{}" not in name:
        return [_stored(tensor, name, arch, config)]
    if expert is not None:
        return [_stored(tensor, name.format(int(expert)), arch, config)]
    experts = config.get("num_local_experts") or config.get("num_experts")
    if len(tensor.shape) != 3 or tensor.shape[0] != experts:
        raise MlcrtError(
            f"{tensor.file}: tensor '{tensor.name}' of shape {tensor.shape} does not hold {experts} experts; "
            "convert the model again."
        )
    block, size = quant_sizes()[tensor.dtype]
    expert_bytes = tensor.shape[1] * tensor.shape[2] // block * size
    result = []
    for number in range(experts):
        info = TensorInfo(name.format(number), tensor.shape[1:], tensor.dtype, tensor.file)
        result.append(StoredTensor(info, tensor.offset + number * expert_bytes, _quantised(tensor.dtype)))
    return result


def _quantised(dtype: str) -> bool:
    return dtype not in FLOATS and quant_sizes()[dtype][0] > 1


def _stored(tensor: GGUFTensor, name: str, arch: str, config: dict[str, Any]) -> StoredTensor:
    shape, head, shift = tensor.shape, 0, 0.0
    if arch == "llama" and ".self_attn.q_proj." in name:
        head = _head_rows(tensor, config["num_attention_heads"])
    if arch == "llama" and ".self_attn.k_proj." in name:
        head = _head_rows(tensor, config["num_key_value_heads"])
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        shift = -1.0
    if name.endswith("shared_expert_gate.weight") and len(shape) == 1:
        shape = (1, *shape)
    info = TensorInfo(name, shape, tensor.dtype, tensor.file)
    return StoredTensor(info, tensor.offset, _quantised(tensor.dtype), head, shift)


def _head_rows(tensor: GGUFTensor, heads: int) -> int:
    if tensor.shape[0] % (2 * heads) or len(tensor.shape) == 1 and _quantised(tensor.dtype):
        raise MlcrtError(
            f"{tensor.file}: tensor '{tensor.name}' has {tensor.shape[0]} rows, which are not {heads} attention heads; "
            "convert the model again."
        )
    return tensor.shape[0] // heads


def _unknown(tensor: GGUFTensor, arch: str) -> MlcrtError:
    return MlcrtError(
        f"{tensor.file}: tensor '{tensor.name[:60]}' has no place in a {arch} model of this size; "
        "this variant is not supported, use another file of the model."
    )


# --- config ---


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """A config.json dict with Hugging Face keys. Raises MlcrtError when metadata is missing or contradicts itself.

    `rope_scaling` may have one rope_type Hugging Face does not: {"rope_type": "freq_factors", "factors": [rotary/2
    floats]}, each dividing the angular frequency of its dimension. GGUF stores Llama 3's scaling as such a list
    (rope_freqs.weight) and not the four parameters it came from; a list of float32 factors loses nothing.
    """
    arch = architecture(file)

    def get(key: str, kind: type, default: Any = None) -> Any:
        return file.get(f"{arch}.{key}", kind, default)

    def size(key: str, default: int | None = None) -> int:
        return _size(file, f"{arch}.{key}", default)

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise MlcrtError(f"{file.path} has no token_embd.weight; it holds a vocabulary or an adapter, not a model.")
    hidden, layers, heads = size("embedding_length"), size("block_count"), size("attention.head_count")
    if layers > 10_000 or embedding.shape[1] != hidden:
        raise MlcrtError(
            f"{file.path} contradicts itself about the number of layers or the hidden size; fetch it again."
        )
    head_dim = size("attention.key_length", size("rope.dimension_count", max(1, hidden // heads)))
    if arch == "phi3":  # rope.dimension_count is only the rotated part of its heads
        head_dim = size("attention.key_length", max(1, hidden // heads))
    if size("attention.value_length", head_dim) != head_dim:
        raise MlcrtError(f"{file.path} has values and keys of different sizes per head, which is not supported.")
    rotary = size("rope.dimension_count", head_dim)
    config: dict[str, Any] = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length", 0) or size("expert_feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": file.require(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": get("rope.freq_base", float, 10000.0),
        "rope_scaling": _rope_scaling(file, arch),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "sliding_window": get("attention.sliding_window", int) or None,
    }
    if rotary < head_dim:
        config["partial_rotary_factor"] = rotary / head_dim
    config.update(token_ids(file))
    if arch == "llama" and config["sliding_window"]:
        config["model_type"] = "mistral"
    _biases(config, arch, file)
    _experts(config, arch, file, size)
    if arch == "phi3":
        original = size("rope.scaling.original_context_length", size("context_length"))
        config["original_max_position_embeddings"] = original
    if arch.startswith("gemma"):
        config.update(_gemma(arch, config, get))
    return config


def _size(file: GGUFFile, key: str, default: int | None) -> int:
    """A positive count; per-layer lists are accepted when all layers agree. `default` 0 allows absence."""
    value = file.metadata.get(key, default)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        if len(set(map(repr, value))) != 1:
            raise MlcrtError(f"{file.path}: '{key}' differs from layer to layer, which is not supported.")
        value = value[0]
    if value is None:
        raise MlcrtError(f"{file.path} lacks the metadata '{key}'; convert the model to GGUF again.")
    if type(value) is not int or not (1 <= value < 1 << 31) and not (value == 0 == default):
        raise MlcrtError(f"{file.path}: metadata '{key}' is {str(value)[:40]}, not a count; convert the model again.")
    return value


def token_ids(file: GGUFFile) -> dict[str, Any]:
    """bos_token_id, pad_token_id, and eos_token_id as the list of every token that ends a turn.

    Absent ones are None, which says "none" where a missing key would mean the family's default.
    """
    bos, pad = (file.get(f"tokenizer.ggml.{role}_token_id", int) for role in ("bos", "padding"))
    ends = [file.get(f"tokenizer.ggml.{role}_token_id", int) for role in ("eos", "eot", "eom")]
    tokens, types = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, np.ndarray) and len(types) == len(tokens):
        for text in END_OF_TURN:  # converters often record only one of a chat model's end tokens
            if text in tokens and types[tokens.index(text)] == 3:
                ends.append(tokens.index(text))
    ends = [item for item in dict.fromkeys(ends) if item is not None]
    return {"bos_token_id": bos, "eos_token_id": ends or None, "pad_token_id": pad}


END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")


def _rope_scaling(file: GGUFFile, arch: str) -> dict[str, Any] | None:
    def get(key: str, kind: type, default: Any = None) -> Any:
        return file.get(f"{arch}.rope.{key}", kind, default)

    kind = get("scaling.type", str, "linear" if f"{arch}.rope.scale_linear" in file.metadata else "none")
    factor = get("scaling.factor", float, get("scale_linear", float, 1.0))
    if factor <= 0:
        raise MlcrtError(f"{file.path}: its RoPE scaling factor {factor} is not positive; convert the model again.")
    original = get("scaling.original_context_length", int)
    long, short = _factors(file, "rope_factors_long.weight"), _factors(file, "rope_factors_short.weight")
    if long and short:
        return {"rope_type": "longrope", "long_factor": long, "short_factor": short}
    factors = _factors(file, "rope_freqs.weight")
    if kind == "yarn":
        if factors:
            raise MlcrtError(f"{file.path} has both YaRN scaling and rope_freqs, which is not supported.")
        scaling = {"rope_type": "yarn", "factor": factor}
        optional = {
            "original_max_position_embeddings": original,
            "attention_factor": get("scaling.yarn_attn_factor", float),
            "beta_fast": get("scaling.yarn_beta_fast", float),
            "beta_slow": get("scaling.yarn_beta_slow", float),
        }
        return {**scaling, **{key: value for key, value in optional.items() if value is not None}}
    if kind not in ("none", "linear", "longrope"):
        raise MlcrtError(f"{file.path}: RoPE scaling of type '{kind[:20]}' is not supported.")
    linear = factor if kind == "linear" else 1.0
    if factors:
        return {"rope_type": "freq_factors", "factors": [value * linear for value in factors]}
    return {"rope_type": "linear", "factor": linear} if linear != 1.0 else None


def _factors(file: GGUFFile, name: str) -> list[float] | None:
    """The values of a small F32 table of positive numbers."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return None
    if tensor.dtype not in FLOATS or len(tensor.shape) != 1 or tensor.shape[0] > 4096:
        raise MlcrtError(f"{tensor.file}: '{name}' is not a table of RoPE factors; convert the model again.")
    table = StoredTensor(TensorInfo(name, tensor.shape, tensor.dtype, tensor.file), tensor.offset)
    values = FileTensors([table]).load(name)
    if not ((values > 0) & (values < 1e30)).all():
        raise MlcrtError(f"{tensor.file}: '{name}' holds factors that are not positive numbers; fetch it again.")
    return [float(value) for value in values]


def _biases(config: dict[str, Any], arch: str, file: GGUFFile) -> None:
    """A llama file may carry biases: on all four projections (attention_bias), or on q, k, v as Qwen2 has them."""
    if arch != "llama" or "blk.0.attn_q.bias" not in file.tensors:
        return
    if "blk.0.attn_output.bias" in file.tensors:
        config["attention_bias"] = True
    else:
        config["model_type"] = "qwen2"


def _experts(config: dict[str, Any], arch: str, file: GGUFFile, size: Any) -> None:
    experts = size("expert_count", 0)
    if not experts and not arch.endswith("moe"):
        return
    if not 1 <= experts <= 10_000:
        raise MlcrtError(f"{file.path} says it has {experts} experts; convert the model again.")
    config["num_experts_per_tok"] = size("expert_used_count")
    if arch == "llama":
        config["model_type"], config["num_local_experts"] = "mixtral", experts
        return
    config["num_experts"] = experts
    config["moe_intermediate_size"] = size("expert_feed_forward_length")
    config["norm_topk_prob"] = arch == "qwen3moe"  # a constant of each family, absent from GGUF
    if shared := size("expert_shared_feed_forward_length", 0):
        config["shared_expert_intermediate_size"] = shared


def _gemma(arch: str, config: dict[str, Any], get: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 add. Values absent from GGUF are constants of the released models
    (https://github.com/google/gemma_pytorch/blob/main/gemma/config.py)."""
    layers, hidden, heads = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
    largest = {"gemma2": 46, "gemma3": 62}[arch]  # the 27B models scale by hidden/heads, the others by head_dim
    period = 2 if arch == "gemma2" else 6
    added = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": hidden // heads if layers == largest else config["head_dim"],
        "sliding_window": config["sliding_window"] or (4096 if arch == "gemma2" else None),
        "attn_logit_softcapping": get("attn_logit_softcapping", float, 50.0 if arch == "gemma2" else None),
        "final_logit_softcapping": get("final_logit_softcapping", float, 30.0 if arch == "gemma2" else None),
    }
    if added["sliding_window"] is None:
        period = 1
    added["layer_types"] = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(layers)
    ]
    if arch == "gemma3":
        added["rope_local_base_freq"] = get("rope.freq_base_swa", float, 10000.0)
        added["rope_theta"] = get("rope.freq_base", float, 1_000_000.0)
        added["sliding_window_pattern"] = period
    return added
