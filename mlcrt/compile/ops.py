"""The project's own Relax operators: what a decoder means, before any target decides how it is done.

`models/` emits them next to stock Relax ops, the fusion passes fold stock ops into `mlcrt.linear`, and `lower.py`
turns each into one TensorIR kernel. Attributes are a plain dictionary; results are inferred here from arguments and
attributes. `places` is position [1], or positions [n], sequences [n] and blocks (attribute paged; see
kernels/arguments.py); packed_in and packed_out are explained in kernels/records.py, Linear.

    dequantize(parts…; scheme, rows, columns)                          → [rows, columns] f32
    linear(x, parts…, [norm], [bias], [residual]; scheme, rows, columns, norm_eps?, bias, gate?, residual, packed_in?,
           packed_out?)                                                → [n, units]
    embed(parts…, tokens; scheme, vocab, hidden, scale)                → [n, hidden]
    rotary_tables(inv_freq, position, tokens; factor, own?)            → (cos, sin) [n, rotary_dim/2]
    rope_append(qkv, cos, sin, places…, [q_norm, k_norm], k_cache, v_cache; …) → (k_cache, v_cache, q); caches in place
    rope_attention(arguments and attributes of both; packed_out?)      → (k_cache, v_cache, [1, heads*head_dim])
    attention(q, k_cache, v_cache, places…; …)                         → [n, heads*head_dim]
    softcap(x; cap)                                                    → like x
    finish_step(logits, [tokens], out, token, position)                → (out, token, position), all in place
    draw(logits, settings, kept, outcome, token)                       → (kept, outcome, token), all in place
    choose(logits, masks, mask, bias_starts, bias_tokens, biases)      → (logits in place, tokens [rows], best [rows])
    moe(x, router_logits, gate_up parts…, down parts…, [norm], [residual]; …) → [n, hidden]
"""

from __future__ import annotations

from tvm import ir, relax
from tvm.ir import _ffi_api as _ir

PREFIX = "mlcrt."


def _tensor(shape, dtype: str = "float32") -> relax.TensorType:
    return relax.TensorType(shape, dtype)


def _tokens(call) -> object:
    return call.args[0].ty.shape[0]


def _infer_linear(call, _):
    a = call.attrs
    units = int(a["rows"]) // 2 if "gate" in a else int(a["rows"])
    return _tensor([_tokens(call), units], "float16" if "packed_out" in a else "float32")


def _infer_rope_append(call, _):
    a = call.attrs
    dtype = "float16" if "packed_out" in a else "float32"
    q = _tensor([_tokens(call), int(a["heads"]) * int(a["head_dim"])], dtype)
    return relax.TupleType([call.args[-2].ty, call.args[-1].ty, q])


def _infer_choose(call, _):
    logits = call.args[0].ty
    rows = logits.shape[0]
    return relax.TupleType([logits, _tensor([rows], "int32"), _tensor([rows])])


def _infer_rotary(call, _):
    table = _tensor([call.args[2].ty.shape[0], call.args[0].ty.shape[0]])
    return relax.TupleType([table, table])


_INFER = {
    "dequantize": lambda call, _: _tensor([int(call.attrs["rows"]), int(call.attrs["columns"])]),
    "linear": _infer_linear,
    "embed": lambda call, _: _tensor([call.args[-1].ty.shape[0], int(call.attrs["hidden"])]),
    "rotary_tables": _infer_rotary,
    "rope_append": _infer_rope_append,
    "rope_attention": _infer_rope_append,
    "attention": lambda call, _: call.args[0].ty,
    "softcap": lambda call, _: call.args[0].ty,
    "finish_step": lambda call, _: relax.TupleType([a.ty for a in call.args[-3:]]),
    "draw": lambda call, _: relax.TupleType([a.ty for a in call.args[-3:]]),
    "choose": _infer_choose,
    "moe": lambda call, _: call.args[0].ty,
}
_REGISTERED: set[str] = set()


def register() -> None:
    """Make the operators known to TVM; harmless when repeated."""
    for name, infer in _INFER.items():
        if name in _REGISTERED:
            continue
        _ir.RegisterOp(PREFIX + name, f"mlcrt operator {name}")
        ir.register_op_attr(PREFIX + name, "FInferType", infer)
        ir.register_op_attr(PREFIX + name, "FPurity", True)
        _REGISTERED.add(name)


def make(name: str, args: list, **attrs) -> relax.Call:
    """A call of mlcrt.<name>; attributes that are None are left out."""
    register()
    kept = {k: v for k, v in attrs.items() if v is not None}
    node = ir.make_node("ir.DictAttrs", **kept)
    return relax.Call(ir.Op.get(PREFIX + name), args, node)


def attributes(call) -> dict:
    """The attributes of a project op as Python values."""
    result = {}
    for key in call.attrs.keys():  # noqa: SIM118  (DictAttrs is not a dict)
        value = call.attrs[key]
        if hasattr(value, "value"):
            value = value.value
        result[key] = str(value) if isinstance(value, str) else value
    return result


def name_of(expr) -> str | None:
    """'linear' for a call of mlcrt.linear, None for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name.startswith(PREFIX):
        return expr.op.name[len(PREFIX) :]
    return None
