"""Rotary tables against values stored from transformers (golden/real.json and golden/CASE.npz)."""

import json

import numpy as np
import pytest
import tiny

from mlcrt.errors import MlcrtError
from mlcrt.models import decoder_config
from mlcrt.models.fields import Fields
from mlcrt.models.rope import DEFAULTS, rope_table

REAL = json.loads((tiny.GOLDEN / "real.json").read_text())


def table(head_dim=64, context=4096, **scaling):
    return rope_table(Fields(scaling, "config.json", {**DEFAULTS, "rope_theta": 1e4}), head_dim, context)


def ulps(ours, theirs):
    """Largest distance in units in the last place; positive float32 order like their bits."""
    ours, theirs = (np.asarray(x, np.float32).view(np.int32).astype(np.int64) for x in (ours, theirs))
    return int(np.abs(ours - theirs).max())


def layer_tables(config):
    """Tables by the name of the layer type in the golden files."""
    if len(set(config.layer_rope)) == 1:
        return {"all": config.ropes[config.layer_rope[0]]}
    pairs = zip(config.layer_window, config.layer_rope, strict=True)
    return {"sliding_attention" if window else "full_attention": config.ropes[i] for window, i in pairs}


@pytest.mark.parametrize("name", REAL)
def test_frequencies_of_published_configs(name):
    expected, tables = REAL[name]["expected"]["rope"], layer_tables(decoder_config(REAL[name]["config"]))
    assert {f"inv_freq_{kind}" for kind in tables} == {k for k in expected if k[:3] == "inv" and k[-4:] != "long"}
    for kind, ours in tables.items():
        # torch's float32 power is itself up to 1 ulp from the exact one
        assert ulps(ours.inv_freq, expected[f"inv_freq_{kind}"]) <= 1
        assert ours.attention_factor == pytest.approx(expected[f"attention_factor_{kind}"], rel=1e-12)
    if "inv_freq_long" in expected:
        longer = decoder_config(REAL[name]["config"], long_context=True)
        assert ulps(longer.ropes[0].inv_freq, expected["inv_freq_long"]) <= 1


@pytest.mark.parametrize("case", tiny.cases())
def test_frequencies_of_golden_cases(case):
    golden, tables = tiny.golden(case), layer_tables(decoder_config(tiny.record(case)["config"]))
    assert set(golden.inv_freq) == set(tables)
    for kind, ours in tables.items():
        # Llama 3 blends two frequencies, which adds a rounding to the one of the power
        assert ulps(ours.inv_freq, golden.inv_freq[kind]) <= (2 if case.startswith("llama3") else 1)
        assert ours.attention_factor == pytest.approx(golden.attention_factor[kind], rel=1e-12)


def test_freq_factors_divide_the_frequencies():
    # the factors that GGUF stores for a Llama 3 scaling are its default frequencies over its scaled ones
    scaling = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192)  # fmt: skip
    plain, scaled = table(rope_theta=5e5), table(**scaling)
    factors = (np.float32(plain.inv_freq) / np.float32(scaled.inv_freq)).tolist()
    assert factors[0] == 1 and factors[-1] == 8
    ours = table(rope_type="freq_factors", rope_theta=5e5, factors=factors)
    assert ulps(ours.inv_freq, scaled.inv_freq) <= 1


def test_su_is_longrope_and_phi3_says_yarn_for_it_too():
    config = REAL["phi-3-mini-128k"]["config"]
    wanted = decoder_config(config)
    for name in ("su", "yarn"):
        assert decoder_config({**config, "rope_scaling": {**config["rope_scaling"], "type": name}}) == wanted


def test_longrope_says_which_table_it_uses(caplog):
    config = REAL["phi-3-mini-128k"]["config"]
    assert decoder_config(config).context == 4096
    assert "4096" in caplog.text and "131072" in caplog.text
    caplog.clear()
    assert decoder_config(config, long_context=True).context == 131072
    assert decoder_config({**config, "max_position_embeddings": 4096}).context == 4096
    assert not caplog.text


def test_yarn_stretches_the_context():
    assert decoder_config(REAL["qwen2.5-7b-yarn"]["config"]).context == 131072


def test_partial_rotation_counts_dimensions_exactly():
    for head_dim in (64, 72, 80, 96, 98, 128, 256):
        for rotary in range(2, head_dim + 1, 2):
            assert len(table(head_dim, partial_rotary_factor=rotary / head_dim).inv_freq) == rotary // 2


@pytest.mark.parametrize(
    "scaling, named",
    [
        ({"rope_type": "spiral"}, "rope_type"),
        ({"type": "mrope"}, "type"),
        ({"rope_type": ["linear"]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": "4"}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "high_freq_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1, "original_max_position_embeddings": 64}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0]}, "short_factor"),
        ({"rope_type": "freq_factors", "factors": [1.0] * 31 + [0.0]}, "factors"),
        ({"rope_type": "freq_factors"}, "factors"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 1e300}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.4}, "partial_rotary_factor"),  # 25 dimensions
    ],
)
def test_bad_scaling_is_named(scaling, named):
    with pytest.raises(MlcrtError, match=named) as caught:
        table(**scaling)
    assert str(caught.value).startswith("config.json") and "\n" not in str(caught.value)
