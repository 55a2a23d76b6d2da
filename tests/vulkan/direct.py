"""Device functions built node by node, past TVM's simplifier (which assumes that signed integers never overflow)."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import ir, tirx

THREADS = 64


def elementwise(
    inputs: dict[str, str], outputs: dict[str, str], body: Callable, lanes: int = 1, blocks: int = 1
) -> tvm.IRModule:
    """A lowered kernel of blocks * THREADS threads. `body(loads)` maps input name → expression of `lanes` lanes to
    output name → expression; every buffer holds blocks * THREADS * lanes values."""
    thread, block = tirx.Var("tx", "int32"), tirx.Var("bx", "int32")
    at = tirx.Add(tirx.Mul(block, tirx.IntImm("int32", THREADS)), thread)
    index = at if lanes == 1 else tirx.Ramp(tirx.Mul(at, tirx.IntImm("int32", lanes)), 1, lanes)
    params, declarations, buffers = [], [], {}
    for name, dtype in {**inputs, **outputs}.items():
        pointer = tirx.Var(f"{name}_ptr", ir.PointerType(ir.PrimType(dtype), "global"))
        buffers[name] = tirx.decl_buffer((blocks * THREADS * lanes,), dtype, name=name)
        params.append(pointer)
        declarations.append(tirx.DeclBuffer(buffers[name], data=pointer))
    results = body({name: tirx.BufferLoad(buffers[name], [index]) for name in inputs})
    stores = [tirx.BufferStore(buffers[name], value, [index]) for name, value in results.items()]
    work = tirx.stmt_seq(*stores)
    for var, extent, tag in ((thread, THREADS, "threadIdx.x"), (block, blocks, "blockIdx.x")):
        axis = tirx.IterVar(ir.Range(0, extent), var, tirx.IterVar.ThreadIndex, tag)
        work = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", extent), work)
    function = tirx.PrimFunc(params, tirx.SeqStmt([*declarations, work]))
    launch = ["blockIdx.x", "threadIdx.x"]
    attributes = {"global_symbol": "elementwise", "tirx.kernel_launch_params": launch, "tirx.noalias": True}
    function = function.with_attr(attributes)
    return tvm.IRModule({"elementwise": function})


def strided_copy(
    dtype: str, lanes: int, stride: int, offset: int, size: int, shared: bool, in_place=False, byte_offset=0
) -> tvm.IRModule:
    """y[i] = x[i] for i = stride * thread + offset + (0 .. lanes) in one vector access each, through workgroup memory
    if `shared`; y is x if `in_place`; x starts `byte_offset` bytes after its pointer."""
    thread = tirx.Var("tx", "int32")
    start = tirx.Add(tirx.Mul(thread, tirx.IntImm("int32", stride)), tirx.IntImm("int32", offset))
    index = tirx.Ramp(start, 1, lanes)
    pointers = [tirx.Var(f"{n}_ptr", ir.PointerType(ir.PrimType(dtype), "global")) for n in "xy"]
    x, y = (tirx.decl_buffer((size,), dtype, name=n) for n in "xy")
    tile = tirx.decl_buffer((size,), dtype, name="tile", scope="shared")
    source = pointers[0]
    if byte_offset:
        source = tirx.op.handle_add_byte_offset(source, tirx.IntImm("int32", byte_offset))
    steps = [tirx.DeclBuffer(x, data=source), tirx.DeclBuffer(y, data=pointers[1])]
    if in_place:
        pointers, steps, y = pointers[:1], steps[:1], x
    if shared:
        work = tirx.stmt_seq(
            tirx.BufferStore(tile, tirx.BufferLoad(x, [index]), [index]),
            tirx.Evaluate(tirx.op.tvm_storage_sync("shared")),
            tirx.BufferStore(y, tirx.BufferLoad(tile, [index]), [index]),
        )
        steps.append(tirx.AllocBuffer(tile))
    else:
        work = tirx.BufferStore(y, tirx.BufferLoad(x, [index]), [index])
    axis = tirx.IterVar(ir.Range(0, THREADS), thread, tirx.IterVar.ThreadIndex, "threadIdx.x")
    steps.append(tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", THREADS), work))
    attributes = {"global_symbol": "copy", "tirx.kernel_launch_params": ["threadIdx.x"], "tirx.noalias": True}
    return tvm.IRModule({"copy": tirx.PrimFunc(pointers, tirx.SeqStmt(steps)).with_attr(attributes)})
