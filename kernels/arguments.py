"""Kernel arguments that every family declares alike: the contract between operators and kernels, and the KV cache."""

from __future__ import annotations

from typing import NamedTuple

from tvm.script.ir_builder import tirx as T

from mlcrt.quant.scheme import Scheme

from .records import Attention

BLOCK = 16  # positions in a block of the KV cache


def kv_shapes(kv_heads: int, head_dim: int, blocks) -> tuple[tuple, tuple]:
    """Shapes of one layer's K and V cache holding `blocks` * BLOCK positions; a family orders what a block holds."""
    return (kv_heads, blocks, BLOCK * head_dim), (kv_heads, blocks, BLOCK * head_dim)


def match_caches(op: Attention, k_handle, v_handle):
    """The K and V cache behind two handles, with any number of blocks."""
    blocks = T.int32()
    k_shape, v_shape = kv_shapes(op.kv_heads, op.head_dim, blocks)
    return T.match_buffer(k_handle, k_shape, op.kv_dtype), T.match_buffer(v_handle, v_shape, op.kv_dtype)


class RopeAppend(NamedTuple):
    """The buffers of rope_append; `norms` is (q_norm, k_norm) or None."""

    n: object
    qkv: object
    cos: object
    sin: object
    position: object
    norms: list | None
    k_cache: object
    v_cache: object
    q: object


def rope_append_arguments(op: Attention) -> RopeAppend:
    """Declare (qkv [n, (heads+2*kv_heads)*head_dim] f32, cos [n, rotary_dim/2] f32, sin, position [1] i32,
    [q_norm [head_dim] f32, k_norm], k cache, v cache, q [n, heads*head_dim] f32) inside a prim_func frame."""
    n = T.int32() if op.tokens is None else op.tokens
    handles = [T.arg(a, T.handle()) for a in ("qkv", "cos", "sin")]
    position = T.arg("position", T.Buffer((1,), "int32"))
    norms = None
    if op.norm_eps is not None:
        norms = [T.arg(a, T.Buffer((op.head_dim,), "float32")) for a in ("q_norm", "k_norm")]
    k_handle, v_handle, q_handle = (T.arg(a, T.handle()) for a in ("k_cache", "v_cache", "q"))
    qkv = T.match_buffer(handles[0], (n, (op.heads + 2 * op.kv_heads) * op.head_dim), "float32")
    cos, sin = (T.match_buffer(h, (n, op.rotary_dim // 2), "float32") for h in handles[1:])
    k_cache, v_cache = match_caches(op, k_handle, v_handle)
    q = T.match_buffer(q_handle, (n, op.heads * op.head_dim), "float32")
    return RopeAppend(n, qkv, cos, sin, position, norms, k_cache, v_cache, q)


def weight_arguments(scheme: Scheme, rows: int, columns: int, name: str = "w", experts: int | None = None) -> dict:
    """Declare a weight, or a stack of them, inside a prim_func frame; the buffers keyed by part."""
    stack = () if experts is None else (experts,)
    return {
        part: T.arg(f"{name}_{part or 'values'}", T.Buffer((*stack, *shape), dtype))
        for part, (shape, dtype) in scheme.tensors(rows, columns).items()
    }
