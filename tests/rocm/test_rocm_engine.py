"""A whole small Llama, compiled for gfx1100 (or MLCRT_ROCM_CHIP), through the real engine and the C++ runtime, on the
emulator.

Nothing between the engine and the instructions is replaced but libamdhip64: the library is loaded from its file, the
runtime picks the code object of the GPU, copies weights, launches kernels and replays the recorded step.
"""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
from emulated_gpu import EmulatedGpu
from fake_hip import CHIP, LAUNCH_FAILURE

from mlcrt.compile.build import compile_model
from mlcrt.runtime.engine import Engine
from mlcrt.targets.rocm import assembly
from mlcrt.targets.rocm.bundle import MAGIC, bundle, unbundle
from mlcrt.targets.rocm.device import RocmError
from mlcrt.targets.rocm.emulator import OutOfBounds

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 2, 64, 2, 1, 32, 128, 512
STEPS = 8
OTHER = {"gfx9": "gfx908"}.get(CHIP[:4], "gfx1030")  # in the same library


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The model as q4f16_1 for two AMD chips in one library, and for the CPU."""
    folder = tmp_path_factory.mktemp("model")
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "max_position_embeddings": 256, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    kv = KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)
    for i in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }.items():  # fmt: skip
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    tiny.write_folder(folder / "hf", config, shapes)
    made = compile_model(folder / "hf", "q4f16_1", f"rocm:{OTHER},{CHIP}", out=folder / "dist", slots=0)
    return compile_model(made, None, "cpu", slots=0)  # one by one: the assembly is kept by the process that compiles


@pytest.fixture(scope="module")
def codes(dist):
    """{chip: code object} out of the library's file."""
    library = (dist / "rocm/lib.so").read_bytes()
    return unbundle(library[library.index(MAGIC) :])


@pytest.fixture(scope="module")
def code(codes):
    """(code object for the GPU, the assembly it was made of)."""
    return codes[CHIP], assembly.listing(bundle(codes))[CHIP]


@pytest.fixture
def emulated(hip, code, monkeypatch):
    monkeypatch.setenv("MLCRT_POOL", "0")  # every tensor has its own bounds
    gpu = EmulatedGpu(hip)
    gpu.add_code(*code)
    return gpu


@pytest.fixture(scope="module")
def expected(dist):
    """(prompt of more than one prefill chunk, the CPU's logits after it, the tokens it goes on with)."""
    engine = Engine(dist, "cpu", context=160)
    prompt = [int(t) for t in np.random.default_rng(0).integers(3, VOCAB, engine.chunk + 3)]
    logits = engine.prefill(prompt).copy()
    return prompt, logits, engine.greedy(STEPS)


def sections(elf: bytes) -> dict[str, bytes]:
    """Section name → contents of a little-endian ELF64 file."""

    def number(at, size):
        return int.from_bytes(elf[at : at + size], "little")

    table, size, count, names = number(40, 8), number(58, 2), number(60, 2), number(62, 2)
    headers = [table + i * size for i in range(count)]
    texts = number(headers[names] + 24, 8)
    found = {}
    for h in headers:
        start, name = number(h + 24, 8), texts + number(h, 4)
        found[elf[name : elf.index(b"\0", name)].decode()] = elf[start : start + number(h + 32, 8)]
    return found


def test_the_emulated_text_is_the_code_in_the_library(code, tmp_path):
    """Clang assembles the text, LLD links it, and instructions and kernel descriptors are those of the library."""
    binary, text = code
    version = 2 + binary[8]  # the ELF ABI version of code object version 4 is 2
    source, made, linked = (tmp_path / f"kernels.{e}" for e in ("s", "o", "hsaco"))
    source.write_text(re.sub(rf"amdgcn-amd-amdhsa-\w*-{CHIP}", f"amdgcn-amd-amdhsa--{CHIP}", text))
    zig, flags = [sys.executable, "-m", "ziglang"], ["--target=amdgcn-amd-amdhsa", f"-mcpu={CHIP}"]
    flags.append(f"-mcode-object-version={version}")
    subprocess.run([*zig, "clang", *flags, "-c", str(source), "-o", str(made)], check=True)
    subprocess.run([*zig, "ld.lld", "--no-undefined", "-shared", str(made), "-o", str(linked)], check=True)
    ours, theirs = sections(binary), sections(linked.read_bytes())
    mine, other = (np.frombuffer(s[".text"], np.uint32) for s in (ours, theirs))
    assert mine.size == other.size > 10_000 and ours[".rodata"] == theirs[".rodata"]
    # literals of 16-bit instructions: encoded with their sign in the unused upper half, printed without
    signed = (mine >> 16 == 0xFFFF) & (other >> 16 == 0) & ((mine ^ other) & 0xFFFF == 0)
    assert ((mine == other) | signed).all() and signed.sum() < 100


@pytest.mark.parametrize("graph", ["1", "0"], ids=["replayed", "launched"])
def test_the_model_says_what_the_cpu_says(dist, emulated, hip, expected, monkeypatch, graph):
    """Prefill in two chunks and eight decode steps: the CPU's greedy tokens."""
    monkeypatch.setenv("MLCRT_GRAPH", graph)
    prompt, logits, tokens = expected
    engine = Engine(dist, "rocm", context=160)
    assert engine.chunk < len(prompt) <= 2 * engine.chunk
    np.testing.assert_allclose(engine.prefill(prompt), logits, atol=0.02 * logits.std())
    hip.calls()
    assert engine.greedy(STEPS) == tokens
    calls = [call.split()[0] for call in hip.calls()]
    launches = sum(emulated.launches[k] for k in emulated.launches if "decode" in k or k.startswith("embed_"))
    assert launches > STEPS * LAYERS * 5
    if graph == "1":  # the first step as it is, the second recorded; then one launch a token
        assert calls.count("hipGraphLaunch") == STEPS - 1 and calls.count("hipStreamBeginCapture") == 1
        assert 10 < calls.count("hipModuleLaunchKernel") < 2 * 30
    else:
        assert "hipGraphLaunch" not in calls and calls.count("hipModuleLaunchKernel") > 10 * STEPS
    # from writing the position to reading the tokens nobody waits for the GPU
    last = len(calls) - 1 - calls[::-1].index("hipMemcpyAsync")
    assert "hipStreamSynchronize" not in calls[calls.index("hipMemsetD32Async") : last]
    assert emulated.error is None
    engine.close()
    assert hip.alive() == "0 allocations, 0 streams, 0 events, 0 modules, 0 graphs, 0 executables"


def test_a_conversation_goes_on(dist, emulated, expected, tmp_path):
    """Host-chosen tokens, rollback, saving and restoring, on the device as on the CPU."""
    prompt = expected[0][:20]
    answers = []
    for device in ("cpu", "rocm"):
        engine = Engine(dist, device, context=64)
        engine.prefill(prompt)
        picked = [int(np.argmax(engine.decode(t))) for t in (5, 9)]
        engine.rollback(15)
        picked += [int(np.argmax(engine.prefill(prompt[:2]))), engine.greedy_token]
        engine.save(tmp_path / device)
        engine.restore(tmp_path / device)
        scores = engine.score(prompt[2:5])
        answers.append(picked + [int(t) for t in scores.argmax(axis=1)])
        engine.close()
    assert answers[0] == answers[1]


def test_a_failing_kernel_is_one_sentence(dist, emulated, hip, expected):
    engine = Engine(dist, "rocm", context=64)
    hip.on_launch(lambda *_: LAUNCH_FAILURE)
    with pytest.raises(RocmError, match=r"^rocm:0: a kernel failed on the GPU \(HIP error 719: .* last was \w+$"):
        engine.prefill(expected[0][:4])


def test_a_model_that_does_not_fit(dist, emulated, hip):
    hip.set_memory(0, 100_000)
    with pytest.raises(Exception, match="memory") as caught:
        Engine(dist, "rocm", context=256)
    assert "\n" not in str(caught.value)


def test_what_the_emulator_would_catch(dist, emulated, hip, expected):
    """A tensor one row too small for what a kernel writes: the bridge sees exact bounds."""
    engine = Engine(dist, "rocm", context=64)
    start = engine._state[2].data_ptr()  # the logits: tensors of parameters are as large as they are
    (table,) = (b for b in emulated.memory.buffers if b.start == start)
    assert table.end - table.start == 4 * VOCAB
    table.end -= 4
    with pytest.raises(RocmError):
        engine.prefill(expected[0][:4])
    assert isinstance(emulated.error, OutOfBounds) and f"of its {4 * VOCAB - 4} bytes" in str(emulated.error)


def test_the_library_holds_both_chips(codes):
    assert set(codes) == {OTHER, CHIP} and codes[OTHER] != codes[CHIP]
