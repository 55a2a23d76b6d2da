"""From a decoder to an executable: a list of named phases that reads from top to bottom.

Every phase is a function IRModule → IRModule; --dump-ir writes the module after each one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from mlcrt.errors import MlcrtError
from mlcrt.models import DecoderConfig
from mlcrt.models.decoder import BATCH, PIECES, build_module

from . import fusion
from .lower import lower_operators
from .rewrite import apply_rule

Phase = tuple[str, Callable[[tvm.IRModule], tvm.IRModule]]


def _rule(function) -> Callable[[tvm.IRModule], tvm.IRModule]:
    return lambda mod: apply_rule(mod, function)


def phases(library) -> list[Phase]:
    """`library`: the target's kernels."""
    t = relax.transform
    return [
        ("fuse-dequantize-matmul", _rule(fusion.fuse_dequantize_matmul)),
        ("fuse-bias", _rule(fusion.fuse_bias)),
        ("fuse-norm", _rule(fusion.fuse_norm)),
        ("fuse-gate", _rule(fusion.fuse_gate)),
        ("fuse-residual", _rule(fusion.fuse_residual)),
        ("fuse-experts", _rule(fusion.fuse_experts(library))),
        ("fuse-rope-attention", _rule(fusion.fuse_rope_attention(library))),
        ("pack-activations", _rule(fusion.pack_activations(library))),
        ("lower-operators", lambda mod: lower_operators(mod, library)),
        ("legalize", t.LegalizeOps()),
        ("fuse-remaining", tvm.transform.Sequential([t.AnnotateTIROpPattern(), t.FuseOps(), t.FuseTIR()])),
        ("schedule-remaining", library.schedule),
        ("bound-shapes", lambda mod: _bound_tokens(mod, library)),
        ("lower-calls", tvm.transform.Sequential([t.ToNonDataflow(), t.RemovePurityChecking(), t.CallTIRRewrite()])),
        ("plan-memory", t.StaticPlanBlockMemory()),
        (
            "lower-to-vm",
            tvm.transform.Sequential(
                [
                    t.LowerAllocTensor(),
                    t.KillAfterLastUse(),
                    t.LowerRuntimeBuiltin(),
                    t.ComputePrimValue(),
                    t.VMShapeLower(),
                    t.AttachGlobalSymbol(),
                ]
            ),
        ),
    ]


def compile_decoder(
    config: DecoderConfig,
    scheme_of,
    target: tvm.target.Target,
    library,
    dump: Path | None = None,
    progress: Callable[[str], None] = lambda phase: None,
):
    """(tvm executable, [(parameter name, shape, dtype)] in calling order, planned workspace in bytes)."""
    workspace = 0
    mod, params = build_module(
        config, scheme_of, library.kv_shapes, library.kv_dtype, bool(library.batch), library.draws
    )
    skipped = list(library.skipped_passes)
    with target, tvm.transform.PassContext(opt_level=3, disabled_pass=skipped):
        _dump(dump, 0, "export", mod)
        for i, (name, phase) in enumerate(phases(library)):
            progress(name)
            mod = phase(mod)
            if name == "plan-memory":
                workspace = _planned_bytes(mod)
            _dump(dump, i + 1, name, mod)
        progress("generate code")
        with library.generating():
            executable = relax.build(mod, target, relax_pipeline=None, tir_pipeline="default")
    signature = [(name, tuple(int(d) for d in p.shape), str(p.dtype)) for name, p in params]
    return executable, signature, workspace


def _bound_tokens(mod: tvm.IRModule, library) -> tvm.IRModule:
    """Say how many tokens one call of each function takes at most, which bounds the planned memory."""
    for var, function in list(mod.functions_items()):
        if isinstance(function, relax.Function):
            tokens = library.score_chunk if var.name_hint == "score" else library.chunk
            limits = {"n": tokens, PIECES: tokens, BATCH: max(library.batch, 1)}
            mod.update_func(var, function.with_attr("tir_var_upper_bound", limits))
    return mod


def _planned_bytes(mod: tvm.IRModule) -> int:
    """Largest sum of storage that one function allocates (shared with what it calls in turn)."""
    largest = 0
    for _, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        total = 0

        def visit(expr):
            nonlocal total
            if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.memory.alloc_storage":
                size = expr.args[0].values[0]
                total += int(size) if hasattr(size, "value") else 0

        relax.analysis.post_order_visit(function, visit)
        largest = max(largest, total)
    return largest


def _dump(folder: Path | None, index: int, name: str, mod: tvm.IRModule) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}-{name}.py").write_text(mod.script(show_meta=False), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise MlcrtError(f"--dump-ir cannot write to {folder}: {reason}; name another folder") from None
