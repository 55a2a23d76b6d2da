"""A real model end to end: SmolLM2-135M-Instruct as its Q4_1 GGUF.

Expected numbers and texts come from transformers 5 (torch 2.13, float32) running the same file dequantised.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlcrt.chat import ChatModule
from mlcrt.dist import open_dist
from mlcrt.measure.perplexity import perplexity
from mlcrt.models import parameters
from mlcrt.runtime.engine import Engine
from mlcrt.runtime.tokenizer import ModelTokenizer

TEXT = Path(__file__).parent / "data" / "lighthouse.txt"
FRANCE = "What is the capital of France?", "The capital of France is Paris."
SKY = (
    "Explain in three sentences why the sky is blue.",
    "The sky is blue because of a process called Rayleigh scattering, where light encounters tiny molecules of air and "
    "is deflected by large molecules, including water molecules. This phenomenon occurs because of the interaction of "
    "light with molecules, which is a fundamental aspect of the natural world.",
)


@pytest.fixture(scope="module")
def chat(smollm2):
    with ChatModule(smollm2(), "cpu", 512, temperature=0, max_tokens=100) as module:
        yield module


# --- answers ---


@pytest.mark.parametrize("prompt, answer", [FRANCE, SKY])
def test_greedy_answers_are_those_of_transformers(chat, prompt, answer):
    chat.reset_chat()
    pieces = []
    assert chat.generate(prompt, stream=pieces.append) == answer
    assert "".join(pieces) == answer and len(pieces) > 5
    assert chat.stats()["last"]["finish_reason"] == "stop"


@pytest.mark.parametrize("prompt, answer", [FRANCE, SKY])
def test_one_shot_prints_the_answer_and_nothing_else(smollm2, mlcrt, prompt, answer):
    done = mlcrt("chat", smollm2(), "--prompt", prompt, "--max-tokens", 100, "--temperature", 0)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer + "\n", "")


def test_a_second_turn_runs_its_new_tokens_only(chat):
    chat.reset_chat()
    chat.generate(FRANCE[0])
    first = chat.stats()["last"]
    chat.generate("And of Italy?")
    second = chat.stats()["last"]
    assert (
        second["reused_tokens"] >= first["prompt_tokens"] + first["completion_tokens"] - 1
    )  # its end token is not run
    assert second["reused_tokens"] + second["prefill_tokens"] == second["prompt_tokens"]
    assert 0 < second["prefill_tokens"] < 20
    assert f"{second['reused_tokens']} of {second['prompt_tokens']} prompt tokens were cached" in str(chat.stats())


def test_reuse_does_not_change_the_answer(smollm2, chat):
    """The second answer equals that of an engine that is given the whole conversation at once."""
    chat.reset_chat()
    chat.generate(FRANCE[0])
    answer = chat.generate("And of Italy?")
    with ChatModule(smollm2(), "cpu", 512, temperature=0, max_tokens=100) as fresh:
        assert fresh.generate(chat.messages[:-1]) == answer
        assert fresh.stats()["last"]["reused_tokens"] == 0


def test_a_saved_conversation_goes_on(smollm2, chat, tmp_path):
    chat.reset_chat()
    chat.generate(FRANCE[0])
    chat.save(tmp_path / "talk")
    answer = chat.generate("And of Italy?")
    with ChatModule(smollm2(), "cpu", 300, temperature=0, max_tokens=100) as other:
        other.load(tmp_path / "talk")
        assert other.generate("And of Italy?") == answer
        assert other.stats()["last"]["prefill_tokens"] < 20


# --- quality ---

WINDOWS = {"window": 512, "limit": 2}  # 1022 scored tokens
TRANSFORMERS = 33.2133457
BOUNDS = {  # relative to q0f32, which for a GGUF are the dequantised weights
    "q0f32": 1e-9,
    None: 0.001,  # the lossless repack; what is left is the float16 KV cache
    "q8f16_1": 0.005,
    "q4f16_1": 0.33,  # 4-bit weights quantised a second time, the tied embedding too: 0.276
}


@pytest.fixture(scope="module")
def perplexities(smollm2):
    """Scheme → perplexity of TEXT's first windows, measured when first asked for."""
    known = {}

    def measure(quantization):
        if quantization not in known:
            engine = Engine(smollm2(quantization), "cpu", context=512)
            tokenizer = ModelTokenizer(smollm2(quantization), engine.config.eos)
            known[quantization] = perplexity(engine, tokenizer, TEXT, **WINDOWS)["perplexity"]
            engine.close()
        return known[quantization]

    return measure


def test_perplexity_is_that_of_transformers(perplexities):
    assert perplexities("q0f32") == pytest.approx(TRANSFORMERS, rel=1e-5)


@pytest.mark.parametrize("quantization", list(BOUNDS))
def test_perplexity_of_schemes(smollm2, perplexities, quantization):
    value, base = perplexities(quantization), perplexities("q0f32")
    dist = open_dist(smollm2(quantization))
    weights = sum(int(np.prod(p.shape)) for p in parameters(dist.config))
    size = dist.manifest["params"]["bytes"]
    print(
        f"{dist.manifest['quantization']}: perplexity {value:.4f} ({value / base - 1:+.3%}), {size / 1e6:.1f} MB,"
        f" {size * 8 / weights:.2f} bits per weight"
    )
    assert abs(value / base - 1) <= BOUNDS[quantization]


def test_the_default_keeps_the_files_own_codes(smollm2):
    manifest = open_dist(smollm2()).manifest
    assert manifest["quantization"] == "gguf"
    assert set(manifest["schemes"].values()) == {"q4f16_asym", "q8f16_1"}  # Q4_1, and Q8_0 for the embedding


# --- memory of converting ---

_CONVERT = """
import sys
from mlcrt.quant import convert_model
convert_model(sys.argv[1], sys.argv[2] or None, sys.argv[3])
status = open("/proc/self/status").read()  # VmHWM: unlike ru_maxrss it starts anew with the program
print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def peak_of_converting(model: Path, quantization: str, out: Path) -> int:
    command = [sys.executable, "-c", _CONVERT, str(model), quantization, str(out)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def check_peak(name: str, peak: int, largest: int) -> None:
    """The strictest reading of the promise: four times the bytes of the largest tensor as stored."""
    limit = 4 * largest + 500_000_000
    print(f"{name}: peak {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB")
    assert 50_000_000 < peak < limit  # less than NumPy and the readers alone would be a measuring error


@pytest.mark.parametrize("quantization", ["", "q4f16_1"])
def test_peak_memory_of_converting_the_model(gguf, tmp_path, quantization):
    largest = 49152 * 576 // 32 * 34  # the embedding, Q8_0
    check_peak(f"SmolLM2 to {quantization or 'gguf'}", peak_of_converting(gguf, quantization, tmp_path / "d"), largest)


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4f16_0"])
def test_peak_memory_of_converting_one_large_tensor(tmp_path, quantization):
    """A 300 MB bfloat16 embedding; q4f16_0 stores its transpose, so that packed rows have to be held."""
    vocab, hidden = 262_144, 576
    folder = tmp_path / "model"
    tiny_llama(folder, vocab, hidden)
    largest = vocab * hidden * 2
    check_peak(f"300 MB to {quantization}", peak_of_converting(folder, quantization, tmp_path / "dist"), largest)


def tiny_llama(folder: Path, vocab: int, hidden: int) -> None:
    """One layer and a large embedding. Its file is sparse, all zeros, so it costs no disk."""
    import tiny

    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.norm.weight": (hidden,), f"{layer}input_layernorm.weight": (hidden,),
        f"{layer}post_attention_layernorm.weight": (hidden,), f"{layer}self_attn.q_proj.weight": (576, hidden),
        f"{layer}self_attn.k_proj.weight": (192, hidden), f"{layer}self_attn.v_proj.weight": (192, hidden),
        f"{layer}self_attn.o_proj.weight": (hidden, 576), f"{layer}mlp.gate_proj.weight": (64, hidden),
        f"{layer}mlp.up_proj.weight": (64, hidden), f"{layer}mlp.down_proj.weight": (hidden, 64),
    }  # fmt: skip
    header, size = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [vocab, hidden]}}, vocab * hidden * 2
    header["model.embed_tokens.weight"]["data_offsets"] = [0, size]
    text = json.dumps(header).encode()
    with open(folder / "model-00001-of-00002.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    save_file(tiny.weights(shapes, "llama"), folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(shapes, "model-00002-of-00002.safetensors")
    weight_map["model.embed_tokens.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tiny.make_tokenizer(300).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
