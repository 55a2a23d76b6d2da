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


class Places(NamedTuple):
    """Where the tokens of a call stand: position [1] i32 of the first one, or one entry of positions [n] i32 and
    sequences [n] i32 for each, and blocks [sequences, most blocks] i32, which block of the cache holds which 16
    positions of a sequence."""

    position: object
    sequence: object | None = None
    blocks: object | None = None

    def at(self, token):
        """The token's position in its sequence."""
        if self.sequence is None:
            return T.BufferLoad(self.position, [0]) + token
        return T.BufferLoad(self.position, [token])

    def block(self, token, index):
        """Where block `index` of the token's sequence lies in the cache."""
        if self.sequence is None:
            return index
        return T.BufferLoad(self.blocks, [T.BufferLoad(self.sequence, [token]), index])


class PlaceHandles:
    """Declares Places in two steps, for every handle has to come before the first shape."""

    def __init__(self, paged: bool):
        self.paged = paged
        if paged:
            self.handles = [T.arg(name, T.handle()) for name in ("positions", "sequences", "blocks")]
        else:
            self.position = T.arg("position", T.Buffer((1,), "int32"))

    def match(self, n) -> Places:
        if not self.paged:
            return Places(self.position)
        position, sequence = (T.match_buffer(h, (n,), "int32") for h in self.handles[:2])
        return Places(position, sequence, T.match_buffer(self.handles[2], (T.int32(), T.int32()), "int32"))


class RopeAppend(NamedTuple):
    """The buffers of rope_append; `norms` is (q_norm, k_norm) or None."""

    n: object
    qkv: object
    cos: object
    sin: object
    places: Places
    norms: list | None
    k_cache: object
    v_cache: object
    q: object


def rope_append_arguments(op: Attention) -> RopeAppend:
    """Declare (qkv [n, (heads+2*kv_heads)*head_dim] f32, cos [n, rotary_dim/2] f32, sin, places (see
    Places), [q_norm [head_dim] f32, k_norm], k cache, v cache, q [n, heads*head_dim] f32) inside a prim_func frame."""
    n = T.int32() if op.tokens is None else op.tokens
    handles = [T.arg(a, T.handle()) for a in ("qkv", "cos", "sin")]
    places = PlaceHandles(op.paged)
    norms = None
    if op.norm_eps is not None:
        norms = [T.arg(a, T.Buffer((op.head_dim,), "float32")) for a in ("q_norm", "k_norm")]
    k_handle, v_handle, q_handle = (T.arg(a, T.handle()) for a in ("k_cache", "v_cache", "q"))
    qkv = T.match_buffer(handles[0], (n, (op.heads + 2 * op.kv_heads) * op.head_dim), "float32")
    cos, sin = (T.match_buffer(h, (n, op.rotary_dim // 2), "float32") for h in handles[1:])
    k_cache, v_cache = match_caches(op, k_handle, v_handle)
    q = T.match_buffer(q_handle, (n, op.heads * op.head_dim), "float16" if op.packed_out else "float32")
    return RopeAppend(n, qkv, cos, sin, places.match(n), norms, k_cache, v_cache, q)


class Choose(NamedTuple):
    """The buffers of choose (see kernels/simd/choose.py)."""

    rows: object
    logits: object
    masks: object
    mask: object
    starts: object
    bias_tokens: object
    biases: object
    tokens: object
    best: object


def choose_arguments(vocab: int, *more: str) -> tuple[Choose, list]:
    """Declare (logits [rows, vocab] f32, masks [k, ceil(vocab/32)] i32, mask [rows] i32, bias_starts [rows + 1] i32,
    bias_tokens [b] i32, biases [b] f32, tokens [rows] i32, best [rows] f32), and handles with the names of `more`,
    inside a prim_func frame."""
    names = ("logits", "masks", "mask", "bias_starts", "bias_tokens", "biases", "tokens", "best", *more)
    handles = [T.arg(name, T.handle()) for name in names]
    rows, count = T.int32(), T.int32()
    shapes = (
        ((rows, vocab), "float32"), ((T.int32(), -(-vocab // 32)), "int32"), ((rows,), "int32"), ((rows + 1,), "int32"),
        ((count,), "int32"), ((count,), "float32"), ((rows,), "int32"), ((rows,), "float32"),
    )  # fmt: skip
    buffers = [T.match_buffer(handle, *shape) for handle, shape in zip(handles[: len(shapes)], shapes, strict=True)]
    return Choose(rows, *buffers), handles[len(shapes) :]


def weight_arguments(scheme: Scheme, rows: int, columns: int, name: str = "w", experts: int | None = None) -> dict:
    """Declare a weight, or a stack of them, inside a prim_func frame; the buffers keyed by part."""
    stack = () if experts is None else (experts,)
    return {
        part: T.arg(f"{name}_{part or 'values'}", T.Buffer((*stack, *shape), dtype))
        for part, (shape, dtype) in scheme.tensors(rows, columns).items()
    }
