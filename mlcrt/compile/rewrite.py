"""A small engine for rewriting rules over Relax dataflow.

A rule is a function (call, find) → replacement or None; `find(var)` gives the expression a variable is bound to,
already rewritten (see Scope). Rules read like the algebra they do; what they leave unused is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

Rule = Callable[[relax.Call, Callable], "relax.Expr | None"]


class Scope:
    """What a rule may ask of the function that is being rewritten."""

    def __init__(self, rewriter: PyExprMutator):
        self._rewriter = rewriter

    def __call__(self, expr):
        """Follow a variable to the expression it is bound to."""
        seen = expr
        while isinstance(seen, relax.Var):
            bound = self._rewriter.lookup_binding(seen)
            if bound is None:
                break
            seen = bound
        return seen

    def emit(self, expr) -> relax.Var:
        """Bind an expression before the call, so that it is evaluated once however often it is used."""
        return self._rewriter.builder_.emit(expr)


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, rule: Rule):
        super().__init__(mod)
        self.rule = rule

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        replacement = self.rule(call, Scope(self))
        return call if replacement is None else self.builder_.normalize(replacement)


def apply_rule(mod: tvm.IRModule, rule: Rule) -> tvm.IRModule:
    """Rewrite every Relax function of the module by `rule`, then drop what is no longer used."""
    rewriter = _Rewriter(mod, rule)
    result = {}
    for var, function in mod.functions_items():
        if isinstance(function, relax.Function):
            result[var] = rewriter.visit_expr(function)
    mod = mod.clone() if hasattr(mod, "clone") else mod
    for var, function in result.items():
        mod.update_func(var, function)
    return relax.transform.DeadCodeElimination()(mod)


def is_op(expr, name: str) -> bool:
    return isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name == name
