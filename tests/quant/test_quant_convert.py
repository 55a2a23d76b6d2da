"""Whole models converted: what is stored equals what the checkpoint says, and folders are treated with care."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from small_gguf import write_gguf

from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.formats import open_model
from mlcrt.models import parameters, sources
from mlcrt.quant import SCHEMES, convert, convert_model
from mlcrt.quant.model import converted, default_quantization
from mlcrt.quant.pack import unpack_rows


def stored(folder: Path) -> dict[str, np.ndarray]:
    """{parameter: float32 array of its own shape}, read by the safetensors package."""
    dist = open_dist(folder)
    arrays = {}
    for file in dist.manifest["params"]["files"]:
        arrays |= load_file(folder / file)
    result = {}
    for p in parameters(dist.config):
        if p.name not in dist.manifest["schemes"]:
            result[p.name] = arrays[p.name]
            continue
        scheme = SCHEMES[dist.manifest["schemes"][p.name]]
        parts = {s: arrays[f"{p.name}.{s}" if s else p.name] for s in scheme.tensors(*p.shape[-2:])}
        if scheme.layout == "KN":
            parts = {s: a.swapaxes(-1, -2) for s, a in parts.items()}
        flat = {s: np.ascontiguousarray(a).reshape(-1, a.shape[-1]) for s, a in parts.items()}
        result[p.name] = unpack_rows(flat, scheme, p.shape[-1]).reshape(p.shape)
    return result


def checkpoint(model: Path, folder: Path) -> dict[str, np.ndarray]:
    """{parameter: float32 array} straight from the checkpoint."""
    source, config = open_model(model), open_dist(folder).config
    pieces = sources(config, source.tensors)
    result = {}
    for p in parameters(config):
        flat = [source.tensors.load(x.tensor, x.rows).reshape(-1, *p.shape[1:][-1:]) for x in pieces[p.name]]
        result[p.name] = np.concatenate(flat).reshape(p.shape) + np.float32(p.transform == "plus_one")
    return result


# --- Hugging Face folders ---


@pytest.mark.parametrize("case", ["llama3_gqa7", "gemma2_softcap", "qwen3_moe", "phi3_longrope"])
@pytest.mark.parametrize(("name", "most"), [
    ("q0f32", 0), ("q0f16", 3e-4), ("q8f16_1", 0.006), ("q4f16_1", 0.1), ("q4f16_0", 0.1), ("q4f32_1", 0.1),
    ("q4f16_asym", 0.1), ("q3f16_1", 0.21),
])  # fmt: skip
def test_error_of_every_parameter(tmp_path, case, name, most):
    """Root mean square error over the weights' own, for uniform weights; norms, biases and routers are exact."""
    model = tiny.make_tiny(case, tmp_path / case)
    folder = convert_model(model, name, tmp_path / "out")
    schemes = open_dist(folder).manifest["schemes"]
    expected, got = checkpoint(model, folder), stored(folder)
    for parameter, values in expected.items():
        error = np.sqrt(((got[parameter] - values) ** 2).mean() / (values**2).mean())
        exact = parameter not in schemes or parameter.endswith("router.weight")
        assert schemes.get(parameter) == (None if parameter not in schemes else "q0f32" if exact else name)
        assert error == 0 if exact else most / 4 <= error <= most, parameter


@pytest.mark.parametrize("case", ["llama_mha", "mixtral"])
def test_q4f16_0_is_q4f16_1_turned(tmp_path, case):
    model = tiny.make_tiny(case, tmp_path / case)
    first, second = (stored(convert_model(model, name, tmp_path / name)) for name in ("q4f16_1", "q4f16_0"))
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)


@pytest.mark.parametrize("name", ["q4f16_1", "q4f16_0", "q3f16_1", "q0f16"])
def test_blocks_of_rows_do_not_show(tmp_path, name, monkeypatch):
    """The same bytes whether a tensor is quantised at once or a few rows at a time."""
    model = tiny.make_tiny("mixtral", tmp_path / "m")
    whole = convert_model(model, name, tmp_path / "whole")
    monkeypatch.setattr(convert, "BLOCK_ELEMENTS", 1000)
    pieces = convert_model(model, name, tmp_path / "pieces")
    file = "params-00001-of-00001.safetensors"
    assert (whole / file).read_bytes() == (pieces / file).read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("name", ["q0f32", "q4f16_1"])
def test_a_weight_that_is_not_finite(tmp_path, tensor, value, name):
    model = tiny.make_tiny("llama3_gqa7", tmp_path / "m")
    arrays = dict(load_file(model / "model.safetensors"))
    arrays[tensor] = arrays[tensor].copy()
    arrays[tensor].flat[-1] = value
    save_file(arrays, model / "model.safetensors")
    with pytest.raises(MlcrtError, match=r"model\.safetensors contains (NaN|infinity)") as error:
        convert_model(model, name, tmp_path / "out" / "d")
    assert tensor in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_keep_needs_a_gguf(tmp_path):
    model = tiny.make_tiny("llama_mha", tmp_path / "m")
    with pytest.raises(MlcrtError, match="keeps a GGUF file's codes, and .* is not one; use q4f16_1"):
        convert_model(model, "gguf", tmp_path / "out")
    assert default_quantization(open_model(model)) == "q4f16_1"


def test_unknown_scheme_is_refused_first(tmp_path):
    with pytest.raises(UsageError, match="unknown quantization 'q2'"):
        convert_model(tmp_path / "no such model", "q2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- GGUF ---


def exact(model: Path, folder: Path, *but: str) -> None:
    """Everything stored equals gguf's dequantisation, except the named parameters."""
    got = stored(folder)
    for name, values in checkpoint(model, folder).items():
        if name not in but:
            np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_mixed_types_are_kept(tmp_path):
    """q, k, v of two types share an 8-bit scheme; each other weight has its own; K-quants are dequantised and said."""
    model = write_gguf(tmp_path / "m.gguf", {
        "attn_q": "Q4_0", "attn_k": "Q8_0", "attn_v": "Q4_0", "attn_output": "Q4_1", "ffn_gate": "Q4_K",
        "ffn_up": "Q6_K", "ffn_down": "Q8_0", "token_embd": "F16", "output": "F32",
    })  # fmt: skip
    said = []
    folder = convert_model(model, None, tmp_path / "out", said.append)
    assert open_dist(folder).manifest["quantization"] == "gguf"
    assert open_dist(folder).manifest["schemes"] == {
        "embed.weight": "q0f16",
        "layers.0.qkv.weight": "q8f16_1",
        "layers.0.o.weight": "q4f16_asym",
        "layers.0.gate_up.weight": "q0f16",
        "layers.0.down.weight": "q8f16_1",
        "lm_head.weight": "q0f32",
    }
    (line,) = [s for s in said if "lossless" in s]
    assert line == "Q4_K/Q6_K (first in layers.0.gate_up.weight) has no lossless scheme: dequantised to q0f16"
    exact(model, folder, "layers.0.gate_up.weight")
    name = "layers.0.gate_up.weight"
    np.testing.assert_allclose(stored(folder)[name], checkpoint(model, folder)[name], rtol=5e-4, atol=6e-8)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Q4_0", None), ("Q4_0", "q4f16_1"), ("Q4_0", "q4f32_1"), ("Q4_0", "q4f16_0"), ("Q4_0", "q8f16_1"),
        ("Q4_1", None), ("Q4_1", "q4f16_asym"), ("Q8_0", None), ("Q8_0", "q8f16_1"),
    ],
)  # fmt: skip
def test_lossless_by_default_and_when_asked(tmp_path, kind, name):
    model = write_gguf(tmp_path / "m.gguf", {}, kind)
    folder = convert_model(model, name, tmp_path / "out")
    assert not set(open_dist(folder).manifest["schemes"].values()) & {"q0f32", "q0f16"}
    exact(model, folder)


def test_a_gguf_can_be_quantised_anew(tmp_path):
    model = write_gguf(tmp_path / "m.gguf", {}, "Q8_0")
    folder = convert_model(model, "q4f16_1", tmp_path / "out")
    got, expected = stored(folder), checkpoint(model, folder)
    assert set(open_dist(folder).manifest["schemes"].values()) == {"q4f16_1"}
    for name in ("embed.weight", "layers.0.qkv.weight"):
        assert 0.02 < np.sqrt(((got[name] - expected[name]) ** 2).mean() / (expected[name] ** 2).mean()) < 0.12


@pytest.mark.parametrize("kinds", [("F16", "q4f16_1"), ("Q6_K", "q4f16_1"), ("Q8_0", "gguf")])
def test_default_of_a_gguf(tmp_path, kinds):
    assert default_quantization(open_model(write_gguf(tmp_path / "m.gguf", {}, kinds[0]))) == kinds[1]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q6_K"])
def test_a_block_with_a_broken_scale(tmp_path, kind):
    model = write_gguf(tmp_path / "m.gguf", {}, kind)
    raw, at = bytearray(model.read_bytes()), {"Q6_K": -2}.get(kind, -20 if kind == "Q4_1" else -18)
    at = -34 if kind == "Q8_0" else at  # of the last block of the last tensor
    raw[at : at + 2 or None] = b"\x00\x7c"
    model.write_bytes(raw)
    with pytest.raises(MlcrtError, match=r"ffn_down|down_proj") as error:
        convert_model(model, None, tmp_path / "out")
    assert "contains" in str(error.value) and "m.gguf" in str(error.value)
    assert not (tmp_path / "out").exists()


# --- folders ---


def test_convert_twice_keeps_the_first(tmp_path):
    model = tiny.make_tiny("llama_mha", tmp_path / "m")
    said = []
    first = converted(model, "q4f16_1", None, tmp_path / "dist", said.append)
    assert first == tmp_path / "dist" / "m-q4f16_1"
    (first / "witness").touch()
    assert converted(model, "q4f16_1", None, tmp_path / "dist", said.append) == first
    assert (first / "witness").exists() and "already converted" in said[-1]
    other = converted(model, "q8f16_1", None, tmp_path / "dist", said.append)
    assert other != first and (first / "witness").exists()


@pytest.mark.parametrize("change", ["weights", "quantization", "manifest"])
def test_what_changed_is_converted_again(tmp_path, change):
    model, out = tiny.make_tiny("llama_mha", tmp_path / "m"), tmp_path / "out"
    converted(model, "q4f16_1", out, tmp_path, lambda _: None)
    (out / "witness").touch()
    wanted = "q4f16_1"
    if change == "weights":
        arrays = {k: v * np.float32(1.5) for k, v in load_file(model / "model.safetensors").items()}
        save_file(arrays, model / "model.safetensors")
        os.utime(model / "model.safetensors", (1, 1))
    elif change == "quantization":
        wanted = "q8f16_1"
    else:
        (out / "mlcrt.json").write_text("{")
    converted(model, wanted, out, tmp_path, lambda _: None)
    assert not (out / "witness").exists()
    assert open_dist(out).manifest["quantization"] == wanted
    if change == "weights":
        expected = checkpoint(model, out)["layers.0.o.weight"]
        assert np.abs(stored(out)["layers.0.o.weight"] - expected).max() < 0.2 * np.abs(expected).max()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_foreign_folder_is_never_replaced(tmp_path, kind):
    model, out = tiny.make_tiny("llama_mha", tmp_path / "m"), tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.write_text("mine")
    for run in (convert_model, lambda m, q, o: converted(m, q, o, tmp_path, lambda _: None)):
        with pytest.raises(MlcrtError, match="exists and is not a compiled model; choose another --output"):
            run(model, "q4f16_1", out)
    assert (out / "thesis.txt" if kind == "folder" else out).read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    convert_model(tiny.make_tiny("llama_mha", tmp_path / "m"), "q0f16", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "mlcrt.json").read_text())["quantization"] == "q0f16"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
