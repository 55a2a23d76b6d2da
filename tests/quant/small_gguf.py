"""One-layer Llama GGUF files of chosen tensor types, by gguf's writer and quantisers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type
from tokenizers import pre_tokenizers

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 300, 256, 4, 2, 64, 512
SHAPES = {
    "token_embd": (VOCAB, HIDDEN),
    "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_gate": (INTERMEDIATE, HIDDEN),
    "blk.0.ffn_up": (INTERMEDIATE, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, INTERMEDIATE),
    "output": (VOCAB, HIDDEN),
}
# Bytes of a block of 256, and where its float16 scales are, of types that gguf reads but does not write
_K = {"Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,))}


def encoded(draw: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Random weights as a tensor of that type: values, or uint8 [rows, bytes]."""
    values = (draw.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    if kind in ("F32", "F16"):
        return values.astype(np.float32 if kind == "F32" else np.float16)
    if kind in _K:
        size, halves = _K[kind]
        blocks = draw.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)
        for at in halves:
            blocks[:, :, at : at + 2] = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
        return blocks.reshape(shape[0], -1)
    return quants.quantize(values, Type[kind])


def write_gguf(path: Path, types: dict[str, str], default: str = "Q4_0", seed: int = 0) -> Path:
    """`types`: tensor without "blk.0." → type; "output" absent means tied embeddings."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", "ab", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<filler{i}>" for i in range(VOCAB - len(tokens))]
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", draw.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    for name, shape in SHAPES.items():
        short = name.removeprefix("blk.0.")
        if name == "output" and "output" not in types:
            continue
        kind = types.get(short, default)
        writer.add_tensor(f"{name}.weight", encoded(draw, shape, kind), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
