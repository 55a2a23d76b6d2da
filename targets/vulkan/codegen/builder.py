"""A SPIR-V module under construction: ids, types, constants, sections, and value numbering of pure operations."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from . import spirv
from .dtypes import F16, U32, DType

_STORAGE_ONLY = {"Load", "FConvert", "SConvert", "UConvert", "Store"}  # allowed on narrow types without arithmetic
_ARITHMETIC = {("float", 16): "Float16", ("float", 64): "Float64", ("int", 8): "Int8", ("int", 16): "Int16",
               ("int", 64): "Int64"}  # fmt: skip


class Module:
    """One entry point. Operations return ids; `pure` returns the earlier id of an equal operation that dominates.

    wide_half: float16 values are carried as float32, for devices that store float16 but do not compute in it.
    """

    def __init__(self, wide_half: bool = False):
        self.wide_half = wide_half
        self._next = 1
        self._unique: dict[tuple, int] = {}
        self._values: list[dict[tuple, int]] = [{}]
        self._constants: dict[int, int | float] = {}
        self.capabilities = {"Shader", "PhysicalStorageBufferAddresses"}
        self.execution_modes: list[tuple] = []
        self._decorations: list[int] = []
        self._globals: list[int] = []
        self._locals: list[int] = []
        self._body: list[int] = []
        self._interface: list[int] = []
        self.block = 0
        self.open = False
        self.glsl = self.new_id()

    # ---- instructions

    def new_id(self) -> int:
        self._next += 1
        return self._next - 1

    @staticmethod
    def _emit(section: list[int], op: str, *operands: int) -> None:
        section.append((len(operands) + 1) << 16 | spirv.OPS[op])
        section.extend(operand & 0xFFFFFFFF for operand in operands)

    def op(self, name: str, type_id: int, *operands: int) -> int:
        """An operation with a result that is never shared."""
        result = self.new_id()
        self._emit(self._body, name, type_id, result, *operands)
        return result

    def pure(self, name: str, type_id: int, *operands: int) -> int:
        """An operation whose result depends on its operands alone."""
        key = (name, type_id, *operands)
        for scope in reversed(self._values):
            if key in scope:
                return scope[key]
        result = self._values[-1][key] = self.op(name, type_id, *operands)
        return result

    def scalar(self, name: str, dtype: DType, *operands: int) -> int:
        """A pure operation with a scalar result, noting the capability that the result's type needs."""
        if name not in _STORAGE_ONLY:
            self.use(dtype)
        return self.pure(name, self.type(dtype), *operands)

    def ext(self, function: str, dtype: DType, *operands: int) -> int:
        """A GLSL.std.450 function with a scalar result."""
        self.use(dtype)
        return self.pure("ExtInst", self.type(dtype), self.glsl, spirv.EXT[function], *operands)

    def effect(self, name: str, *operands: int) -> None:
        """An instruction without a result."""
        self._emit(self._body, name, *operands)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Operations made inside do not dominate what follows."""
        self._values.append({})
        try:
            yield
        finally:
            self._values.pop()

    def begin(self, label: int) -> None:
        """Start a block."""
        self.effect("Label", label)
        self.block, self.open = label, True

    def end(self, name: str, *operands: int) -> None:
        """Terminate the block, unless a jump has done so already."""
        if self.open:
            self.effect(name, *operands)
            self.open = False

    # ---- types and constants

    def use(self, dtype: DType) -> None:
        """Note that arithmetic of this type happens."""
        if self.wide_half and dtype == F16:
            return
        kind = "int" if dtype.kind in ("uint", "bfloat") else dtype.kind
        capability = _ARITHMETIC.get((kind, dtype.bits))
        if capability:
            self.capabilities.add(capability)

    def settle_capabilities(self) -> None:
        """Cover narrow types that only conversions touch: storage access allows those, else the type's own capability
        is needed."""
        for kind, bits in (("int", 8), ("int", 16), ("float", 16)):
            if (kind, bits) in self._unique and f"StorageBuffer{bits}BitAccess" not in self.capabilities:
                self.capabilities.add(_ARITHMETIC[kind, bits])

    def _unique_global(self, key: tuple, op: str, *operands: int, type_id: int | None = None) -> int:
        if key not in self._unique:
            result = self._unique[key] = self.new_id()
            head = (result,) if type_id is None else (type_id, result)
            self._emit(self._globals, op, *head, *operands)
        return self._unique[key]

    def type(self, dtype: DType) -> int:
        if dtype.is_bool:
            return self._unique_global(("bool",), "TypeBool")
        if dtype.is_float:
            bits = 32 if self.wide_half else dtype.bits
            bits = bits if dtype == F16 else dtype.bits
            return self._unique_global(("float", bits), "TypeFloat", bits)
        # one signedness for all: the operation says which is meant
        return self._unique_global(("int", dtype.bits), "TypeInt", dtype.bits, 0)

    def vector(self, dtype: DType, lanes: int) -> int:
        element = self.type(dtype)
        return element if lanes == 1 else self._unique_global(("vector", element, lanes), "TypeVector", element, lanes)

    def matrix(self, dtype: DType, rows: int, columns: int, use: int) -> int:
        """A cooperative matrix of the subgroup."""
        self.use(dtype)
        self.capabilities |= {"CooperativeMatrixKHR", "VulkanMemoryModel"}
        sizes = [self.constant(U32, value) for value in (spirv.SUBGROUP_SCOPE, rows, columns, use)]
        element = self.type(dtype)
        return self._unique_global(("matrix", element, rows, columns, use), "TypeCooperativeMatrixKHR", element, *sizes)

    def array(self, element: int, length: int) -> int:
        return self._unique_global(("array", element, length), "TypeArray", element, self.constant(U32, length))

    def pointer(self, storage: int, pointee: int) -> int:
        return self._unique_global(("pointer", storage, pointee), "TypePointer", storage, pointee)

    def block_type(self, members: tuple[int, ...], offsets: tuple[int, ...], access: int | None = None) -> int:
        """A Block structure; `access` is a decoration of its members (NON_WRITABLE, COHERENT) or None."""
        key = ("block", members, offsets, access)
        known = key in self._unique
        result = self._unique_global(key, "TypeStruct", *members)
        if not known:
            self._emit(self._decorations, "Decorate", result, spirv.BLOCK)
            for index, offset in enumerate(offsets):
                self._emit(self._decorations, "MemberDecorate", result, index, spirv.OFFSET, offset)
                if access is not None:
                    self._emit(self._decorations, "MemberDecorate", result, index, access)
        return result

    def constant(self, dtype: DType, value: int | float | bool) -> int:
        type_id = self.type(dtype)
        if dtype.is_bool:
            name = "ConstantTrue" if value else "ConstantFalse"
            return self._unique_global((name,), name, type_id=type_id)
        if dtype.is_float:
            raw = _float_bytes(float(value), dtype.bits)
            if self.wide_half and dtype == F16:
                raw = struct.pack("<f", struct.unpack("<e", raw)[0])
        else:
            raw = (int(value) & ((1 << dtype.bits) - 1)).to_bytes(dtype.size, "little")
        self.use(dtype)
        words = struct.unpack(f"<{max(1, len(raw) // 4)}I", raw.ljust(4, b"\0"))
        result = self._unique_global(("constant", type_id, words), "Constant", *words, type_id=type_id)
        if not dtype.is_float:
            self._constants[result] = int(value)
        return result

    def constant_vector(self, dtype: DType, lanes: int, value: int | float) -> int:
        """A vector with the same constant in every lane."""
        type_id, lane = self.vector(dtype, lanes), self.constant(dtype, value)
        key = ("constant", type_id, lane)
        return self._unique_global(key, "ConstantComposite", *[lane] * lanes, type_id=type_id)

    def integer_value(self, value: int) -> int | None:
        """The value of an id that is an integer constant."""
        return self._constants.get(value)

    # ---- variables

    def local(self, type_id: int) -> int:
        result = self.new_id()
        self._emit(self._locals, "Variable", self.pointer(spirv.FUNCTION, type_id), result, spirv.FUNCTION)
        return result

    def variable(self, storage: int, type_id: int) -> int:
        """A variable outside the function."""
        pointer = self.pointer(storage, type_id)
        result = self.new_id()
        self._emit(self._globals, "Variable", pointer, result, storage)
        self._interface.append(result)
        return result

    def builtin(self, name: str, lanes: int = 1) -> int:
        """Value of a builtin input, a u32 vector or scalar. Loaded where the function starts."""
        key = ("builtin", name)
        if key not in self._unique:
            variable = self._unique[key] = self.variable(spirv.INPUT, self.vector(U32, lanes))
            self._emit(self._decorations, "Decorate", variable, spirv.BUILTIN, spirv.BUILTINS[name])
        return self.pure("Load", self.vector(U32, lanes), self._unique[key])

    # ---- the whole

    def start(self) -> None:
        self.begin(self.new_id())
        self._first = len(self._body)

    def assemble(self, workgroup_size: tuple[int, int, int]) -> bytes:
        """The binary; the body must be complete."""
        void = self._unique_global(("void",), "TypeVoid")
        function_type = self._unique_global(("function",), "TypeFunction", void)
        main, out = self.new_id(), []
        for capability in sorted(self.capabilities):
            self._emit(out, "Capability", spirv.CAPABILITIES[capability])
        needed = {spirv.EXTENSION_OF_CAPABILITY.get(c) for c in self.capabilities} - {None}
        for extension in sorted(needed):
            self._emit(out, "Extension", *_string(extension))
        self._emit(out, "ExtInstImport", self.glsl, *_string("GLSL.std.450"))
        model = spirv.VULKAN if "VulkanMemoryModel" in self.capabilities else spirv.GLSL450
        self._emit(out, "MemoryModel", spirv.PHYSICAL_STORAGE_BUFFER_64, model)
        self._emit(out, "EntryPoint", spirv.GL_COMPUTE, main, *_string("main"), *self._interface)
        self._emit(out, "ExecutionMode", main, spirv.LOCAL_SIZE, *workgroup_size)
        for mode in self.execution_modes:
            self._emit(out, "ExecutionMode", main, *mode)
        function: list[int] = []
        self._emit(function, "Function", void, main, 0, function_type)
        function += self._body[: self._first] + self._locals + self._body[self._first :]
        self._emit(function, "FunctionEnd")
        words = [spirv.MAGIC, spirv.VERSION, 0, self._next, 0, *out, *self._decorations, *self._globals, *function]
        return struct.pack(f"<{len(words)}I", *words)


def _float_bytes(value: float, bits: int) -> bytes:
    try:
        return struct.pack({16: "<e", 32: "<f", 64: "<d"}[bits], value)
    except OverflowError:
        return struct.pack({16: "<e", 32: "<f"}[bits], float("inf") if value > 0 else float("-inf"))


def _string(text: str) -> tuple[int, ...]:
    raw = text.encode() + b"\0"
    raw += b"\0" * (-len(raw) % 4)
    return struct.unpack(f"<{len(raw) // 4}I", raw)
