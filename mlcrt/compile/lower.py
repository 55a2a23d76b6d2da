"""Project operators → TensorIR kernels of the target's kernel library.

A library (for example mlcrt.kernels.simd.Library) has one method per operator that takes its attributes and the call's
arguments and returns a `Kernel`. Calls with equal attributes and shapes share one kernel.
"""

from __future__ import annotations

import tvm
from tvm import relax

from mlcrt.kernels import Space

from . import ops
from .rewrite import apply_rule


def lower_operators(mod: tvm.IRModule, library) -> tvm.IRModule:
    """Replace every mlcrt.* call by call_tir (or call_tir_inplace) of a kernel added to the module."""
    builder = relax.BlockBuilder(mod)
    known: dict[tuple, tvm.ir.GlobalVar] = {}

    def rule(call, find):
        name = ops.name_of(call)
        if name is None:
            return None
        kernel = getattr(library, name)(ops.attributes(call), list(call.args))
        if kernel.key not in known:
            # opaque to the stock fusion, finished for the stock schedules
            done = {"op_pattern": 8, "tirx.is_scheduled": 1}
            known[kernel.key] = builder.add_func(kernel.build().with_attrs(done), kernel.name)
            for variant, build in kernel.variants.items():
                other = kernel.alternative_name(known[kernel.key].name_hint, variant)
                builder.add_func(build().with_attrs({**done, "global_symbol": other}), other)
        callee = known[kernel.key]
        outputs = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        spaces = [relax.TensorType(list(s.shape), s.dtype) for s in map(Space.of, kernel.scratch)]
        types, single = [*outputs, *spaces], not isinstance(call.ty, relax.TupleType)
        if kernel.inplace is None:
            lowered = relax.call_tir(callee, kernel.args, types if len(types) > 1 else types[0])
        else:
            inplace = [*kernel.inplace, *[-1] * len(spaces)]
            lowered = relax.op.call_tir_inplace(callee, kernel.args, inplace, types)
        if not spaces:
            return lowered
        lowered = find.emit(lowered)
        items = [relax.TupleGetItem(lowered, i) for i in range(len(outputs))]
        return items[0] if single else relax.Tuple([find.emit(item) for item in items])

    rewritten = apply_rule(mod, rule)
    kernels = builder.finalize()
    for var in kernels.get_global_vars():
        if var.name_hint not in {v.name_hint for v in rewritten.get_global_vars()}:
            rewritten.update_func(var, kernels[var])
    return rewritten
