"""Fusion rules: stock Relax ops fold, one rule at a time, into `mlcrt.linear`.

Order matters: a matmul has to become a linear before its neighbours can join it. Each rule is one phase of the pipeline and
can be seen alone with --dump-ir.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


def fuse_dequantize_matmul(call, find):
    """matmul(x, transpose(dequantize(w))) → linear(x, w)"""
    if not is_op(call, "relax.matmul"):
        return None
    transposed = find(call.args[1])
    if not is_op(transposed, "relax.permute_dims"):
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
    if linear is None or linear.bias or linear.gate or linear.residual or len(call.args[1].ty.shape) != 1:
        return None
    linear.bias = call.args[1]
    return linear.build()


def fuse_norm(call, find):
    """linear(rms_norm(x)) → linear with the norm as prologue"""
    linear = LinearCall.parse(call)
    if linear is None or linear.norm is not None:
        return None
    norm = find(linear.x)
    if not is_op(norm, "relax.nn.rms_norm"):
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
    if linear is None or linear.gate or linear.residual:
        return None
    linear.gate = _ACTIVATIONS[activation.op.name]
    return linear.build()


def fuse_residual(call, find):
    """x + linear(…) → linear with a residual input"""
    if not is_op(call, "relax.add") or len(call.args[1].ty.shape) != 2:
        return None
    linear = LinearCall.parse(find(call.args[1]))
    if linear is None or linear.residual:
        return None
    linear.residual = call.args[0]
    return linear.build()
