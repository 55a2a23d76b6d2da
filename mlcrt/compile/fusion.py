"""Fusion rules: stock Relax ops fold, one rule at a time, into `mlcrt.linear`.

Order matters: a matmul has to become a linear before its neighbours can join it. Each rule is one phase of the
pipeline and can be seen alone with --dump-ir.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import tvm_ffi
from tvm import relax

from mlcrt.quant.scheme import SCHEMES

from . import ops
from .rewrite import is_op

_ACTIVATIONS = {"relax.nn.silu": "silu", "relax.nn.gelu": "gelu", "relax.nn.gelu_tanh": "gelu_tanh"}


@dataclass
class LinearCall:
    """The arguments of mlcrt.linear by name."""

    x: relax.Expr
    parts: list
    scheme: str
    rows: int
    columns: int
    norm: relax.Expr | None = None
    norm_eps: float | None = None
    bias: relax.Expr | None = None
    gate: str | None = None
    residual: relax.Expr | None = None
    extras: dict = field(default_factory=dict)

    @classmethod
    def parse(cls, expr) -> LinearCall | None:
        if ops.name_of(expr) != "linear":
            return None
        a, args = ops.attributes(expr), list(expr.args)
        count = len(SCHEMES[a["scheme"]].tensors(a["rows"], a["columns"]))
        rest = args[1 + count :]
        norm = rest.pop(0) if "norm_eps" in a else None
        bias = rest.pop(0) if a["bias"] else None
        residual = rest.pop(0) if a["residual"] else None
        return cls(
            args[0], args[1 : 1 + count], a["scheme"], a["rows"], a["columns"], norm, a.get("norm_eps"), bias,
            a.get("gate"), residual,
        )  # fmt: skip

    @property
    def ends(self) -> bool:
        """Whether it has an epilogue that nothing but a residual may follow."""
        return self.gate is not None or self.residual is not None

    def build(self) -> relax.Call:
        optional = [a for a in (self.norm, self.bias, self.residual) if a is not None]
        return ops.make(
            "linear",
            [self.x, *self.parts, *optional],
            scheme=self.scheme,
            rows=self.rows,
            columns=self.columns,
            norm_eps=self.norm_eps,
            bias=int(self.bias is not None),
            gate=self.gate,
            residual=int(self.residual is not None),
        )


def _shape(expr) -> list:
    """The dimensions of a tensor expression, those known as integers."""
    return [int(d) if hasattr(d, "value") else d for d in expr.ty.shape]


def fuse_dequantize_matmul(call, find):
    """matmul(x, transpose(dequantize(w))) → linear(x, w)"""
    if not is_op(call, "relax.matmul") or len(call.args[0].ty.shape) != 2:
        return None
    transposed = find(call.args[1])
    if not is_op(transposed, "relax.permute_dims") or list(transposed.attrs.axes or (1, 0)) != [1, 0]:
        return None
    weight = find(transposed.args[0])
    if ops.name_of(weight) != "dequantize":
        return None
    a = ops.attributes(weight)
    return LinearCall(call.args[0], list(weight.args), a["scheme"], a["rows"], a["columns"]).build()


def fuse_bias(call, find):
    """linear(x) + parameter [rows] → linear with bias"""
    if not is_op(call, "relax.add"):
        return None
    linear = LinearCall.parse(find(call.args[0]))
    if linear is None or linear.ends or linear.bias is not None or _shape(call.args[1]) != [linear.rows]:
        return None
    linear.bias = call.args[1]
    return linear.build()


def fuse_norm(call, find):
    """linear(rms_norm(x)) → linear with the norm as prologue"""
    linear = LinearCall.parse(call)
    if linear is None or linear.norm is not None:
        return None
    norm = find(linear.x)
    if not is_op(norm, "relax.nn.rms_norm") or [int(a) for a in norm.attrs.axes] not in ([-1], [1]):
        return None
    linear.x, linear.norm, linear.norm_eps = norm.args[0], norm.args[1], float(norm.attrs.epsilon)
    return linear.build()


def fuse_gate(call, find):
    """act(first half of linear) * second half → linear with a gated activation"""
    if not is_op(call, "relax.multiply"):
        return None
    activation, up = find(call.args[0]), find(call.args[1])
    if not (isinstance(activation, relax.Call) and getattr(activation.op, "name", None) in _ACTIVATIONS):
        return None
    gate = find(activation.args[0])
    if not all(isinstance(e, relax.TupleGetItem) for e in (gate, up)) or (gate.index, up.index) != (0, 1):
        return None
    split = find(gate.tuple_value)
    if not is_op(split, "relax.split") or not split.same_as(find(up.tuple_value)):
        return None
    linear = LinearCall.parse(find(split.args[0]))
    if linear is None or linear.ends:
        return None
    if any(_shape(part)[1:] != [linear.rows // 2] for part in (call.args[0], call.args[1])):
        return None  # not the two halves of the features
    linear.gate = _ACTIVATIONS[activation.op.name]
    return linear.build()


def fuse_experts(library):
    """moe(rms_norm(x)) and x + moe(…) → moe with the norm as prologue and a residual input, where the library can"""

    def rule(call, find):
        if not library.fuses_experts:
            return None
        if ops.name_of(call) == "moe":
            norm = find(call.args[0])
            if "norm_eps" in call.attrs or not is_op(norm, "relax.nn.rms_norm"):
                return None
            args = [norm.args[0], *call.args[1:], norm.args[1]]
            return ops.make("moe", args, **ops.attributes(call), norm_eps=float(norm.attrs.epsilon))
        moe = find(call.args[1]) if is_op(call, "relax.add") else None
        if ops.name_of(moe) != "moe" or "residual" in moe.attrs:
            return None
        if not tvm_ffi.structural_equal(call.args[0].ty.shape, call.args[1].ty.shape):
            return None
        return ops.make("moe", [*moe.args, call.args[0]], **ops.attributes(moe), residual=1)

    return rule


def fuse_rope_attention(library):
    """attention(rope_append(…)) of one token → rope_attention, where the library has it as one kernel"""

    def rule(call, find):
        if ops.name_of(call) != "attention" or _shape(call.args[0])[0] != 1:
            return None
        q = find(call.args[0])
        rope = find(q.tuple_value) if isinstance(q, relax.TupleGetItem) else None
        if ops.name_of(rope) != "rope_append":
            return None
        attributes = {**ops.attributes(rope), **ops.attributes(call)}
        if not library.fuses_rope(attributes):
            return None
        return relax.TupleGetItem(find.emit(ops.make("rope_attention", list(rope.args), **attributes)), 2)

    return rule


def pack_activations(library):
    """linear(gated linear(…)) and linear(rope_attention(…)) of one token → the first hands its result on packed, where
    the library's product takes it so"""

    def rule(call, find):
        linear = LinearCall.parse(call)
        if linear is None or linear.norm is not None or _shape(linear.x)[0] != 1:
            return None
        a = ops.attributes(call)
        source = find(linear.x)
        if not library.takes_packed(a):
            return None
        if ops.name_of(source) == "linear" and "gate" in ops.attributes(source):  # which nothing else reads
            packed = ops.make("linear", list(source.args), **ops.attributes(source), packed_out=1)
        elif isinstance(source, relax.TupleGetItem) and ops.name_of(find(source.tuple_value)) == "rope_attention":
            attention = find(source.tuple_value)
            made = ops.make("rope_attention", list(attention.args), **ops.attributes(attention), packed_out=1)
            packed = relax.TupleGetItem(find.emit(made), source.index)
        else:
            return None
        return ops.make("linear", [find.emit(packed), *call.args[1:]], **a, packed_in=1)

    return rule


def fuse_residual(call, find):
    """x + linear(…) → linear with a residual input"""
    if not is_op(call, "relax.add"):
        return None
    linear = LinearCall.parse(find(call.args[1]))
    if linear is None or linear.residual is not None:
        return None
    if not tvm_ffi.structural_equal(call.args[0].ty.shape, call.args[1].ty.shape):
        return None  # the kernel does not broadcast
    linear.residual = call.args[0]
    return linear.build()
