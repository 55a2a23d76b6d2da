"""`--check` accepts right libraries, says how far off they are, and catches wrong ones."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import tiny
from small_llama import snapshot

from mlcrt.compile import build, check, compile_model, fusion
from mlcrt.compile.check import check_target_numerics
from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError
from mlcrt.runtime.engine import Engine
from mlcrt.targets import ProbeResult, all_targets

_REFERENCES: dict = {}


@pytest.fixture(autouse=True)
def compile_references_once(monkeypatch, tmp_path_factory):
    """References of one model share their library: the values are parameters."""

    def compile_target(dist, name, arch="", *rest, **options):
        key = (dist.manifest["params"]["signature"], arch)
        if key not in _REFERENCES or arch != check.REFERENCE_ARCH:
            real(dist, name, arch, *rest, **options)
            kept = shutil.copytree(dist.path / name, tmp_path_factory.mktemp("reference") / name)
            _REFERENCES[key] = kept, dist.manifest["targets"][name]
        else:
            kept, entry = _REFERENCES[key]
            shutil.copytree(kept, dist.path / name)
            dist.manifest["targets"][name] = entry
            dist.save()

    real = build.compile_target
    monkeypatch.setattr(build, "compile_target", compile_target)


def run(folder) -> float:
    return check_target_numerics(open_dist(folder), "cpu", lambda _: None)


@pytest.mark.parametrize(
    ("quantization", "most"), [("q0f32", 5e-5), ("q4f32_1", 5e-5), ("q4f16_0", 0.01)]
)
def test_right_libraries_pass(private, quantization, most):
    folder = private(quantization)
    before = snapshot(folder.parent)
    error = run(folder)
    assert 0 < error <= most, "0 would mean that the reference is the library itself"
    assert snapshot(folder.parent) == before


def test_check_of_compile_model(model, tmp_path):
    said = []
    compile_model(model, "q8f16_1", "cpu", dist_root=tmp_path, check=True, report=said.append, slots=0)
    (line,) = [line for line in said if line.startswith("checked ")]
    assert line.startswith("checked cpu: logits are within ") and "(at most 0.02 is right)" in line
    assert [p.name for p in tmp_path.iterdir()] == ["small-q8f16_1"]


def test_routed_experts(tmp_path):
    model = tiny.make_tiny("mixtral", tmp_path / "mixtral")
    folder = compile_model(model, "q4f16_0", "cpu", dist_root=tmp_path / "dist", slots=0)
    assert 0 < run(folder) <= 0.01


@pytest.mark.parametrize("quantization", ["q4f32_1", "q4f16_1"])
@pytest.mark.parametrize("part", ["layers.1.down.weight.scales", "layers.0.qkv.weight.codes"])
def test_one_wrong_number_on_one_side(private, monkeypatch, quantization, part):
    """The reference is built from parameters in which one scale's sign, or one code's highest bit, is flipped."""
    folder, real = private(quantization), check.read_params

    def damaged(*args):
        arrays = real(*args)
        word = arrays[part].view(np.uint16 if part.endswith("scales") else np.uint32)
        if part.endswith("scales"):
            word[5, 0] ^= 0x8000
        else:
            word[:, 0] ^= 0x8  # the first column of every row
        return arrays

    monkeypatch.setattr(check, "read_params", damaged)
    before = snapshot(folder.parent)
    with pytest.raises(MlcrtError, match="the library for cpu computes wrong results: its logits are .* of the logits"):
        run(folder)
    assert snapshot(folder.parent) == before


def drop_residual(call, find):
    linear = fusion.LinearCall.parse(find(call.args[1])) if fusion.is_op(call, "relax.add") else None
    return None if linear is None else linear.build()


def test_a_wrong_fusion_rule(model, tmp_path, monkeypatch):
    monkeypatch.setattr(fusion, "fuse_residual", drop_residual)
    folder = compile_model(model, "q4f16_1", "cpu", dist_root=tmp_path, slots=0)
    monkeypatch.undo()
    with pytest.raises(MlcrtError, match="computes wrong results"):
        run(folder)


def test_a_library_whose_kernel_is_off_by_one_code(model, tmp_path, monkeypatch):
    """The zero point of the many-token kernel alone is wrong: decoding is right, prefilling is not."""
    from mlcrt.kernels.amx import weights
    from mlcrt.kernels.simd import linear
    from mlcrt.kernels.simd.weights import Rows

    real, table = Rows.affine, weights._table

    def off(self, row, word, lanes):
        scale, offset = real(self, row, word, lanes)
        return scale, offset + scale

    def dequantise(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rows, "affine", off)
            return original(*args)

    original = linear._dequantise_row
    monkeypatch.setattr(linear, "_dequantise_row", dequantise)
    off_by_one = lambda scheme, codes: table(replace(scheme, zero=scheme.zero - 1), codes)  # noqa: E731
    monkeypatch.setattr(weights, "_table", off_by_one)
    folder = compile_model(model, "q4f16_1", "cpu", dist_root=tmp_path, slots=0)
    monkeypatch.undo()
    with pytest.raises(MlcrtError, match="computes wrong results"):
        run(folder)


def test_not_a_number_is_wrong(private, monkeypatch):
    folder, real = private("q0f32"), check.trace

    def trace(path, target, tokens):
        rows = real(path, target, tokens)
        if path == folder:
            rows[3, 7] = np.nan
        return rows

    monkeypatch.setattr(check, "trace", trace)
    with pytest.raises(MlcrtError, match="logits are nan of the logits"):
        run(folder)


def test_a_wrong_choice_of_token(private, monkeypatch):
    monkeypatch.setattr(Engine, "greedy_token", property(lambda _: 299))
    with pytest.raises(MlcrtError, match="it chose token 299, and the largest of its logits is that of "):
        run(private("q0f32"))


def test_a_target_that_is_not_here(private, monkeypatch):
    monkeypatch.setattr(all_targets()["cpu"], "probe", lambda: ProbeResult(False, [], "there is no processor"))
    with pytest.raises(MlcrtError, match="cpu cannot be checked here: there is no processor; run without --check"):
        run(private("q0f32"))


def test_no_room_for_the_reference(private, monkeypatch):
    folder = private()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    before = snapshot(folder.parent)
    with pytest.raises(MlcrtError, match="--check writes the weights as float32 .* are free; make room or run without"):
        run(folder)
    assert snapshot(folder.parent) == before


@pytest.mark.parametrize("context", [1, 5, 100])
def test_short_contexts_are_checked_as_far_as_they_go(private, context):
    import json

    folder = private("q0f32")
    manifest = json.loads((folder / "mlcrt.json").read_text())
    manifest["config"]["context"] = context
    assert len(check.fixed_tokens(type(open_dist(folder))(folder, manifest))) == min(context, 72)
    assert check.trace(folder, "cpu", check.fixed_tokens(open_dist(folder))[:context]).shape[1] == 300
