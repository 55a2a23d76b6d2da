"""Lowered kernels → a TVM module of kind "vulkan": SPIR-V and what the runtime must know, in one piece of bytes.

Layout (little-endian; number = u32, text = number of bytes + bytes, list = count + items): the magic line, then a list
of kernels, each
    text name, text unit, text variant, number lanes, number preference (less is better), number uses-subgroups,
    list of (number place-in-call, number kind, number offset, number access), number argument-bytes, number in-buffer,
    3 numbers place-of-grid-extent + 1, 3 numbers divisor (where the place is 0: the extent), 3 numbers workgroup,
    number shared-bytes,
    list of text requirement, text code
A unit is a function; its variants are alternatives of which a device takes one. The host calls the kernels of the
first; the others take what they need of the same arguments.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

import tvm

from mlcrt.targets.native import load_native

from .codegen import CodegenError, ShaderModule, compile_kernels
from .codegen.metadata import grid_extents
from .device import SIDECAR

_MAGIC = b"mlcrt-vulkan-1\n"
_KINDS = {"pointer": 0, "int32": 1, "uint32": 1, "int64": 2, "uint64": 2, "float32": 3, "float64": 4}
_BLOCKS = tuple(f"blockIdx.{axis}" for axis in "xyz")
# function names: unit, the variant that the host calls, perhaps another variant, and the kernel's number
_NAME = re.compile(r"(?P<unit>.+__v_(?P<tag>s\d+[fm]?)_\d*)(?:__or_(?P<other>s\d+[fm]?))?(?P<kernel>_kernel(?:_\d+)?)")


def variant_name(name: str, tag: str) -> str:
    """What a function is called whose kernels are made for `tag`."""
    return f"{name}__v_{tag}_"


def alternative_name(name: str, tag: str) -> str:
    """What the same function for another tag is called, `name` being the first one's whole name."""
    return f"{name}__or_{tag}"


@tvm.register_global_func("target.build.vulkan", override=True)
def build(mod: tvm.IRModule, _target) -> tvm.runtime.Module:
    """What TVM calls to generate code for its device functions."""
    load_native(SIDECAR)
    return tvm.get_global_func("ffi.Module.create.vulkan")(pack(mod))


def pack(mod: tvm.IRModule) -> bytes:
    """The device functions of a module as the bytes described above."""
    shaders = {shader.name: shader for shader in compile_kernels(mod, lambda name: _tag(name).endswith("f"))}
    extents = {str(f.attrs["global_symbol"]): grid_extents(f) for f in mod.functions.values()}
    entries = []
    for name, shader in shaders.items():
        match = _NAME.fullmatch(name)
        if match is None:
            entries.append(_entry(shader, shader, name, name, "", _grid(shader, extents[name], extents[name])))
            continue
        called = match["unit"] + match["kernel"]
        if called not in shaders:
            raise CodegenError(f"the kernel {name} has no counterpart {called}")
        grid = _grid(shaders[called], extents[called], extents[name])
        if None in grid:
            raise CodegenError(f"{name} and {called} have different grids: {extents[name]} and {extents[called]}")
        entries.append(_entry(shader, shaders[called], called, match["unit"], _tag(name), grid))
    return _MAGIC + _list(entries)


def _tag(name: str) -> str:
    """The variant that a kernel is for; empty for one that has no variants."""
    match = _NAME.fullmatch(name)
    return (match["other"] or match["tag"]) if match else ""


# an extent that is a number of tiles: dimension, tile - 1, log2 of the tile
_TILES = re.compile(r"(?P<name>\w+) \+ (?P<less>\d+) >> (?P<shift>\d+)")


def _grid(called: ShaderModule, extents: dict[str, str], own: dict[str, str]) -> list[int | None]:
    """Places of the extents in a call, and divisors or constants, of a variant whose own grid is `own`."""
    places, divisors = [], []
    for tag in _BLOCKS:
        extent = own.get(tag, "1")
        known = extent.isdigit()
        places.append(0 if known else len(called.arguments) + called.launch.index(tag) + 1)
        divisors.append(int(extent) if known else _divisor(extents.get(tag, "1"), extent))
    return places + divisors


def _divisor(called: str, own: str) -> int | None:
    """By how much the called variant's tiles are smaller, from the extents of one axis of the grids: the power of two
    that the first is divided by, rounding up, to give the second. None where there is none."""
    if called == own:
        return 1
    if called.isidentifier():
        called = f"{called} + 0 >> 0"
    first, second = _TILES.fullmatch(called), _TILES.fullmatch(own)
    if not first or not second or first["name"] != second["name"]:
        return None
    if any(int(m["less"]) != (1 << int(m["shift"])) - 1 for m in (first, second)):
        return None
    power = int(second["shift"]) - int(first["shift"])
    return 1 << power if power >= 0 else None


def _entry(shader: ShaderModule, called: ShaderModule, name: str, unit: str, variant: str, grid) -> bytes:
    parameters = [
        _numbers(place, _KINDS[a.dtype], a.offset, a.reads + 2 * a.writes)
        for place, a in zip(_places(shader, called), shader.arguments, strict=True)
    ]
    lanes = int(variant.strip("sfm")) if variant else 0
    preference = {"m": 0, "f": 2}.get(variant[-1:], 1)
    return b"".join(
        [
            *map(_text, (name, unit, variant)),
            _numbers(lanes, preference, shader.subgroup),
            _list(parameters),
            _numbers(shader.argument_bytes, shader.arguments_in_buffer, *grid),
            _numbers(*shader.workgroup_size, shader.shared_bytes),
            _list([_text(r) for r in shader.requirements]),
            _text(shader.code),
        ]
    )


def _places(shader: ShaderModule, called: ShaderModule) -> list[int]:
    """Where the arguments of one variant lie in a call of another: they are told apart by their names."""
    if shader is called:
        return list(range(len(shader.arguments)))
    names = [argument.name for argument in called.arguments]
    for argument in shader.arguments:
        if names.count(argument.name) != 1:
            raise CodegenError(f"{shader.name} takes {argument.name}, which {called.name} does not have once")
    return [names.index(argument.name) for argument in shader.arguments]


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *map(int, values))


def _text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _numbers(len(raw)) + raw


def _list(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return _numbers(len(items)) + b"".join(items)
