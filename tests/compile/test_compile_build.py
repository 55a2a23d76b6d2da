"""`compile_model` from outside: what it refuses, what it replaces, CPU levels, the memory plan, the manifest."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from small_llama import CONFIG, HEAD_DIM, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, VOCAB, shapes, snapshot

from mlcrt.compile import compile_model, ensure_compiled
from mlcrt.dist import check_target, open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.engine import Engine
from mlcrt.runtime.memory import plan_memory
from mlcrt.targets.cpu import attributes, missing_features

PROMPT = [5, 17, 250, 3, 99, 42, 42, 7, 120, 64, 11, 12, 13, 280, 299, 0, 1, 2]


def generate(folder, count: int = 12, device: str = "cpu") -> list[int]:
    """Greedy tokens after PROMPT."""
    engine = Engine(folder, device)
    try:
        tokens = [int(engine.prefill(PROMPT).argmax())]
        while len(tokens) < count:
            tokens.append(int(engine.decode(tokens[-1]).argmax()))
        return tokens
    finally:
        engine.close()


def hidden(folder) -> list[str]:
    return [p.name for p in folder.rglob(".*")]


# --- refusals ---


@pytest.mark.parametrize(
    ("quantization", "target", "sentence"),
    [
        ("q9", "cpu", "unknown quantization 'q9': choose one of q0f32, .*q4f16_1"),
        ("q4f16_1", "gpu", "unknown target 'gpu': choose auto, .*cpu.*:ARCH"),
        ("q4f16_1", "cpu:pentium", "unknown CPU architecture 'pentium': choose native, x86-64, .*x86-64-v4"),
        ("q4f16_1", "cpu,cpu:pentium", "unknown CPU architecture 'pentium'"),
        ("q4f16_1", "", "no target in '': choose auto"),
        ("q4f16_1", " , ", "no target in ' , ': choose auto"),
    ],
)
def test_usage_errors_come_before_any_work(model, tmp_path, quantization, target, sentence):
    with pytest.raises(UsageError, match=sentence):
        compile_model(model, quantization, target, dist_root=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_no_model(tmp_path):
    with pytest.raises(UsageError, match="There is no model at"):
        compile_model(tmp_path / "nothing.gguf", "q4f16_1", "cpu", dist_root=tmp_path / "dist")


def test_another_quantization_of_a_dist_folder(compiled):
    with pytest.raises(MlcrtError, match="is quantised as q0f32; give the original model to get q8f16_1"):
        compile_model(compiled(), "q8f16_1", "cpu")


def test_ir_cannot_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MlcrtError, match="--dump-ir cannot write to .*file/ir: .*; name another folder"):
        compile_model(model, "q4f16_1", "cpu", dist_root=tmp_path / "dist", dump_ir=tmp_path / "file" / "ir")
    assert hidden(tmp_path) == []


# --- what a compilation writes ---


def test_the_folder(compiled):
    folder = compiled("q4f16_1")
    assert folder.name == "small-q4f16_1"
    assert sorted(snapshot(folder)) == [
        "cpu", "cpu/lib.so", "mlcrt.json", "params-00001-of-00001.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    entry = check_target(open_dist(folder), "cpu")
    assert entry["features"] == list(attributes("").features) and entry["kv_dtype"] == "float16"
    for path in (folder, folder / "cpu"):
        assert path.stat().st_mode & 0o777 == 0o755


def test_compiling_again_replaces_the_target_folder_only(private):
    folder = private()
    (folder / "cpu" / "stray").touch()
    (folder / "notes.txt").write_text("mine")
    before, tokens = snapshot(folder), generate(folder)
    compile_model(folder, None, "cpu", slots=0)
    after = snapshot(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)}
    assert "cpu/stray" in changed and changed <= {"cpu/stray", "cpu/lib.so", "mlcrt.json"}
    assert generate(folder) == tokens


def test_convert_first_compile_later(model, compiled, tmp_path):
    from mlcrt.quant import convert_model

    folder = convert_model(model, "q0f32", tmp_path / "out")
    with pytest.raises(MlcrtError, match=r"has no library for cpu \(it has: none\); compile again"):
        check_target(open_dist(folder), "cpu")
    assert ensure_compiled(folder, target="cpu") == folder
    library = folder / "cpu" / "lib.so"
    stamp = library.stat().st_mtime_ns
    assert ensure_compiled(folder, target="cpu") == folder
    assert library.stat().st_mtime_ns == stamp, "compiled although it was there"
    assert generate(folder) == generate(compiled())


def test_ensure_compiled_mends_what_it_can_make_again(model, tmp_path):
    folder = ensure_compiled(model, "q0f32", "cpu", dist_root=tmp_path)
    (folder / "cpu" / "lib.so").write_bytes(b"damaged")
    said = []
    assert ensure_compiled(model, "q0f32", "cpu", dist_root=tmp_path, report=said.append) == folder
    assert any("hash differs" in line for line in said)
    check_target(open_dist(folder), "cpu")


# --- CPU levels ---


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v2", "x86-64-v3"])
def test_every_level_gives_the_same_tokens(private, compiled, level):
    missing = missing_features(list(attributes(level).features))
    if missing:
        pytest.skip(f"this machine is not {level}: it lacks {', '.join(missing)}")
    expected = generate(compiled("q4f32_1"))
    folder = private("q4f32_1")
    compile_model(folder, None, f"cpu:{level}", slots=0)
    entry = open_dist(folder).manifest["targets"][f"cpu:{level}"]
    assert entry["arch"] == level and set(attributes(level).features) == set(entry["features"])
    assert generate(folder, device=f"cpu:{level}") == expected
    assert len(set(expected)) > 3


def test_a_level_without_half_conversion_keeps_a_float32_cache(private):
    folder = private("q4f16_1")
    compile_model(folder, None, "cpu:x86-64-v2", slots=0)
    assert open_dist(folder).manifest["targets"]["cpu:x86-64-v2"]["kv_dtype"] == "float32"
    assert len(generate(folder, device="cpu:x86-64-v2")) == 12


def test_a_machine_without_the_features_refuses(private):
    folder = private()
    manifest = json.loads((folder / "mlcrt.json").read_text())
    manifest["targets"]["cpu"]["features"] += ["avx1024", "holodeck"]
    (folder / "mlcrt.json").write_text(json.dumps(manifest))
    with pytest.raises(MlcrtError, match="this machine lacks avx1024, holodeck; compile it here with mlcrt compile"):
        Engine(folder, "cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sha256": "0" * 64}, "is not the file that was compiled .*hash differs"),
        ({"abi": 0, "mlcrt": "0.0.1"}, r"was made by another mlcrt \(0.0.1, this is "),
        ({"tvm": "0.1"}, r"needs apache-tvm 0\.1, installed is 0\.27"),
        ({"signature": "x"}, "was made for other parameters than those in"),
        ({"library": "cpu/gone.so"}, "gone.so is missing"),
    ],
)
def test_a_library_that_does_not_fit(private, change, sentence):
    folder = private()
    manifest = json.loads((folder / "mlcrt.json").read_text())
    manifest["targets"]["cpu"].update(change)
    (folder / "mlcrt.json").write_text(json.dumps(manifest))
    with pytest.raises(MlcrtError, match=f"{sentence}.*compile again with mlcrt compile .*--target cpu"):
        Engine(folder, "cpu")
    with pytest.raises(MlcrtError, match=sentence):  # a dist folder is not compiled behind its owner's back
        ensure_compiled(folder, target="cpu")


def test_another_format(private):
    folder = private()
    manifest = json.loads((folder / "mlcrt.json").read_text())
    (folder / "mlcrt.json").write_text(json.dumps({**manifest, "format": 99, "mlcrt": "9.9"}))
    with pytest.raises(MlcrtError, match="was made by mlcrt 9.9 in format 99, .* reads format 1; make it again"):
        compile_model(folder, None, "cpu", slots=0)


def test_parameters_of_another_model(private, compiled):
    """A library next to parameters it was not compiled for, by a manifest that was copied with them."""
    folder, other = private("q4f16_1"), compiled("q8f16_1")
    entry = json.loads((folder / "mlcrt.json").read_text())["targets"]
    for path in other.glob("params-*"):
        shutil.copy(path, folder)
    manifest = json.loads((other / "mlcrt.json").read_text())
    (folder / "mlcrt.json").write_text(json.dumps({**manifest, "targets": entry}))
    with pytest.raises(MlcrtError, match="was made for other parameters"):
        Engine(folder, "cpu")


# --- memory ---


@pytest.mark.parametrize(("quantization", "kv_bytes"), [("q0f32", 4), ("q4f16_1", 2), ("q4f32_1", 4)])
def test_memory_plan(compiled, quantization, kv_bytes):
    folder = compiled(quantization)
    dist = open_dist(folder)
    plan = plan_memory(dist, dist.manifest["targets"]["cpu"], 50)
    assert plan.weights == sum(f.stat().st_size for f in folder.glob("params-*"))
    assert plan.blocks == 4  # of 16 positions
    assert plan.kv == 2 * LAYERS * KV_HEADS * HEAD_DIM * kv_bytes * 64
    assert plan.total == plan.weights + plan.kv + plan.workspace
    widest = 128 * 4 * max(HIDDEN, 2 * INTERMEDIATE)  # the largest single array of a full chunk
    assert widest <= plan.workspace <= 20 * widest + 4 * 128 * VOCAB
    engine = Engine(folder, "cpu", context=50)
    assert engine.memory == {"weights": plan.weights, "kv": plan.kv, "workspace": plan.workspace}
    engine.close()


def test_weights_take_what_the_scheme_says(compiled):
    """File sizes by hand: every 2-D weight at 4.5 bits (all columns are multiples of 32), the rest float32."""
    elements = sum(int(np.prod(s)) for s in shapes().values() if len(s) == 2)
    plain = sum(s[0] for s in shapes().values() if len(s) == 1) + HEAD_DIM // 2  # and the rotary frequencies
    size = open_dist(compiled("q4f16_1")).manifest["params"]["bytes"]
    header = size - (elements * 9 // 16 + 4 * plain)
    assert 8 < header < 8192


def test_the_plan_is_printed(model, tmp_path):
    said = []
    compile_model(model, "q0f32", "cpu", out=tmp_path / "out", context=1600, report=said.append, slots=0)
    per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4 / 1024
    (line,) = [s for s in said if s.startswith("memory: ")]
    assert re.fullmatch(
        rf"memory: weights \d+ MB \+ KV cache \d+ MB \(context 1600, {per_token:.1f} KiB a token\) \+ workspace"
        r" \d+ MB = \d+ MB",
        line,
    )


def test_context_of_the_training_is_the_default(compiled):
    dist = open_dist(compiled())
    assert plan_memory(dist, dist.manifest["targets"]["cpu"]).context == CONFIG["max_position_embeddings"]


def test_tied_embeddings_share_the_matrix(tmp_path):
    tied = {k: v for k, v in shapes().items() if k != "lm_head.weight"}
    tiny.write_folder(tmp_path / "tied", {**CONFIG, "tie_word_embeddings": True}, tied)
    folder = compile_model(tmp_path / "tied", "q0f32", "cpu", dist_root=tmp_path, slots=0)
    assert not any("lm_head" in name for name in open_dist(folder).manifest["targets"]["cpu"]["parameters"])
    assert len(generate(folder)) == 12
