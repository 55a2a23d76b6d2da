"""Parameters, the checkpoint tensors they come from, and what is said about a checkpoint that does not fit."""

import numpy as np
import pytest
import tiny

from mlcrt.errors import MlcrtError
from mlcrt.models import decoder_config, load, parameters, sources, verify


def opened(case):
    return decoder_config(tiny.record(case)["config"]), tiny.tensors(case)


def renamed(tensors, rename):
    return tiny.MemoryTensors({rename(name): array for name, array in tensors.arrays.items()})


def everything(config, tensors):
    pieces = verify(config, tensors)
    return {p.name: load(p, pieces[p.name], tensors) for p in parameters(config)}


@pytest.mark.parametrize("case", tiny.cases())
def test_every_tensor_is_used_once_and_shapes_add_up(case):
    config, tensors = opened(case)
    pieces = verify(config, tensors)
    assert sorted(p.tensor for ps in pieces.values() for p in ps) == sorted(tensors.names())
    assert list(pieces) == [p.name for p in parameters(config)]
    for p in parameters(config):
        value = load(p, pieces[p.name], tensors)
        assert value.shape == p.shape and value.dtype == np.float32


def test_order_and_kinds():
    config, _ = opened("llama_linear_bias")
    assert [(p.name, p.kind) for p in parameters(config)][:11] == [
        ("embed.weight", "embedding"),
        ("layers.0.attn_norm", "norm"),
        ("layers.0.qkv.weight", "linear"),
        ("layers.0.qkv.bias", "bias"),
        ("layers.0.o.weight", "linear"),
        ("layers.0.o.bias", "bias"),
        ("layers.0.mlp_norm", "norm"),
        ("layers.0.gate_up.weight", "linear"),
        ("layers.0.gate_up.bias", "bias"),
        ("layers.0.down.weight", "linear"),
        ("layers.0.down.bias", "bias"),
    ]
    names = [p.name for p in parameters(config)]
    assert names[-1] == "final_norm"  # tied: no lm_head
    assert parameters(opened("llama_mha")[0])[-1].name == "lm_head.weight"


def test_packing_order():
    config, tensors = opened("qwen2_yarn")
    pieces = sources(config, tensors)
    layer = "model.layers.1.self_attn."
    assert [p.tensor for p in pieces["layers.1.qkv.bias"]] == [f"{layer}{x}_proj.bias" for x in "qkv"]
    value = everything(config, tensors)["layers.1.qkv.weight"]
    for x, rows in (("q", slice(0, 448)), ("k", slice(448, 512)), ("v", slice(512, 576))):
        assert (value[rows] == tensors.arrays[f"{layer}{x}_proj.weight"]).all()


def test_gemma_norms_get_their_one():
    config, tensors = opened("gemma3_alternating")
    value = everything(config, tensors)
    stored = tensors.arrays["model.layers.2.pre_feedforward_layernorm.weight"]
    assert (value["layers.2.mlp_norm"] == stored + np.float32(1)).all()
    assert {p.transform for p in parameters(config) if p.kind == "norm"} == {"plus_one"}
    assert {p.transform for p in parameters(config) if p.kind != "norm"} == {None}


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model."])
def test_prefixes(prefix):
    config, tensors = opened("gemma3_alternating")
    other = renamed(tensors, lambda name: name.replace("model.", prefix, 1))
    other.arrays["vision_tower.encoder.layers.0.weight"] = np.zeros(3, np.float32)  # none of the decoder's business
    want, got = everything(config, tensors), everything(config, other)
    assert all((got[name] == value).all() for name, value in want.items())


@pytest.mark.parametrize("lm_head", ["language_model.lm_head.weight", "lm_head.weight"])
def test_lm_head_names(lm_head):
    config, tensors = opened("llama_mha")
    other = renamed(tensors, lambda name: lm_head if name == "lm_head.weight" else name)
    assert (everything(config, other)["lm_head.weight"] == tensors.arrays["lm_head.weight"]).all()


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("stacked", ["transformers", "gguf"])
def test_stacked_experts_equal_separate_ones(case, stacked):
    config, tensors = opened(case)
    want = everything(config, tensors)
    arrays = {k: v for k, v in tensors.arrays.items() if ".experts." not in k}
    for i in range(config.layers):
        base, gate_up = f"model.layers.{i}.mlp.experts.", want[f"layers.{i}.experts.gate_up.weight"]
        down = want[f"layers.{i}.experts.down.weight"]
        if stacked == "transformers":
            arrays |= {f"{base}gate_up_proj": gate_up, f"{base}down_proj": down}
        else:
            gate, up = np.split(gate_up, 2, axis=1)
            arrays |= {f"{base}gate_proj.weight": gate, f"{base}up_proj.weight": up, f"{base}down_proj.weight": down}
    got = everything(config, tiny.MemoryTensors(arrays))
    assert all((got[name] == value).all() for name, value in want.items())


def test_split_phi3_equals_fused():
    config, tensors = opened("phi3_longrope")
    arrays = dict(tensors.arrays)
    for i in range(config.layers):
        base = f"model.layers.{i}."
        q, k, v = np.split(arrays.pop(f"{base}self_attn.qkv_proj.weight"), 3)
        gate, up = np.split(arrays.pop(f"{base}mlp.gate_up_proj.weight"), 2)
        arrays |= {f"{base}self_attn.{x}_proj.weight": part for x, part in zip("qkv", (q, k, v), strict=True)}
        arrays |= {f"{base}mlp.gate_proj.weight": gate, f"{base}mlp.up_proj.weight": up}
    want, got = everything(config, tensors), everything(config, tiny.MemoryTensors(arrays))
    assert all((got[name] == value).all() for name, value in want.items())


@pytest.mark.parametrize("case", tiny.cases())
def test_any_missing_or_misshapen_tensor_is_named(case):
    config, tensors = opened(case)
    for name, array in tensors.arrays.items():
        rest = {k: v for k, v in tensors.arrays.items() if k != name}
        with pytest.raises(MlcrtError, match=r"missing from model\.safetensors") as caught:
            verify(config, tiny.MemoryTensors(rest))
        assert name in str(caught.value)
        wrong = tiny.MemoryTensors({**rest, name: np.zeros((array.shape[0] + 1, *array.shape[1:]), np.float32)})
        with pytest.raises(MlcrtError) as caught:
            verify(config, wrong)
        message = str(caught.value)
        assert name in message and "model.safetensors" in message and "\n" not in message
        assert f"[{', '.join(map(str, array.shape))}]" in message and f"[{array.shape[0] + 1}" in message


def test_empty_and_sharded_checkpoints():
    config, tensors = opened("llama_mha")
    with pytest.raises(MlcrtError, match="empty"):
        verify(config, tiny.MemoryTensors({}))

    class Sharded(tiny.MemoryTensors):
        def info(self, name):
            info = super().info(name)
            return tiny.Info(info.name, info.shape, info.dtype, f"model-{len(name) % 2}.safetensors")

    del tensors.arrays["model.norm.weight"]
    with pytest.raises(MlcrtError, match=r"model\.norm\.weight \[96\] is missing from model-0.* and the 1 other"):
        verify(config, Sharded(tensors.arrays))


@pytest.mark.parametrize("extra", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "self_attn.q_proj.weight_scale"])
def test_tensors_that_would_be_left_out_are_refused(extra):
    config, tensors = opened("llama_mha")
    tensors.arrays[f"model.layers.0.{extra}"] = np.zeros(96, np.float32)
    with pytest.raises(MlcrtError, match="no place") as caught:
        verify(config, tensors)
    assert extra in str(caught.value)


def test_a_layer_too_many_is_refused_and_rope_buffers_are_not():
    config, tensors = opened("llama_mha")
    tensors.arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(16, np.float32)
    verify(config, tensors)
    tensors.arrays["model.layers.2.input_layernorm.weight"] = np.zeros(96, np.float32)
    with pytest.raises(MlcrtError, match=r"layers\.2"):
        verify(config, tensors)


def test_lm_head_of_a_tied_model_is_ignored():
    # transformers ignores it as well; some checkpoints save the embeddings twice
    config, tensors = opened("qwen3_norms")
    tensors.arrays["lm_head.weight"] = np.zeros((503, 72), np.float32)
    assert "lm_head.weight" not in verify(config, tensors)
