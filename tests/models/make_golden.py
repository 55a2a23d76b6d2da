"""Write tests/models/golden with torch and transformers: `python tests/models/make_golden.py [CASE …]`.

Needs the [reference] extra; the tests themselves only read what this writes. Logits are float32, eager attention.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from real_configs import REAL
from safetensors import safe_open
from tiny import GOLDEN, write_folder
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LENGTH = 41  # tokens
MOST_COLUMNS = 503
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def shape(hidden, heads, kv_heads, head_dim, intermediate, layers, vocab, **more) -> dict:
    if head_dim:  # families that know no head_dim derive it
        more["head_dim"] = head_dim
    return dict(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate,
        num_hidden_layers=layers, vocab_size=vocab, **TOKENS, **more,
    )  # fmt: skip


def scaled(kind: str, theta: float = 10000.0, **more) -> dict:
    return dict(rope_type=kind, rope_theta=theta, **more)


CASES = {
    "llama3_gqa7": dict(
        model_type="llama", max_position_embeddings=512,
        rope_parameters=scaled("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=64),
        **shape(560, 7, 1, 80, 172, 3, 503, tie_word_embeddings=False, rms_norm_eps=1e-5),
    ),
    "llama_linear_bias": dict(
        model_type="llama", rope_parameters=scaled("linear", factor=2.5), attention_bias=True, mlp_bias=True,
        **shape(72, 4, 1, 64, 200, 2, 32003, tie_word_embeddings=True),
    ),
    "llama_mha": dict(
        model_type="llama", hidden_act="gelu", **shape(96, 3, 3, 32, 172, 2, 32003, tie_word_embeddings=False),
    ),
    "mistral_window": dict(
        model_type="mistral", sliding_window=11, **shape(128, 8, 1, 128, 200, 3, 503, tie_word_embeddings=False),
    ),
    "qwen2_yarn": dict(
        model_type="qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1, max_position_embeddings=64,
        rope_parameters=scaled("yarn", 1000.0, factor=4.0, original_max_position_embeddings=64),
        **shape(448, 7, 1, None, 172, 3, 503, tie_word_embeddings=True),
    ),
    "qwen3_norms": dict(
        model_type="qwen3", rope_parameters=scaled("default", 1e6),
        **shape(72, 4, 2, 128, 200, 3, 503, tie_word_embeddings=True),
    ),
    "phi3_longrope": dict(
        model_type="phi3", max_position_embeddings=256, original_max_position_embeddings=64, sliding_window=23,
        rope_parameters=scaled("longrope", partial_rotary_factor=0.75, original_max_position_embeddings=64,
                               short_factor=[1.0 + 0.02 * i for i in range(36)],
                               long_factor=[1.5 + 0.11 * i for i in range(36)]),
        **shape(192, 2, 2, None, 200, 3, 503, tie_word_embeddings=False),
    ),
    "gemma2_softcap": dict(
        model_type="gemma2", sliding_window=13, query_pre_attn_scalar=144, attn_logit_softcapping=3.0,
        final_logit_softcapping=2.5, **shape(72, 2, 1, 256, 172, 4, 503),
    ),
    "gemma3_alternating": dict(
        model_type="gemma3_text", sliding_window=12, query_pre_attn_scalar=80, final_logit_softcapping=4.0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": scaled("default", 100.0),
                         "full_attention": scaled("linear", 1e6, factor=8.0)},
        **shape(128, 8, 2, 80, 200, 4, 503),
    ),
    "mixtral": dict(
        model_type="mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=None,
        rope_parameters=scaled("default", 1e4), **shape(96, 4, 2, 32, 172, 2, 503, tie_word_embeddings=False),
    ),
    "qwen3_moe": dict(
        model_type="qwen3_moe", num_experts=6, num_experts_per_tok=3, norm_topk_prob=False, moe_intermediate_size=72,
        rope_parameters=scaled("default", 1e4), **shape(80, 4, 1, 64, 200, 3, 503, tie_word_embeddings=False),
    ),
}  # fmt: skip


def saved_shapes(model, folder: Path) -> dict[str, list[int]]:
    """Names and shapes as `save_pretrained` writes them, which are not those in memory for some families."""
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def rope_tables(rotary) -> dict[str, np.ndarray]:
    """inv_freq and attention factor of a rotary module by layer type, under the keys that tiny.golden reads."""
    result = {}
    for kind in ("all", "full_attention", "sliding_attention"):
        prefix = "" if kind == "all" else f"{kind}_"
        if hasattr(rotary, f"{prefix}inv_freq"):
            result[f"inv_freq/{kind}"] = getattr(rotary, f"{prefix}inv_freq").numpy()
            result[f"attention_factor/{kind}"] = np.float64(getattr(rotary, f"{prefix}attention_scaling"))
    return result


def make(case: str) -> None:
    settings = dict(CASES[case])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = saved_shapes(AutoModelForCausalLM.from_config(config, dtype=torch.float32), folder)
        saved = json.loads((folder / "config.json").read_text())
        write_folder(folder, saved, shapes)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"], loaded
    vocab = config.vocab_size
    rng = np.random.default_rng(2024)
    tokens = rng.integers(3, vocab, LENGTH)
    with torch.no_grad():
        logits = model(torch.tensor(tokens[None])).logits[0].numpy()
    columns = np.arange(vocab)
    if vocab > MOST_COLUMNS:
        inner = rng.choice(vocab - 40, MOST_COLUMNS - 40, replace=False)
        columns = np.sort(np.concatenate([inner, np.arange(vocab - 40, vocab)]))
    np.savez_compressed(
        GOLDEN / f"{case}.npz", tokens=tokens, logits=logits[:, columns], columns=columns, argmax=logits.argmax(-1),
        std=np.float64(logits.std()), **rope_tables(model.model.rotary_emb),
    )  # fmt: skip
    lines = ",\n".join(f"{json.dumps(name)}: {size}" for name, size in shapes.items())
    (GOLDEN / f"{case}.json").write_text(f'{{"config": {json.dumps(saved, indent=1)},\n"tensors": {{\n{lines}\n}}}}\n')
    print(f"{case}: std {logits.std():.3f}, {(GOLDEN / f'{case}.npz').stat().st_size >> 10} KiB")


def resolve(values: dict) -> dict:
    """What transformers makes of a config.json, read off a model without weights (meta device)."""
    config = AutoConfig.for_model(**copy.deepcopy(values))
    saved, text = config.to_diff_dict(), config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    model.tie_weights()
    layers, inner = model.model.layers, model.model
    attention = layers[0].self_attn
    # the mask of transformers decides, and that looks at layer_types only where the model has a mask per type
    by_type = text.model_type in ("qwen2", "qwen3", "gemma2", "gemma3_text")
    types = text.layer_types if by_type else ["sliding_attention"] * len(layers)
    window = getattr(text, "sliding_window", None) if text.model_type != "llama" else None
    tables = rope_tables(type(inner.rotary_emb)(text))
    rotary = {kind.replace("/", "_"): table.tolist() for kind, table in tables.items()}
    if inner.rotary_emb.rope_type == "longrope":
        longer = text.rope_parameters["original_max_position_embeddings"] + 1
        rotary["inv_freq_long"] = ROPE_INIT_FUNCTIONS["longrope"](text, None, longer)[0].tolist()
    mlp = layers[0].mlp
    activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None) or mlp.experts.act_fn
    expected = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tied": "lm_head.weight" not in dict(model.named_parameters()),
        "head_dim": attention.head_dim,
        "attention_scale": attention.scaling,
        "windows": [window if kind == "sliding_attention" else None for kind in types],
        "norm_eps": text.rms_norm_eps,
        "context": text.max_position_embeddings,
        "embed_scale": float(getattr(inner.embed_tokens, "scalar_embed_scale", 1.0)),
        "activation": type(activation).__name__,
        "final_softcap": getattr(text, "final_logit_softcapping", None),
        "bos": config.bos_token_id if getattr(config, "bos_token_id", None) is not None else text.bos_token_id,
        "eos": config.eos_token_id if getattr(config, "eos_token_id", None) is not None else text.eos_token_id,
        "rope": rotary,
    }
    return {"config": values, "saved": saved, "expected": expected}


def make_real() -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(resolve(values))}" for name, values in REAL.items()]
    (GOLDEN / "real.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"real.json: {len(lines)} configs, {(GOLDEN / 'real.json').stat().st_size >> 10} KiB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or [*CASES, "real"]:
        make_real() if chosen == "real" else make(chosen)
