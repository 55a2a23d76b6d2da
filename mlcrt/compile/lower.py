"""Project operators → TensorIR kernels of the target's kernel library.

A library (for example mlcrt.kernels.simd.Library) has one method per operator that takes its attributes and the call's
arguments and returns a `Kernel`. Calls with equal attributes and shapes share one kernel.
"""

from __future__ import annotations

import tvm
from tvm import relax

from . import ops
from .rewrite import apply_rule


def lower_operators(mod: tvm.IRModule, library) -> tvm.IRModule:
    """Replace every mlcrt.* call by call_tir (or call_tir_inplace) of a kernel added to the module."""
    builder = relax.BlockBuilder(mod)
    known: dict[tuple, tvm.ir.GlobalVar] = {}

    def rule(call, _find):
        name = ops.name_of(call)
        if name is None:
            return None
        kernel = getattr(library, name)(ops.attributes(call), list(call.args))
        if kernel.key not in known:
            function = kernel.build().with_attr("op_pattern", 8)  # opaque: the stock fusion leaves it alone
            known[kernel.key] = builder.add_func(function, kernel.name)
        callee = known[kernel.key]
        outputs = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else call.ty
        if kernel.inplace is None:
            return relax.call_tir(callee, kernel.args, outputs)
        return relax.op.call_tir_inplace(callee, kernel.args, kernel.inplace, outputs)

    rewritten = apply_rule(mod, rule)
    kernels = builder.finalize()
    for var in kernels.get_global_vars():
        if var.name_hint not in {v.name_hint for v in rewritten.get_global_vars()}:
            rewritten.update_func(var, kernels[var])
    return rewritten
