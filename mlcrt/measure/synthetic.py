"""Models of real shapes with random weights: speed can be measured where the real weights are not at hand.

A synthetic dist folder has a manifest and libraries but no parameter files; the engine draws the weights when it
loads. Codes are uniform and scales such that activations keep their size, so kernels do the work of a real model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from mlcrt.dist import FORMAT, new_folder, signature, write_json
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.models import DecoderConfig, decoder_config, parameters
from mlcrt.quant.convert import Plan, stored_specs
from mlcrt.quant.scheme import scheme
from mlcrt.version import __version__

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
SHAPES = {
    "llama3-8b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 16384,
    },
    "llama2-7b": {
        **_LLAMA, "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 10000.0, "tie_word_embeddings": False,
    },
    "llama3.2-1b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        **_LLAMA, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
}  # fmt: skip
_POOL_BYTES = 64 << 20


def synthetic_config(shape: str) -> tuple[str, DecoderConfig]:
    """(name, config) of a known shape or of a config.json file."""
    if shape in SHAPES:
        return shape, decoder_config(SHAPES[shape], where=shape)
    path = Path(shape)
    if not path.is_file():
        raise UsageError(f"no shape '{shape}': choose {', '.join(SHAPES)} or give a config.json")
    try:
        return path.stem, decoder_config(json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except ValueError as error:
        raise MlcrtError(f"{path} is not JSON ({error}); give a Hugging Face config.json") from None


def make_synthetic(shape: str, quantization: str, folder: Path) -> Path:
    """Write the dist folder (a manifest alone) of a synthetic model; the folder."""
    manifest = synthetic_manifest(*synthetic_config(shape), quantization)
    with new_folder(Path(folder)) as building:
        write_json(building / "mlcrt.json", manifest)
    return Path(folder)


def synthetic_manifest(name: str, config: DecoderConfig, quantization: str) -> dict:
    """What mlcrt.json of a synthetic model says before it is compiled for any target."""
    scheme(quantization)
    schemes = {
        p.name: "q0f32" if p.name.endswith("router.weight") else quantization
        for p in parameters(config)
        if len(p.shape) > 1
    }
    specs = stored_specs(Plan(config, {}, schemes, frozenset(), {}))
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in specs)
    return {
        "format": FORMAT,
        "mlcrt": __version__,
        "name": f"synthetic-{name}",
        "quantization": quantization,
        "source": [],
        "config": config.to_dict(),
        "schemes": schemes,
        "params": {"files": [], "synthetic": True, "bytes": size, "signature": signature(specs, config)},
        "limits": {"context": config.context},
        "targets": {},
    }


def synthetic_params(config: DecoderConfig, schemes: dict[str, str], seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for every stored tensor."""
    rng = np.random.default_rng(seed)
    pool = rng.bytes(_POOL_BYTES)
    specs = stored_specs(Plan(config, {}, schemes, frozenset(), {}))
    return {name: _draw(name, shape, dtype, config, pool, rng) for name, shape, dtype in specs}


def _draw(name: str, shape, dtype: str, config: DecoderConfig, pool: bytes, rng) -> np.ndarray:
    if name.startswith("rope."):
        return np.array(config.ropes[int(name.split(".")[1])].inv_freq, np.float32)
    count = math.prod(shape)
    if dtype == "uint32":
        words = np.frombuffer(pool, np.uint32)
        start = int(rng.integers(0, len(words) // 2))
        return _repeated(words[start:], count).reshape(shape)
    if name.endswith((".scales", ".mins")):
        columns = shape[-1] * 32
        size = 1 / (4.6 * math.sqrt(columns))  # uniform 4-bit codes have a standard deviation of 4.6
        if name.endswith(".mins"):
            return np.full(shape, -7.5 * size, dtype)
        return _repeated(rng.uniform(0.8 * size, 1.2 * size, 1 << 16), count).reshape(shape).astype(dtype)
    if len(shape) == 1:
        return np.ones(shape, dtype)
    values = rng.standard_normal(min(count, 1 << 20)) / math.sqrt(shape[-1])
    return _repeated(values, count).reshape(shape).astype(dtype)


def _repeated(values: np.ndarray, count: int) -> np.ndarray:
    """`count` values, from the beginning again where they do not suffice; a view where they do."""
    return values[:count] if count <= len(values) else np.resize(values, count)
