"""Buffers: device memory by address, workgroup and private memory as arrays, atomics.

A value is a list of ids, one per lane. Device memory is read and written in pieces of up to 16 bytes, as wide as the
index is provably aligned (addresses of arguments are taken to be multiples of 16). Booleans are bytes there, 32-bit
words elsewhere. A workgroup allocation with views of several types becomes one variable per type: stock lowering lets
buffers of different lifetimes share bytes, which typed SPIR-V memory cannot express.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import spirv
from .analysis import MAX_ACCESS_BYTES, Analysis, call_name, element_count, literal
from .arithmetic import Arithmetic
from .dtypes import BOOL, F16, F32, F64, I64, U8, U16, U32, U64, DType, of, parse
from .errors import CodegenError

_SHARED_CHUNK = 4  # most components of a SPIR-V vector


@dataclass(frozen=True)
class DeviceBuffer:
    """Memory behind a 64-bit address. small: below 4 GiB, so that byte offsets fit 32 bits."""

    address: int
    dtype: DType
    access: int | None
    constant: bool
    small: bool


@dataclass(frozen=True)
class ArrayBuffer:
    """A variable: an array of vectors of `chunk` scalars, the first of which has the index `first`. packed: the vectors
    are of words, and an access is to whole vectors."""

    variable: int
    storage: int
    dtype: DType
    chunk: int
    first: int
    packed: bool = False


class Memory:
    """Loads and stores of one kernel. `index_value(expr)` gives the ids of an index expression."""

    def __init__(self, arithmetic: Arithmetic, analysis: Analysis, index_value):
        self.a, self.m, self.analysis, self.index_value = arithmetic, arithmetic.m, analysis, index_value
        self.buffers: dict = {}
        self.addresses: dict = {}  # parameter → id of its address
        self._variables: dict[tuple, ArrayBuffer] = {}
        self.shared_bytes = 0
        attributes = analysis.function.attrs
        self._no_alias = bool(attributes.get("tirx.noalias", False)) if attributes else False

    # ---- declarations

    def declare(self, buffer, data) -> None:
        """A buffer that lies behind a pointer."""
        root = self.analysis.root_of_pointer(data)
        if root in self.addresses:
            usage = self.analysis.usage[root]
            constant = not usage.stored
            exchanged = usage.stored and usage.loaded and self.analysis.synchronises
            if exchanged and self.analysis.matrices:
                raise CodegenError(f"{root.name} is exchanged between threads beside matrices, which is not supported")
            access = spirv.NON_WRITABLE if constant else spirv.COHERENT if exchanged else None
            dtype, lanes = parse(str(buffer.ty.dtype))
            elements = element_count(buffer)
            small = elements is not None and elements * lanes * dtype.size <= 1 << 32
            self.buffers[buffer] = DeviceBuffer(
                self.address(data), _stored(dtype, U8), access, constant and self._no_alias, small)  # fmt: skip
        elif type(data).__name__ == "Call" and call_name(data) != "buffer_data":
            raise CodegenError(f"buffer {buffer.name}: byte offsets into {root.name} are not supported on Vulkan")
        else:
            self.buffers[buffer] = self._array(buffer, root)

    def alias(self, var, data) -> None:
        """A pointer variable that stands for a pointer expression."""
        if self.analysis.root_of_pointer(data) in self.addresses:
            self.addresses[var] = self.address(data)

    def address(self, data) -> int:
        """The 64-bit address of a pointer expression."""
        if type(data).__name__ == "Call":
            base = self.address(data.args[0])
            if call_name(data) == "buffer_data":
                return base
            offset = self.a.cast(I64, of(data.args[1])[0], self.index_value(data.args[1])[0])
            return self.a.binary("Add", U64, base, offset)
        if data in self.addresses:
            return self.addresses[data]
        return self.buffers[data].address

    def allocate(self, buffer) -> None:
        """A buffer of the kernel's own. Allocations that only serve as backing for views cost nothing."""
        scope = buffer.ty.storage_scope
        if not scope.startswith(("shared", "local")) and scope not in ("", "global"):
            raise CodegenError(f"buffer {buffer.name}: memory scope '{scope}' is not available on Vulkan")
        self.buffers[buffer] = None  # made at the first access

    def _resolve(self, buffer) -> DeviceBuffer | ArrayBuffer:
        found = self.buffers.get(buffer)
        if found is None:
            if buffer not in self.buffers:
                raise CodegenError(f"buffer {buffer.name} is used before it is declared")
            found = self.buffers[buffer] = self._array(buffer, buffer)
        return found

    def _array(self, buffer, root) -> ArrayBuffer:
        declared = parse(str(buffer.ty.dtype))[0]
        view = self.analysis.views[root, declared]
        if view.limit is None:
            raise CodegenError(f"buffer {buffer.name} has a size that is not a constant, which Vulkan needs")
        key = (root, declared)
        if key not in self._variables:
            dtype = _stored(declared, U32)
            dtype = F32 if self.m.wide_half and dtype == F16 else dtype
            shared = root.ty.storage_scope.startswith("shared")
            chunk = min(_SHARED_CHUNK, view.widest) if shared else 1
            packed = shared and dtype.bits == 16 and view.narrowest == 8
            chunk = 8 if packed else chunk
            first = view.low // chunk * chunk
            count = max(1, -(-(view.high - first) // chunk))
            if not packed:
                self.m.use(dtype)
            array = self.m.array(self.m.vector(U32, 4) if packed else self.m.vector(dtype, chunk), count)
            storage = spirv.WORKGROUP if shared else spirv.FUNCTION
            variable = self.m.variable(storage, array) if shared else self.m.local(array)
            self._variables[key] = ArrayBuffer(variable, storage, dtype, chunk, first, packed)
            if shared:
                self.shared_bytes += -(-count * chunk * dtype.size // 16) * 16
        return self._variables[key]

    # ---- access

    def load(self, buffer, indices) -> list[int]:
        """The lanes of buffer[indices]."""
        target, declared = self._resolve(buffer), parse(str(buffer.ty.dtype))[0]
        values = [v for piece in self._pieces(target, buffer, indices) for v in self._load_piece(target, *piece)]
        if not declared.is_bool:
            return values
        return [self.a.cast(BOOL, U8 if isinstance(target, DeviceBuffer) else U32, v) for v in values]

    def store(self, buffer, indices, values: list[int]) -> None:
        """Write one value per lane."""
        target, declared = self._resolve(buffer), parse(str(buffer.ty.dtype))[0]
        if declared.is_bool:
            values = [self.a.cast(U32, BOOL, v) for v in values]
            if isinstance(target, DeviceBuffer):
                values = [self.m.scalar("UConvert", U8, v) for v in values]
        done = 0
        for start, constant, lanes in self._pieces(target, buffer, indices):
            self._store_piece(target, start, constant, values[done : done + lanes])
            done += lanes

    def _pieces(self, target, buffer, indices) -> list[tuple]:
        """What one instruction each can do: (start, constant, lanes) where start is (type, id, whether it is known to
        be non-negative) or None; the first scalar is start + constant."""
        access = self.analysis.contiguous(buffer, indices)
        if access is None:
            return self._scattered(buffer, indices[0])
        rest, constant = self.analysis.split(access.start)
        start = None
        if rest is not None:
            start = (of(rest)[0], self.index_value(rest)[0], self.analysis.non_negative(rest))
        done, out = 0, []
        while done < access.lanes:
            lanes = access.aligned
            while lanes > access.lanes - done or not self._possible(target, lanes):
                lanes //= 2
            out.append((start, constant + done, lanes))
            done += lanes
        return out

    def _scattered(self, buffer, index) -> list[tuple]:
        """Pieces of one scalar for lanes at unrelated elements."""
        dtype, per_element = of(index)[0], parse(str(buffer.ty.dtype))[1]
        offset = literal(buffer.ty.elem_offset) or 0
        out = []
        for lane in self.index_value(index):
            if per_element > 1:
                lane = self.a.binary("Mul", dtype, lane, self.m.constant(dtype, per_element))
            out += [((dtype, lane, False), offset * per_element + k, 1) for k in range(per_element)]
        return out

    @staticmethod
    def _possible(target, lanes: int) -> bool:
        if lanes == 1:
            return True
        if isinstance(target, ArrayBuffer):
            return lanes == target.chunk
        return 4 <= lanes * target.dtype.size <= MAX_ACCESS_BYTES

    # ---- one instruction

    def _load_piece(self, target, start, constant: int, lanes: int) -> list[int]:
        if isinstance(target, ArrayBuffer) and target.packed:
            pointer = self._element(target, start, constant, lanes)
            words = self.m.op("Load", self.m.vector(U32, 4), pointer, *self.shared_access(target))
            parts = [self.m.scalar("CompositeExtract", U32, words, i) for i in range(4)]
            return self.a.reinterpret(target.dtype, lanes, U32, parts)
        if isinstance(target, ArrayBuffer):
            pointee = self.m.vector(target.dtype, lanes)
            pointer = self._element(target, start, constant, lanes)
            value = self.m.op("Load", pointee, pointer, *self.shared_access(target))
            if lanes == 1:
                return [value]
            return [self.m.scalar("CompositeExtract", target.dtype, value, i) for i in range(lanes)]
        component, count = self._components(target.dtype, lanes)
        pointer, pointee = self._pointer(target, start, constant, component, count, lanes)
        emit = self.m.pure if target.constant else self.m.op
        value = emit("Load", pointee, pointer, spirv.ALIGNED, lanes * target.dtype.size)
        parts = [value] if count == 1 else [
            self.m.pure("CompositeExtract", self.m.type(component), value, i) for i in range(count)]  # fmt: skip
        return parts if component == target.dtype else self.a.reinterpret(target.dtype, lanes, component, parts)

    def _store_piece(self, target, start, constant: int, values: list[int]) -> None:
        lanes = len(values)
        if isinstance(target, ArrayBuffer):
            value = values[0]
            if target.packed:
                words = self.a.reinterpret(U32, 4, target.dtype, values)
                value = self.m.pure("CompositeConstruct", self.m.vector(U32, 4), *words)
            elif lanes > 1:
                value = self.m.pure("CompositeConstruct", self.m.vector(target.dtype, lanes), *values)
            self.m.effect("Store", self._element(target, start, constant, lanes), value, *self.shared_access(target))
            return
        component, count = self._components(target.dtype, lanes)
        parts = values if component == target.dtype else self.a.reinterpret(component, count, target.dtype, values)
        pointer, pointee = self._pointer(target, start, constant, component, count, lanes)
        value = parts[0] if count == 1 else self.m.pure("CompositeConstruct", pointee, *parts)
        self.m.effect("Store", pointer, value, spirv.ALIGNED, lanes * target.dtype.size)

    def _components(self, dtype: DType, lanes: int) -> tuple[DType, int]:
        """The SPIR-V vector that carries `lanes` scalars: words where narrow scalars would need too many components."""
        if lanes > 1 and dtype.bits < 32:
            return U32, lanes * dtype.size // 4
        return (U16 if self.m.wide_half and dtype == F16 else dtype), lanes

    def _element(self, target: ArrayBuffer, start, constant: int, lanes: int) -> int:
        """Pointer into an array variable."""
        constant -= target.first
        if start is None:
            dtype, index = U32, self.m.constant(U32, constant)
        else:
            dtype, index, _ = start
            if constant:
                index = self.a.binary("Add", dtype, index, self.m.constant(dtype, constant))
        pointee = self.m.vector(U32, 4) if target.packed else self.m.vector(target.dtype, lanes)
        path = [index]
        if target.chunk > 1:
            shift = self.m.constant(dtype, target.chunk.bit_length() - 1)
            path = [self.a.binary("RShift", dtype, index, shift)]
            if start is None:
                path = [self.m.constant(U32, constant // target.chunk)]
            if lanes == 1:
                mask = self.m.constant(dtype, target.chunk - 1)
                inside = self.m.constant(U32, constant % target.chunk)
                path.append(inside if start is None else self.a.binary("BitwiseAnd", dtype, index, mask))
        return self.m.pure("AccessChain", self.m.pointer(target.storage, pointee), target.variable, *path)

    def _byte_address(self, target: DeviceBuffer, start, constant: int) -> int:
        """base + start * size, and the constant part last so that it can become an immediate of the instruction."""
        address, size = target.address, target.dtype.size
        if start is not None:
            dtype, index, positive = start
            if target.small and positive and dtype.bits == 32:
                scaled = self.a.binary("Mul", U32, index, self.m.constant(U32, size)) if size > 1 else index
                offset = self.m.scalar("UConvert", U64, scaled)
            else:
                wide = self.a.cast(I64, dtype, index)
                offset = self.a.binary("Mul", I64, wide, self.m.constant(I64, size)) if size > 1 else wide
            address = self.a.binary("Add", U64, address, offset)
        if constant:
            address = self.a.binary("Add", U64, address, self.m.constant(U64, constant * size))
        return address

    def _pointer(self, target: DeviceBuffer, start, constant: int, component: DType, count: int, lanes: int):
        """(pointer, pointee type) for `count` components in device memory."""
        self.m.use(U64)
        if component.bits < 32:
            self.m.capabilities.add(f"StorageBuffer{component.bits}BitAccess")
        elif component.bits == 64:
            self.m.use(component)
        pointee = self.m.vector(component, count)
        block = self.m.block_type((pointee,), (0,), target.access)
        address = self._byte_address(target, start, constant)
        base = self.m.pure("ConvertUToPtr", self.m.pointer(spirv.PHYSICAL, block), address)
        member = self.m.constant(U32, 0)
        return self.m.pure("AccessChain", self.m.pointer(spirv.PHYSICAL, pointee), base, member), pointee

    def shared_access(self, target: ArrayBuffer) -> tuple[int, ...]:
        """Memory operands of an access: in the Vulkan memory model barriers order only what is called shared."""
        return (spirv.NON_PRIVATE,) if self.analysis.matrices and target.storage == spirv.WORKGROUP else ()

    def element(self, buffer, index) -> tuple[int, int]:
        """Pointer to the element of a workgroup buffer, which starts a vector of the array; scalars in a vector."""
        target = self._resolve(buffer)
        if not isinstance(target, ArrayBuffer) or target.storage != spirv.WORKGROUP:
            raise CodegenError(f"matrices are loaded from workgroup memory only, not from {buffer.name}")
        access = self.analysis.contiguous(buffer, [index])
        rest, constant = self.analysis.split(access.start)
        start = None if rest is None else (of(rest)[0], self.index_value(rest)[0], self.analysis.non_negative(rest))
        return self._element(target, start, constant, target.chunk), target.chunk

    # ---- atomics

    def atomic_add(self, buffer, index, value: int) -> int:
        """Add to one element, relaxed, visible device-wide (workgroup-wide in shared memory); the old value.

        float32 in device memory is a compare-exchange loop, so it needs no feature.
        """
        target = self._resolve(buffer)
        dtype = target.dtype
        if dtype.bits < 32 or dtype == F64:
            name = f"{dtype.kind}{dtype.bits}"
            raise CodegenError(f"atomic add of {name} (buffer {buffer.name}) is not available on Vulkan")
        start = ((of(index)[0], self.index_value(index)[0], self.analysis.non_negative(index)), 0)
        if isinstance(target, ArrayBuffer):
            if target.storage != spirv.WORKGROUP:
                raise CodegenError(f"atomic add on private memory (buffer {buffer.name}) is not supported")
            pointer, scope = self._element(target, *start, 1), spirv.WORKGROUP_SCOPE
        else:
            scope = spirv.DEVICE_SCOPE
            component = U32 if dtype == F32 else dtype
            pointer, _ = self._pointer(target, *start, component, 1, 1)
        scope_id, relaxed = self.m.constant(U32, scope), self.m.constant(U32, spirv.RELAXED)
        if dtype.is_integer:
            if dtype.bits == 64:
                self.m.capabilities.add("Int64Atomics")
            return self.m.op("AtomicIAdd", self.m.type(dtype), pointer, scope_id, relaxed, value)
        if isinstance(target, ArrayBuffer):
            self.m.capabilities.add("AtomicFloat32AddEXT")
            return self.m.op("AtomicFAddEXT", self.m.type(F32), pointer, scope_id, relaxed, value)
        return self._compare_exchange_add(pointer, scope_id, relaxed, value)

    def _compare_exchange_add(self, pointer: int, scope: int, relaxed: int, value: int) -> int:
        word = self.m.type(U32)
        first = self.m.op("AtomicLoad", word, pointer, scope, relaxed)
        before, head, body, again, done = self.m.block, *(self.m.new_id() for _ in range(4))
        old, next_old = self.m.new_id(), self.m.new_id()
        self.m.end("Branch", head)
        self.m.begin(head)
        self.m.effect("Phi", word, old, first, before, next_old, again)
        self.m.effect("LoopMerge", done, again, 0)
        self.m.end("Branch", body)
        with self.m.scope():
            self.m.begin(body)
            current = self.m.scalar("Bitcast", F32, old)
            updated = self.m.scalar("Bitcast", U32, self.a.binary("Add", F32, current, value))
            self.m.effect("AtomicCompareExchange", word, next_old, pointer, scope, relaxed, relaxed, updated, old)
            same = self.a.binary("EQ", U32, next_old, old)
            self.m.end("BranchConditional", same, done, again)
            self.m.begin(again)
            self.m.end("Branch", head)
        self.m.begin(done)
        return self.m.scalar("Bitcast", F32, old)


def _stored(dtype: DType, boolean: DType) -> DType:
    """The type that stands for `dtype` in memory."""
    return boolean if dtype.is_bool else U16 if dtype.is_bfloat else dtype
