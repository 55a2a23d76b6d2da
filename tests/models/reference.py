"""A plain NumPy decoder driven by DecoderConfig and the parameters of mlcrt.models.names: the oracle of the tests."""

from __future__ import annotations

import math

import numpy as np

from mlcrt.models import DecoderConfig, load, parameters, verify

_erf = np.vectorize(math.erf, otypes=[float])


def read(config: DecoderConfig, tensors, dtype=np.float64) -> dict[str, np.ndarray]:
    """All parameters by canonical name, from a tensor source."""
    pieces = verify(config, tensors)
    return {p.name: load(p, pieces[p.name], tensors).astype(dtype) for p in parameters(config)}


def logits(config: DecoderConfig, params: dict[str, np.ndarray], tokens) -> np.ndarray:
    """Logits [len(tokens), vocab] of a whole sequence, in the dtype of the parameters."""
    x = params["embed.weight"][np.asarray(tokens)] * config.embed_scale
    for i in range(config.layers):
        p = _Layer(params, f"layers.{i}.")
        y = _attention(config, i, p, _norm(x, p["attn_norm"], config.norm_eps))
        x = x + (_norm(y, p["attn_post_norm"], config.norm_eps) if config.post_norms else y)
        y = _norm(x, p["mlp_norm"], config.norm_eps)
        y = _routed(config, p, y) if config.moe else _mlp(config, p, y)
        x = x + (_norm(y, p["mlp_post_norm"], config.norm_eps) if config.post_norms else y)
    x = _norm(x, params["final_norm"], config.norm_eps)
    result = x @ params["embed.weight" if config.tie_embeddings else "lm_head.weight"].T
    return _cap(result, config.final_softcap)


class _Layer:
    def __init__(self, params: dict[str, np.ndarray], prefix: str):
        self.params, self.prefix = params, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self.params[self.prefix + name]

    def linear(self, name: str, x: np.ndarray, bias: bool) -> np.ndarray:
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if bias else y


def _norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _cap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _activation(config, x):
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    if config.activation == "gelu":
        return x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _rotate(x, table):
    """Rotate x [heads, n, head_dim] by its positions 0 … n-1."""
    half = len(table.inv_freq)
    # the angle is rounded to float32 before cos and sin, as transformers does
    angle = np.arange(x.shape[1], dtype=np.float32)[:, None] * np.asarray(table.inv_freq, np.float32)
    cos, sin = (f(angle.astype(np.float64)) * table.attention_factor for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


def _attention(config, i, p, x):
    n, d, groups = len(x), config.head_dim, config.heads // config.kv_heads
    qkv = p.linear("qkv", x, config.qkv_bias).reshape(n, -1, d).transpose(1, 0, 2)
    q, k, v = np.split(qkv, [config.heads, config.heads + config.kv_heads])
    if config.qk_norm:
        q, k = _norm(q, p["q_norm"], config.norm_eps), _norm(k, p["k_norm"], config.norm_eps)
    table = config.ropes[config.layer_rope[i]]
    q, k = _rotate(q, table), _rotate(k, table)
    k, v = np.repeat(k, groups, 0), np.repeat(v, groups, 0)
    scores = _cap(q @ k.transpose(0, 2, 1) * config.attention_scale, config.attention_softcap)
    back = np.arange(n)[:, None] - np.arange(n)
    seen = (back >= 0) & (back < (config.layer_window[i] or n))
    out = _softmax(np.where(seen, scores, -np.inf)) @ v
    return p.linear("o", out.transpose(1, 0, 2).reshape(n, -1), config.o_bias)


def _mlp(config, p, x):
    gate, up = np.split(p.linear("gate_up", x, config.mlp_bias), 2, -1)
    return p.linear("down", _activation(config, gate) * up, config.mlp_bias)


def _routed(config, p, x):
    weights = _softmax(p.linear("router", x, False))
    chosen = np.argsort(-weights, -1, kind="stable")[:, : config.moe.top_k]
    result = np.zeros_like(x)
    for row, experts in enumerate(chosen):
        total = weights[row, experts].sum() if config.moe.normalize_top_k else 1.0
        for e in experts:
            gate, up = np.split(p["experts.gate_up.weight"][e] @ x[row], 2)
            y = p["experts.down.weight"][e] @ (_activation(config, gate) * up)
            result[row] += weights[row, e] / total * y
    return result
