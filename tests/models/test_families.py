"""config.json → DecoderConfig: against what transformers reads (golden/real.json), and with bad input."""

import copy
import json
import math

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.models import FAMILIES, DecoderConfig, decoder_config, parameters

REAL = json.loads((tiny.GOLDEN / "real.json").read_text())
ACTIVATIONS = {"SiLUActivation": "silu", "GELUTanh": "gelu_tanh"}
LLAMA = REAL["llama-3.2-1b"]["config"]


@pytest.mark.parametrize("name", REAL)
def test_agrees_with_transformers(name):
    config, expected = decoder_config(REAL[name]["config"]), REAL[name]["expected"]
    assert sum(math.prod(p.shape) for p in parameters(config)) == expected["parameters"]
    assert config.tie_embeddings == expected["tied"]
    assert config.head_dim == expected["head_dim"]
    assert config.attention_scale == pytest.approx(expected["attention_scale"], rel=1e-12)
    assert list(config.layer_window) == expected["windows"]
    assert config.norm_eps == expected["norm_eps"]
    assert config.embed_scale == pytest.approx(expected["embed_scale"], rel=1e-12)
    assert config.activation == ACTIVATIONS[expected["activation"]]
    assert config.final_softcap == expected["final_softcap"]
    assert config.bos == expected["bos"]
    assert list(config.eos) == (expected["eos"] if isinstance(expected["eos"], list) else [expected["eos"]])
    if not any(word in name for word in ("phi-3-mini-128k", "phi-4", "qwen2.5-7b-yarn")):  # see test_rope.py
        assert config.context == expected["context"]


@pytest.mark.parametrize("name", REAL)
def test_both_spellings_mean_the_same(name):
    assert decoder_config(REAL[name]["saved"]) == decoder_config(REAL[name]["config"])


@pytest.mark.parametrize("name", REAL)
def test_survives_the_manifest(name):
    config = decoder_config(REAL[name]["config"])
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_architecture_names_the_supported_ones():
    for values in ({"model_type": "mamba"}, {"model_type": ["llama"]}, {}, {"model_type": None}):
        with pytest.raises(MlcrtError, match="model_type") as caught:
            decoder_config(values, where="some/config.json")
        assert "some/config.json" in str(caught.value) and all(family in str(caught.value) for family in FAMILIES)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": 2048.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": "128256"}, "vocab_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"intermediate_size": [8192]}, "intermediate_size"),
        ({"num_key_value_heads": 7}, "num_key_value_heads 7"),
        ({"head_dim": 63}, "head_dim"),
        ({"head_dim": None, "num_attention_heads": 24}, "num_attention_heads"),
        ({"hidden_act": "relu2"}, "hidden_act must be one of silu"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [2, 128256]}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type must be one of default, linear"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": 3}}, "rope_parameters"),
    ],
)
def test_bad_values_are_named(change, named):
    with pytest.raises(MlcrtError, match=named) as caught:
        decoder_config({**LLAMA, **change})
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, change, named",
    [
        ("qwen2-windows", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2-windows", {"layer_types": ["linear_attention"] * 24}, "layer_types"),
        ("qwen2-windows", {"max_window_layers": -1}, "max_window_layers"),
        ("qwen2-windows", {"sliding_window": 0}, "sliding_window"),
        ("gemma-2-2b", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma-3-1b", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma-3-1b", {"rope_local_base_freq": 0}, "rope_theta"),
        ("gemma-3-4b", {"text_config": None}, "text_config"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("mixtral-8x7b", {"num_local_experts": None}, "num_local_experts"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3-30b-a3b", {"norm_topk_prob": None, "num_experts": 0}, "num_experts"),
        ("phi-4-mini", {"partial_rotary_factor": 0.7}, "partial_rotary_factor"),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor"),
    ],
)
def test_bad_values_of_families_are_named(name, change, named):
    with pytest.raises(MlcrtError, match=named):
        decoder_config({**REAL[name]["config"], **change})


def test_null_and_absent_window_differ():
    config = dict(REAL["mistral-v0.3"]["config"])
    assert set(decoder_config(config).layer_window) == {None}
    del config["sliding_window"]
    assert set(decoder_config(config).layer_window) == {4096}  # what transformers assumes
    windows = {**REAL["qwen2-windows"]["config"], "sliding_window": None}
    assert set(decoder_config(windows).layer_window) == {None}


def test_null_token_ids_are_none():
    config = decoder_config({**LLAMA, "bos_token_id": None, "eos_token_id": None})
    assert config.bos is None and config.eos == ()


def test_multimodal_config_equals_its_text_part():
    nested = REAL["gemma-3-4b"]["config"]
    text = {**nested["text_config"], "eos_token_id": nested["eos_token_id"]}
    assert decoder_config(nested) == decoder_config(text)
    assert not decoder_config({**nested, "tie_word_embeddings": False}).tie_embeddings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
SCALINGS = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn", "longrope", "dynamic", "freq_factors"])},
    optional={
        key: JSON
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta",
                    "mscale", "mscale_all_dim", "beta_fast", "attention_factor", "truncate", "short_factor", "factors")
    },
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nonsense_never_escapes_as_another_error(data):
    config = copy.deepcopy(REAL[data.draw(st.sampled_from(sorted(REAL)))]["config"])
    keys = [key for key in config if key != "model_type"]
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=3)):
        config[key] = data.draw(JSON)
    if data.draw(st.booleans()):
        config["rope_scaling"] = data.draw(SCALINGS)
    try:
        result = decoder_config(config)
    except MlcrtError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert DecoderConfig.from_dict(json.loads(json.dumps(result.to_dict()))) == result
        assert all(math.isfinite(f) for rope in result.ropes for f in (*rope.inv_freq, rope.attention_factor))
