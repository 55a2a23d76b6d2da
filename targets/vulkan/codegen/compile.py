"""Lowered device functions → ShaderModules."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.tirx.build import split_host_device_mods

from . import spirv
from .analysis import Analysis, is_pointer
from .builder import Module
from .dtypes import BOOL, F32, F64, I32, I64, U32, U64, DType, parse
from .errors import CodegenError
from .expressions import Expressions
from .metadata import FEATURES_OF_CAPABILITY, PUSH_CONSTANT_LIMIT, Argument, ShaderModule
from .statements import Statements

_TAGS = ("x", "y", "z")
_SUBGROUP_SIZE_ATTRIBUTE = "vulkan.subgroup_size"


def vulkan_target(**attributes) -> tvm.target.Target:
    """The TVM target that the generator expects. thread_warp_size stays 1: stock lowering drops barriers inside a
    warp, and nothing keeps the lanes of a Vulkan subgroup in step."""
    return tvm.target.Target({"kind": "vulkan", "max_threads_per_block": 1024, **attributes}, host={"kind": "llvm"})


def lower(mod: tvm.IRModule, target: tvm.target.Target | None = None) -> tvm.IRModule:
    """Run TVM's own lowering and return the device functions that `compile_kernels` takes."""
    target = target or vulkan_target()
    pipeline, _, finalize_device = tirx.get_default_tir_pipeline(target)
    lowered = pipeline(tirx.transform.BindTarget(target)(mod))
    functions = {}
    for device_mod in split_host_device_mods(lowered)[1].values():
        functions.update(finalize_device()(device_mod).functions)
    return tvm.IRModule(functions)


def compile_kernels(device_mod: tvm.IRModule, wide_half: Callable[[str], bool] | None = None) -> list[ShaderModule]:
    """One ShaderModule per device function, in the module's order. CodegenError names a kernel that cannot be made.
    wide_half(name): whether the kernel is to compute float16 in float32."""
    shaders = []
    for var, function in device_mod.functions.items():
        attributes = function.attrs
        name = str(attributes["global_symbol"]) if attributes and "global_symbol" in attributes else var.name_hint
        try:
            shaders.append(_compile(function, name, bool(wide_half and wide_half(name))))
        except CodegenError as error:
            raise CodegenError(f"the kernel {name} cannot be compiled for Vulkan: {error}") from None
    return shaders


def _compile(function: tirx.PrimFunc, name: str, wide_half: bool) -> ShaderModule:
    analysis = Analysis(function)
    module = Module(wide_half)
    expressions = Expressions(module, analysis)
    module.start()
    arguments, size = _layout(function, analysis)
    in_buffer = size > PUSH_CONSTANT_LIMIT
    _read_arguments(expressions, function, arguments, in_buffer)
    Statements(expressions, analysis).emit(function.body)
    module.end("Return")
    module.settle_capabilities()
    properties = _preserve_special_values(module)
    workgroup = tuple(analysis.threads.get(f"threadIdx.{axis}", 1) for axis in _TAGS)
    code = module.assemble(workgroup)
    calls = expressions.intrinsics
    requirements = {feature for c in module.capabilities for feature in FEATURES_OF_CAPABILITY[c]} | properties
    if calls.matrices.requirement:
        requirements.add(calls.matrices.requirement)
    if calls.extended_types:
        requirements.add("shaderSubgroupExtendedTypes")
    attributes = function.attrs
    return ShaderModule(
        name=name,
        code=code,
        arguments=arguments,
        argument_bytes=size,
        arguments_in_buffer=in_buffer,
        launch=tuple(str(tag) for tag in attributes["tirx.kernel_launch_params"]),
        workgroup_size=workgroup,
        shared_bytes=expressions.memory.shared_bytes,
        capabilities=tuple(sorted(module.capabilities)),
        requirements=tuple(sorted(requirements)),
        subgroup=calls.subgroup,
        min_subgroup_size=calls.min_subgroup_size,
        subgroup_size=int(attributes[_SUBGROUP_SIZE_ATTRIBUTE]) if _SUBGROUP_SIZE_ATTRIBUTE in attributes else None,
    )


# ---- arguments


def _slot(dtype: DType) -> DType:
    """The type in which a scalar argument travels."""
    if dtype.is_float or dtype.is_bfloat:
        return F64 if dtype.bits == 64 else F32
    if dtype.is_bool:
        return U32
    if dtype.bits == 64:
        return dtype
    return I32 if dtype.is_signed else U32


_SLOT_NAMES = {I32: "int32", U32: "uint32", I64: "int64", U64: "uint64", F32: "float32", F64: "float64"}


def _layout(function: tirx.PrimFunc, analysis: Analysis) -> tuple[tuple[Argument, ...], int]:
    """Arguments in call order, each at a multiple of its size; the size of the block in bytes."""
    out, offset = [], 0
    for param in function.params:
        dtype = "pointer" if is_pointer(param) else _SLOT_NAMES[_slot(parse(str(param.ty.dtype))[0])]
        size = Argument(param.name, dtype, 0).size
        offset = -(-offset // size) * size
        usage = analysis.usage.get(param)
        reads, writes = (usage.loaded, usage.stored) if usage else (False, False)
        out.append(Argument(param.name, dtype, offset, reads, writes))
        offset += size
    return tuple(out), -(-offset // 8) * 8


def _read_arguments(x: Expressions, function: tirx.PrimFunc, arguments: tuple[Argument, ...], in_buffer: bool) -> None:
    """Give every parameter its value at the start of the kernel."""
    if not arguments:
        return
    m = x.m
    types = [U64 if a.dtype == "pointer" else parse(a.dtype)[0] for a in arguments]
    for dtype in types:
        m.use(dtype)
    members, offsets = tuple(m.type(t) for t in types), tuple(a.offset for a in arguments)
    if in_buffer:
        m.use(U64)
        address_block = m.block_type((m.type(U64),), (0,))
        variable = m.variable(spirv.PUSH_CONSTANT, address_block)
        slot = m.pure("AccessChain", m.pointer(spirv.PUSH_CONSTANT, m.type(U64)), variable, m.constant(U32, 0))
        address = m.pure("Load", m.type(U64), slot)
        block = m.block_type(members, offsets, spirv.NON_WRITABLE)
        base, storage = m.pure("ConvertUToPtr", m.pointer(spirv.PHYSICAL, block), address), spirv.PHYSICAL
    else:
        storage = spirv.PUSH_CONSTANT
        base = m.variable(storage, m.block_type(members, offsets))
    for index, (param, dtype, argument) in enumerate(zip(function.params, types, arguments, strict=True)):
        pointer = m.pure("AccessChain", m.pointer(storage, m.type(dtype)), base, m.constant(U32, index))
        extra = (spirv.ALIGNED, argument.size) if in_buffer else ()
        value = m.pure("Load", m.type(dtype), pointer, *extra)
        if is_pointer(param):
            x.memory.addresses[param] = value
        else:
            declared = parse(str(param.ty.dtype))[0]
            x.values[param] = [_narrow(x, declared, dtype, value)]


def _narrow(x: Expressions, declared: DType, slot: DType, value: int) -> int:
    return x.a.cast(BOOL if declared.is_bool else declared, slot, value)


def _preserve_special_values(module: Module) -> set[str]:
    """Ask for IEEE infinities, NaN and signed zeros (masks are -inf); the device properties that this needs."""
    widths = [32] + [bits for bits in (16, 64) if f"Float{bits}" in module.capabilities]
    module.capabilities.add("SignedZeroInfNanPreserve")
    for bits in widths:
        module.execution_modes.append((spirv.SIGNED_ZERO_INF_NAN_PRESERVE, bits))
    return {f"property:shaderSignedZeroInfNanPreserveFloat{bits}" for bits in widths}
