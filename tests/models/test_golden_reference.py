"""Config mapping, names and RoPE against transformers: a NumPy decoder driven by them must give its logits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference
import tiny
from safetensors import safe_open
from tokenizers import Tokenizer

from mlcrt.models import FAMILIES, Rope, decoder_config

TOLERANCE = 2e-4  # of the standard deviation of the logits
CASES = tiny.cases()


def config_of(case):
    return decoder_config(tiny.record(case)["config"], where=f"{case}.json")


def error(config, params, golden):
    """Largest deviation in standard deviations of the golden logits; a mutation may give NaN, which counts as large."""
    out = reference.logits(config, params, golden.tokens)[:, golden.columns]
    return np.nan_to_num(np.abs(out - golden.logits).max() / golden.std, nan=np.inf)


def test_cases_cover_the_families_and_the_awkward_shapes():
    configs = {case: config_of(case) for case in CASES}
    assert {c.family for c in configs.values()} == set(FAMILIES)
    assert {c.head_dim for c in configs.values()} >= {64, 80, 96, 128, 256}
    assert {c.heads // c.kv_heads for c in configs.values()} >= {1, 4, 7, 8}
    assert sum(c.vocab == 32003 for c in configs.values()) >= 2
    assert {c.tie_embeddings for c in configs.values()} == {True, False}
    assert any(c.hidden % 32 for c in configs.values()) and any(c.intermediate % 32 for c in configs.values())
    assert sum(path.stat().st_size for path in tiny.GOLDEN.iterdir()) < 3 << 20


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case):
    config, golden = config_of(case), tiny.golden(case)
    params = reference.read(config, tiny.tensors(case))
    out = reference.logits(config, params, golden.tokens)
    assert np.abs(out[:, golden.columns] - golden.logits).max() <= TOLERANCE * golden.std
    assert (out.argmax(-1) == golden.argmax).all()


@pytest.mark.parametrize("case", CASES)
def test_prefixes_give_the_same_logits(case):
    # what prefill in chunks relies on: no position sees a later one
    config, golden = config_of(case), tiny.golden(case)
    params = reference.read(config, tiny.tensors(case))
    out = reference.logits(config, params, golden.tokens[:17])[:, golden.columns]
    assert np.abs(out - golden.logits[:17]).max() <= TOLERANCE * golden.std


def mutations(config):
    """(what, config) for every switch of the config that is not neutral."""
    plain = decoder_config(dict(tiny.record("llama_mha")["config"], hidden_size=config.heads * config.head_dim,
                                num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
                                head_dim=config.head_dim)).ropes[0]  # fmt: skip
    for i, table in enumerate(config.ropes):
        if table.inv_freq != plain.inv_freq:
            yield f"rope {i}", replace(config, ropes=(*config.ropes[:i], plain, *config.ropes[i + 1 :]))
        if table.attention_factor != 1:
            yield "attention factor", replace(config, ropes=(Rope(table.inv_freq, 1.0),))
    if len(config.ropes) > 1:
        yield "ropes swapped", replace(config, ropes=config.ropes[::-1])
    windows = config.layer_window
    if any(windows):
        yield "no windows", replace(config, layer_window=(None,) * config.layers)
        yield "window + 1", replace(config, layer_window=tuple(w and w + 1 for w in windows))
    if any(windows) and not all(windows):
        window = max(filter(None, windows))
        yield "other layers", replace(config, layer_window=tuple(None if w else window for w in windows))
    yield "attention scale", replace(config, attention_scale=config.attention_scale * 1.05)
    yield "activation", replace(config, activation="gelu_tanh" if config.activation == "silu" else "silu")
    for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "post_norms"):
        if getattr(config, name):
            yield name, replace(config, **{name: False})
    for name in ("attention_softcap", "final_softcap"):
        if getattr(config, name):
            yield name, replace(config, **{name: None})
    if config.embed_scale != 1:
        yield "embed scale", replace(config, embed_scale=1.0)
    if config.moe:
        yield "top-k weights", replace(config, moe=replace(config.moe, normalize_top_k=not config.moe.normalize_top_k))
        yield "top-k", replace(config, moe=replace(config.moe, top_k=config.moe.top_k - 1))


@pytest.mark.parametrize("case", CASES)
def test_golden_logits_notice_every_switch(case):
    """A golden file that could not tell a wrong config from the right one would prove nothing."""
    config, golden = config_of(case), tiny.golden(case)
    params = reference.read(config, tiny.tensors(case))
    missed = [what for what, other in mutations(config) if error(other, params, golden) < 10 * TOLERANCE]
    assert not missed


def test_swapped_parts_are_noticed():
    case = "mistral_window"
    config, golden = config_of(case), tiny.golden(case)
    params = reference.read(config, tiny.tensors(case))
    gate, up = np.split(params["layers.1.gate_up.weight"], 2)
    swapped = {**params, "layers.1.gate_up.weight": np.concatenate([up, gate])}
    assert error(config, swapped, golden) > 10 * TOLERANCE


@pytest.mark.parametrize("case", ["qwen2_yarn", "llama_mha"])
def test_make_tiny_writes_a_hugging_face_folder(case, tmp_path):
    folder = tiny.make_tiny(case, tmp_path / case)
    config = decoder_config(json.loads((folder / "config.json").read_text()))
    with safe_open(folder / "model.safetensors", "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    params = reference.read(config, tiny.MemoryTensors(arrays))
    assert error(config, params, tiny.golden(case)) <= TOLERANCE
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config.vocab
    assert tokenizer.decode(tokenizer.encode("naïve 日本\n").ids) == "naïve 日本\n"
    assert (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")) == (config.bos, *config.eos)
