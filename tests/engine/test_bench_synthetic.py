"""`mlcrt bench --synthetic` and `--profile` on compiled models: what is made, what is counted, what is refused."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from safetensors import safe_open

from mlcrt import cli
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.measure import machine
from mlcrt.measure.profile import profile, touched
from mlcrt.measure.synthetic_bench import CONTEXTS, fitting, prepare_synthetic
from mlcrt.models import decoder_config
from mlcrt.runtime.engine import Engine
from mlcrt.runtime.observe import Observer
from mlcrt.targets.cuda.timing import EventWatch, copy_bandwidth
from mlcrt.targets.device import DeviceRuntime


@pytest.fixture
def shape(tmp_path, monkeypatch):
    """A config.json of a small model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(tiny.record("qwen3_norms")["config"]))
    return path


# -- the command


def test_bench_of_random_weights(shape, monkeypatch, capsys):
    monkeypatch.setattr(machine, "read_bandwidth", lambda: 1e10)
    sizes = ["-p", "9", "-n", "4", "--repeat", "3", "--contexts", "2,30"]
    common = ["bench", "--synthetic", "odd.json", "--device", "cpu", *sizes]
    assert cli.main([*common, "--profile", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "synthetic-odd-q4f16_1" and result["synthetic"] and result["device"] == "cpu"
    config = decoder_config(json.loads(shape.read_text()), where="odd")
    near, far = result["depths"]
    # 28 more positions of K and V, two bytes each
    positions = 2 * 28 * config.layers * config.kv_heads * config.head_dim * 2
    assert far["bytes_per_token"] - near["bytes_per_token"] == pytest.approx(positions, abs=1)
    for depth, context in ((near, 2), (far, 30)):
        times = depth["ms_per_token"]
        assert depth["context"] == context and 0 < times["min"] <= times["median"] <= times["max"]
        assert depth["decode_tokens_per_s"] == pytest.approx(1e3 / times["median"])
        assert depth["floor_ms_per_token"] == pytest.approx(depth["bytes_per_token"] / 1e10 * 1e3)
        assert depth["floor_share"] == pytest.approx(depth["floor_ms_per_token"] / times["median"])
    kernels = result["profile"]
    assert kernels["context"] == 2 and kernels["step_ms"] == pytest.approx(near["ms_per_token"]["median"])
    assert kernels["sum_ms"] == pytest.approx(sum(k["us"] for k in kernels["kernels"]) / 1e3)

    library = shape.parent / "dist" / "synthetic-odd-q4f16_1" / "cpu" / "lib.so"
    made = library.stat().st_ino
    assert cli.main([*common, "--profile", "prefill"]) == 0
    out = capsys.readouterr().out
    assert library.stat().st_ino == made  # nothing was compiled again
    assert "decode at 2" in out and "decode at 30" in out and "prefill 9" in out and "GB/s" in out
    assert "one prefill call over 9 tokens" in out and "the sum is not a step's time" in out

    changed = json.loads(shape.read_text())
    changed["num_hidden_layers"] = 1
    changed.pop("layer_types", None)
    shape.write_text(json.dumps(changed))
    assert cli.main([*common, "--compile-only"]) == 0
    assert library.stat().st_ino != made
    assert json.loads((library.parent.parent / "mlcrt.json").read_text())["config"]["layers"] == 1


def test_made_here_for_elsewhere(shape, capsys, monkeypatch):
    from mlcrt.targets import ProbeResult, cpu

    common = ["bench", "--synthetic", "odd.json", "--quantization", "q0f16", "--target", "cpu"]
    assert cli.main([*common, "--compile-only"]) == 0
    made = capsys.readouterr().out.strip()
    monkeypatch.setattr(cpu, "probe", lambda: ProbeResult(False, reason="no such thing"))
    assert cli.main([*common, "-n", "4"]) == 1
    captured = capsys.readouterr()
    assert f"mlcrt: {made} is compiled, but cannot run here (no such thing)" in captured.err and captured.out == ""


def test_a_folder_that_is_something_else_stays(shape):
    folder = shape.parent / "dist" / "synthetic-odd-q4f16_1"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("x")
    with pytest.raises(MlcrtError, match="is not a synthetic model; move it away"):
        prepare_synthetic("odd.json", "q4f16_1", "cpu", shape.parent / "dist")
    assert (folder / "mine").read_text() == "x"


def test_contexts_have_to_fit():
    assert fitting(None, 64, 100_000) == list(CONTEXTS) and fitting([7], 64, 71) == [7]
    assert fitting(None, 64, 1000) == [16, 512] and fitting(None, 4, 20) == [1]
    for contexts, generate, limit in (([8], 64, 71), (None, 64, 50), ([1], 1, 8)):
        with pytest.raises(UsageError, match="beyond the"):
            fitting(contexts, generate, limit)


# -- the profile


def test_observed_steps_compute_the_same(compiled):
    dist = compiled("qwen3_norms")
    engine, other = Engine(dist, "cpu", 32), Engine(dist, "cpu", 32)
    tokens = [5, 6, 7]
    with Observer(engine, dist) as observer:
        observer.prefill(tokens)
        assert np.array_equal(engine._logits[0], other.prefill(tokens))
        observer.decode(3)
        assert np.array_equal(engine._logits[0], other.decode(0))
    gone = weakref.ref(observer)
    del observer
    assert gone() is None  # the library does not keep it, and with it the engine


@pytest.mark.parametrize(("case", "quantization"), [("qwen3_norms", "q0f32"), ("llama_mha", "q4f16_1")])
def test_every_stored_byte_is_counted_once(compiled, case, quantization):
    dist = compiled(case, quantization)
    engine = Engine(dist, "cpu", 64)
    result = profile(engine, dist, "decode", 20, [1], 0.001, 2e9)
    c = engine.config
    stored = {}
    for file in dist.glob("*.safetensors"):
        with safe_open(file, "numpy") as data:
            stored |= {name: data.get_tensor(name).nbytes for name in data.keys()}  # noqa: SIM118
    table = sum(size for name, size in stored.items() if name.startswith("embed."))
    expected = sum(stored.values()) + (table // c.vocab if c.tie_embeddings else table // c.vocab - table)
    assert result["bytes"]["weights"] == pytest.approx(expected, abs=4)
    position = 2 * c.layers * c.kv_heads * c.head_dim * np.dtype(engine._entry["kv_dtype"]).itemsize
    assert result["bytes"]["kv"] == position * (21 + 1)  # attention reads 21, and one is written
    by_weight = {row["weight"]: row["calls"] for row in result["kernels"]}
    assert {name: by_weight[name] for name in ("qkv", "o", "down", "lm_head")} == {
        "qkv": c.layers, "o": c.layers, "down": c.layers, "lm_head": 1,
    }  # fmt: skip
    assert result["calls"] == sum(row["calls"] for row in result["kernels"])
    for row in result["kernels"]:
        size = row["weights"] + row["kv"] + row["other"]
        assert row["bytes_per_s"] == pytest.approx(size / (row["us"] / 1e6))
        assert row["floor_share"] == pytest.approx(row["bytes_per_s"] / 2e9)


def test_parts_that_are_not_read_do_not_count():
    config = decoder_config(tiny.record("mistral_window")["config"], where="x")
    window = next(w for w in config.layer_window if w)
    layer = config.layer_window.index(window)
    cache = ((f"kv.{layer}", 2 * 640 * config.kv_heads * config.head_dim, (config.kv_heads, 40, 16 * config.head_dim)),)
    position = 2 * config.kv_heads * config.head_dim
    assert touched(config, "attention_decode", cache, 1, 500)["kv"] == window * position
    assert touched(config, "attention_decode", cache, 1, 3)["kv"] == 4 * position
    assert touched(config, "rope_append1", cache, 7, 500)["kv"] == 7 * position
    moe = decoder_config(tiny.record("mixtral")["config"], where="x")
    stack = (("layers.0.experts.down.weight.codes", 8000, (moe.moe.experts, 10, 10)),)
    share = moe.moe.top_k / moe.moe.experts
    assert 0 < share < 1 and touched(moe, "moe", stack, 1, 0)["weights"] == int(8000 * share)
    assert touched(moe, "moe", stack, 100, 0)["weights"] == 8000


def test_profile_with_the_runtime_library_alone(compiled, tmp_path):
    dist = compiled("llama_mha", "q4f16_1")
    command = [sys.executable, "-m", "mlcrt.cli", "bench", str(dist), "-p", "8", "-n", "2", "--repeat", "1"]
    ran = subprocess.run(
        [*command, "--device", "cpu", "--profile", "--json"],
        env=os.environ | {"TVM_USE_RUNTIME_LIB": "1"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["profile"]["context"] == 8 and result["profile"]["calls"] > 10


# -- the device's side


def test_a_device_that_cannot_tell_says_so():
    import tvm

    runtime = DeviceRuntime(tvm.cpu(0))
    assert runtime.read_bandwidth() is runtime.used_bytes() is runtime.launches(lambda: None) is None


class FakeCudart:
    """CUDA's runtime as a list of what was called; every measured interval takes 2 ms."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == "cudaMemcpyAsync":
                self.copied = [arguments[0].value, arguments[1].value, arguments[2].value, arguments[3].value]
            if name == "cudaEventCreate":
                arguments[0]._obj.value = len(self.calls)
            if name == "cudaEventElapsedTime":
                assert isinstance(arguments[0]._obj, ctypes.c_float) and arguments[1].value != arguments[2].value
                arguments[0]._obj.value = 2.0
            return 0

        return call


@pytest.fixture
def fake_cuda():
    addresses = iter(range(1 << 40, 1 << 41, 1 << 32))
    empty = lambda shape, dtype, device: (lambda address: SimpleNamespace(data_ptr=lambda: address))(next(addresses))  # noqa: E731
    return SimpleNamespace(
        cudart=FakeCudart(),
        available_bytes=lambda: 8 << 30,
        device=None,
        _tvm=SimpleNamespace(runtime=SimpleNamespace(empty=empty)),
        _ffi=SimpleNamespace(get_raw_stream=lambda device: 0),
    )


def test_cuda_copies_count_read_and_written(fake_cuda):
    assert copy_bandwidth(fake_cuda, turns=2) == pytest.approx(2 * (1 << 30) / 0.002)
    target, source, size, kind = fake_cuda.cudart.copied
    assert size == 1 << 30 and kind == 3 and abs(target - source) >= size
    fake_cuda.available_bytes = lambda: 1 << 20
    with pytest.raises(MlcrtError, match="too little free memory"):
        copy_bandwidth(fake_cuda)


def test_cuda_times_between_events_behind_a_copy(fake_cuda):
    watch, cudart = EventWatch(fake_cuda), fake_cuda.cudart
    cudart.calls.clear()
    watch.start()
    cudart.calls.append("kernel")
    assert watch.stop() == pytest.approx(0.002)
    order = ["cudaMemcpyAsync", "cudaEventRecord", "kernel", "cudaEventRecord", "cudaEventQuery", "cudaGetLastError"]
    assert cudart.calls == [*order, "cudaEventSynchronize", "cudaEventElapsedTime"]
    watch.start()  # the stand-in says that the first event had passed: the host was late
    assert cudart.calls[len(order) + 2 :] == ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaEventRecord"]
