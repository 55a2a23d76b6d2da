"""GGUF metadata and tensor names seen as a Hugging Face model, and what `mlcrt.models` makes of them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model
from mlcrt.models import decoder_config


def test_smollm2(smollm2):
    """The values of the model's published config.json."""
    source = open_model(smollm2)
    expected = {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rope_scaling": None, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": [2, 0],
    }  # fmt: skip
    assert {key: source.config[key] for key in expected} == expected
    assert source.config["rms_norm_eps"] == pytest.approx(1e-5)
    assert (source.name, source.kind) == ("SmolLM2-135M-Instruct", "gguf")
    assert len(source.tensors.names()) == 272
    assert source.tensors.info("model.layers.7.mlp.down_proj.weight").shape == (576, 1536)
    assert source.tensors.info("model.layers.7.mlp.down_proj.weight").dtype == "Q4_1"
    assert decoder_config(source.config).head_dim == 64


def rotate(x: np.ndarray, position: int, interleaved: bool) -> np.ndarray:
    """RoPE of [heads, dim] at a position: pairs (2i, 2i+1) when interleaved, else (i, i + dim/2)."""
    half = x.shape[1] // 2
    angle = position * 10000.0 ** (-np.arange(half) / half)
    first, second = (x[:, 0::2], x[:, 1::2]) if interleaved else (x[:, :half], x[:, half:])
    turned = (first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle))
    out = np.empty_like(x)
    if interleaved:
        out[:, 0::2], out[:, 1::2] = turned
    else:
        out[:, :half], out[:, half:] = turned
    return out


def test_rotary_order_of_llama(tiny_gguf):
    """Attention scores from the file's order with interleaved RoPE equal those from our order with half RoPE."""
    path, weights = tiny_gguf()
    tensors = open_model(path).tensors
    x, y = np.random.default_rng(1).standard_normal((2, 32))
    for heads, part in ((4, "q"), (2, "k")):
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        stored, ours = weights[f"blk.0.attn_{part}.weight"].astype(np.float64), tensors.load(name).astype(np.float64)
        assert not np.array_equal(stored, ours)

        def score(weight, interleaved, heads=heads):
            a, b = (rotate((weight @ v).reshape(heads, 8), p, interleaved) for v, p in ((x, 5), (y, 3)))
            return (a * b).sum(axis=1)

        np.testing.assert_allclose(score(stored, True), score(ours, False), rtol=1e-12)
    np.testing.assert_array_equal(
        tensors.load("model.layers.0.self_attn.v_proj.weight"), weights["blk.0.attn_v.weight"]
    )


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_rows_of_permuted_blocks(start, stop):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in {"block_count": 1, "context_length": 8, "embedding_length": 64, "feed_forward_length": 32,
                           "attention.head_count": 4}.items():  # fmt: skip
            writer.add_uint32(f"llama.{key}", value)
        writer.add_layer_norm_rms_eps(1e-5)
        values = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
        raw = gguf.quantize(values, Type.Q4_0)
        writer.add_tensor("token_embd.weight", values)
        writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=Type.Q4_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tensors = open_model(path).tensors
        name, rows = "model.layers.0.self_attn.q_proj.weight", slice(start, stop)
        order = np.arange(40).reshape(4, 5, 2).swapaxes(1, 2).reshape(-1)  # 4 heads of 10 rows
        np.testing.assert_array_equal(tensors.blocks(name, rows), raw[order][rows])
        np.testing.assert_array_equal(tensors.load(name, rows), gguf.dequantize(raw, Type.Q4_0)[order][rows])


def config(tiny_gguf, arch="llama", metadata=None, tensors=None) -> dict:
    return open_model(tiny_gguf(arch, metadata, tensors)[0]).config


def test_tied_and_untied(tiny_gguf):
    head = np.ones((40, 32), np.float32)
    assert config(tiny_gguf)["tie_word_embeddings"] is True
    source = open_model(tiny_gguf(tensors={"output.weight": head})[0])
    assert source.config["tie_word_embeddings"] is False and "lm_head.weight" in source.tensors


def test_rope_frequency_factors_equal_llama3_scaling(tiny_gguf):
    """The factors that Llama 3's four parameters mean, written as llama.cpp's converter does, give the same table."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    wave = 2 * math.pi * 500000.0 ** (np.arange(4) / 4)
    blend = (8192 / wave - 1) / 3
    factors = np.where(wave < 8192 / 4, 1, np.where(wave > 8192, 8, 1 / ((1 - blend) / 8 + blend))).astype(np.float32)
    assert len(set(factors)) > 2
    got = config(tiny_gguf, metadata={"rope.freq_base": 500000.0}, tensors={"rope_freqs.weight": factors})
    assert got["rope_scaling"] == {"rope_type": "freq_factors", "factors": [float(value) for value in factors]}
    ours = decoder_config(got).ropes[0].inv_freq
    np.testing.assert_allclose(ours, decoder_config({**got, "rope_scaling": llama3}).ropes[0].inv_freq, rtol=3e-7)


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling(tiny_gguf, metadata, scaling):
    got = config(tiny_gguf, metadata=metadata)
    assert got["rope_scaling"] == scaling
    decoder_config(got)


def test_mistral_window_and_biases(tiny_gguf):
    got = config(tiny_gguf, metadata={"attention.sliding_window": 16})
    assert (got["model_type"], got["sliding_window"]) == ("mistral", 16)
    biases = {
        f"blk.0.attn_{part}.bias": np.arange(n, dtype=np.float32) for part, n in (("q", 32), ("k", 16), ("v", 16))
    }
    source = open_model(tiny_gguf(tensors=biases)[0])
    assert source.config["model_type"] == "qwen2"  # what q, k, v biases without an o bias are
    bias = source.tensors.load("model.layers.0.self_attn.q_proj.bias")
    assert bias[:8].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    biases["blk.0.attn_output.bias"] = np.zeros(32, np.float32)
    assert config(tiny_gguf, tensors=biases)["attention_bias"] is True


@pytest.mark.parametrize(("arch", "norm"), [("qwen2", False), ("qwen3", True)])
def test_qwen(tiny_gguf, arch, norm):
    extra = {f"blk.0.attn_{part}_norm.weight": np.full(16, 2, np.float32) for part in "qk"} if norm else {}
    path, weights = tiny_gguf(arch, {"attention.key_length": 16, "attention.value_length": 16}, extra)
    source = open_model(path)
    assert source.config["model_type"] == arch and source.config["head_dim"] == 16
    if norm:
        assert source.tensors.load("model.layers.0.self_attn.q_norm.weight").tolist() == [2.0] * 16
    q = source.tensors.load("model.layers.0.self_attn.q_proj.weight")  # in file order: only `llama` reorders rows
    np.testing.assert_array_equal(q, weights["blk.0.attn_q.weight"])
    decoder_config(source.config)


def test_phi3(tiny_gguf):
    draw = np.random.default_rng(0).standard_normal
    tensors = {f"blk.0.{part}.weight": None for part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")}
    tensors["blk.0.attn_qkv.weight"] = draw((64, 32)).astype(np.float32)
    tensors["blk.0.ffn_up.weight"] = draw((96, 32)).astype(np.float32)
    tensors["rope_factors_long.weight"] = np.float32([1, 4, 6])
    tensors["rope_factors_short.weight"] = np.float32([1, 1, 2])
    metadata = {"rope.dimension_count": 6, "rope.scaling.original_context_length": 16, "attention.sliding_window": 0}
    source = open_model(tiny_gguf("phi3", metadata, tensors)[0])
    assert source.config["head_dim"] == 8 and source.config["partial_rotary_factor"] == 0.75
    assert source.config["original_max_position_embeddings"] == 16 and source.config["sliding_window"] is None
    assert source.config["rope_scaling"]["long_factor"] == [1.0, 4.0, 6.0]
    gate_up = source.tensors.load("model.layers.0.mlp.gate_up_proj.weight")
    np.testing.assert_array_equal(gate_up, tensors["blk.0.ffn_up.weight"])
    assert "model.layers.0.self_attn.qkv_proj.weight" in source.tensors
    decoder_config(source.config)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma(tiny_gguf, arch):
    tensors = {
        f"blk.0.{part}.weight": np.full(32, 1.5, np.float32) for part in ("post_attention_norm", "post_ffw_norm")
    }
    if arch == "gemma3":
        tensors |= {f"blk.0.attn_{part}_norm.weight": np.full(8, 1.25, np.float32) for part in "qk"}
    metadata = {"attention.key_length": 8, "attention.sliding_window": 16, "rope.freq_base": None}
    metadata |= {"attn_logit_softcapping": 40.0} if arch == "gemma2" else {}
    path, weights = tiny_gguf(arch, metadata, tensors)
    source = open_model(path)
    got = source.config
    layer = "model.layers.0."
    pre_mlp = source.tensors.load(layer + "pre_feedforward_layernorm.weight")
    np.testing.assert_array_equal(pre_mlp, weights["blk.0.ffn_norm.weight"] - 1)
    np.testing.assert_array_equal(source.tensors.load("model.norm.weight"), weights["output_norm.weight"] - 1)
    assert source.tensors.load(layer + "post_attention_layernorm.weight")[0] == 0.5
    assert source.tensors.load(layer + "post_feedforward_layernorm.weight")[0] == 0.5
    assert got["query_pre_attn_scalar"] == 8 and got["layer_types"] == ["sliding_attention"]
    if arch == "gemma3":
        assert source.tensors.load(layer + "self_attn.q_norm.weight")[0] == 0.25
        assert got["model_type"] == "gemma3_text" and got["attn_logit_softcapping"] is None
        assert (got["rope_theta"], got["rope_local_base_freq"]) == (1e6, 1e4)
    else:
        assert (got["attn_logit_softcapping"], got["final_logit_softcapping"]) == (40.0, 30.0)
    decoder_config(got)


def test_gemma_27b_scales_by_hidden_over_heads(tiny_gguf):
    metadata = {"block_count": 46, "attention.key_length": 16, "attention.sliding_window": 16}
    got = config(tiny_gguf, "gemma2", metadata)
    assert got["query_pre_attn_scalar"] == 8
    assert got["layer_types"][:3] == ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize("stacked", [True, False])
def test_mixtral_experts(tiny_gguf, stacked):
    draw = np.random.default_rng(0)
    gate, up = draw.standard_normal((2, 3, 48, 32)).astype(np.float32)
    down = gguf.quantize(draw.standard_normal((3, 32, 64)).astype(np.float32), Type.Q8_0)
    tensors = {f"blk.0.ffn_{part}.weight": None for part in ("gate", "up", "down")}
    tensors["blk.0.ffn_gate_inp.weight"] = draw.standard_normal((3, 32)).astype(np.float32)
    if stacked:
        tensors |= {"blk.0.ffn_gate_exps.weight": gate, "blk.0.ffn_up_exps.weight": up,
                    "blk.0.ffn_down_exps.weight": (down, "Q8_0")}  # fmt: skip
    else:
        for number in range(3):
            tensors |= {f"blk.0.ffn_gate.{number}.weight": gate[number], f"blk.0.ffn_up.{number}.weight": up[number],
                        f"blk.0.ffn_down.{number}.weight": (down[number], "Q8_0")}  # fmt: skip
    source = open_model(tiny_gguf("llama", {"expert_count": 3, "expert_used_count": 2}, tensors)[0])
    assert source.config["model_type"] == "mixtral" and source.config["num_local_experts"] == 3
    experts = "model.layers.0.block_sparse_moe.experts"
    for number in range(3):
        np.testing.assert_array_equal(source.tensors.load(f"{experts}.{number}.w1.weight"), gate[number])
        np.testing.assert_array_equal(
            source.tensors.load(f"{experts}.{number}.w3.weight", slice(4, 9)), up[number, 4:9]
        )
        name = f"{experts}.{number}.w2.weight"
        np.testing.assert_array_equal(source.tensors.load(name), gguf.dequantize(down[number], Type.Q8_0))
        np.testing.assert_array_equal(source.tensors.blocks(name, slice(1, 3)), down[number, 1:3])
    assert source.tensors.info("model.layers.0.block_sparse_moe.gate.weight").shape == (3, 32)
    decoder_config(source.config)


def test_qwen3_moe(tiny_gguf):
    tensors = {f"blk.0.ffn_{part}.weight": None for part in ("gate", "up", "down")}
    tensors |= {f"blk.0.attn_{part}_norm.weight": np.ones(8, np.float32) for part in "qk"}
    tensors |= {f"blk.0.ffn_{part}_exps.weight": np.ones((4, 16, 32), np.float32) for part in ("gate", "up")}
    tensors |= {"blk.0.ffn_down_exps.weight": np.ones((4, 32, 16), np.float32),
                "blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)}  # fmt: skip
    metadata = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
    source = open_model(tiny_gguf("qwen3moe", metadata, tensors)[0])
    assert source.config["norm_topk_prob"] is True and source.config["moe_intermediate_size"] == 16
    assert source.tensors.info("model.layers.0.mlp.experts.3.down_proj.weight").shape == (32, 16)
    assert decoder_config(source.config).moe.experts == 4


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"block_count": None}, {}, "lacks the metadata 'llama.block_count'"),
        ({"attention.head_count": 0}, {}, "'llama.attention.head_count' is 0, not a count"),
        ({"embedding_length": 64}, {}, "contradicts itself"),
        ({"block_count": 10**6}, {}, "contradicts itself"),
        ({"feed_forward_length": [48, 32]}, {}, "differs from layer to layer"),
        ({"attention.head_count": 5}, {}, "not 5 attention heads"),
        ({"attention.value_length": 4}, {}, "different sizes per head"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, {}, "not a usable float"),
        ({"rope.scaling.type": "zigzag"}, {}, "type 'zigzag' is not supported"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": -1.0}, {}, "not positive"),
        ({}, {"rope_freqs.weight": np.float32([1, -1, 1, 1])}, "not positive numbers"),
        ({}, {"token_embd.weight": None}, "no token_embd.weight"),
        ({}, {"blk.0.surprise.weight": np.ones(3, np.float32)}, "'blk.0.surprise.weight' has no place"),
        ({}, {"blk.1.attn_norm.weight": np.ones(3, np.float32)}, "'blk.1.attn_norm.weight' has no place"),
        ({"expert_count": 3, "expert_used_count": 1},
         {"blk.0.ffn_up_exps.weight": np.ones((2, 4, 32), np.float32)}, "does not hold 3 experts"),
    ],
)  # fmt: skip
def test_unusable_model(tiny_gguf, metadata, tensors, says):
    path, _ = tiny_gguf("llama", metadata, tensors)
    with pytest.raises(MlcrtError, match=says) as caught:
        open_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_architecture(tiny_gguf):
    with pytest.raises(MlcrtError, match="architecture 'mamba' is not supported; mlcrt reads llama"):
        open_model(tiny_gguf("mamba")[0])
