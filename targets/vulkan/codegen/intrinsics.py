"""Calls: TensorIR intrinsics, C functions that stock lowering leaves, and the functions kernels call by name.

Kernels reach what TensorIR has no operator for through call_pure_extern(dtype, name, ...):
    subgroup_add, subgroup_max, subgroup_min (x)                  over the active lanes of the subgroup
    subgroup_shuffle (x, lane)  subgroup_shuffle_xor (x, mask)    x of another lane
    subgroup_broadcast (x)                                        x of the lowest active lane
    subgroup_any, subgroup_all (condition)
    subgroup_size ()  subgroup_lane ()  subgroup_id ()  subgroup_count ()
    dot4_i8 (a, b, c)  dot4_u8 (a, b, c)                          c + the sum of four byte products of two 32-bit words
    dot8_f16 (w, x)                                               float32 sum of (code - 8) * x over the 4-bit codes of
                                                                  a word; x: float16x8 of elements 0 4 1 5 2 6 3 7
    unpack8_f16 (w, s)                                            uint32x4: (code - 8) * s as float16 of the 4-bit codes
                                                                  0 4 1 5 2 6 3 7 of a word, two to a word; s: float16
    matrix_… see matrices.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import dtypes, spirv
from .analysis import call_name, literal
from .dtypes import BOOL, F16, F32, I32, U32, DType
from .errors import CodegenError
from .matrices import Matrices

if TYPE_CHECKING:
    from .expressions import Expressions

# subgroup function → operations for signed, unsigned, float
_REDUCTIONS = {
    "subgroup_add": ("GroupNonUniformIAdd", "GroupNonUniformIAdd", "GroupNonUniformFAdd"),
    "subgroup_max": ("GroupNonUniformSMax", "GroupNonUniformUMax", "GroupNonUniformFMax"),
    "subgroup_min": ("GroupNonUniformSMin", "GroupNonUniformUMin", "GroupNonUniformFMin"),
}
_SHUFFLES = {"subgroup_shuffle": "GroupNonUniformShuffle", "subgroup_shuffle_xor": "GroupNonUniformShuffleXor"}
_VOTES = {"subgroup_any": "GroupNonUniformAny", "subgroup_all": "GroupNonUniformAll"}
_SUBGROUP_VALUES = {
    "subgroup_size": "SubgroupSize", "subgroup_lane": "SubgroupLocalInvocationId", "subgroup_id": "SubgroupId",
    "subgroup_count": "NumSubgroups",
}  # fmt: skip
_DOTS = {"dot4_i8": "SDot", "dot4_u8": "UDot"}
_OPERATORS = {
    "shift_left": "LShift", "shift_right": "RShift", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor",
}  # fmt: skip
_PASS_THROUGH = ("likely", "tvm_thread_invariant", "ignore_loop_partition")
_INDIRECT = ("call_pure_extern", "call_extern")


class Intrinsics:
    """Emits calls. Notes in `min_subgroup_size` what a kernel assumes about subgroups."""

    def __init__(self, expressions: Expressions):
        self.x, self.m, self.a = expressions, expressions.m, expressions.a
        self.min_subgroup_size = 1
        self.subgroup = False
        self.extended_types = False
        self.matrices = Matrices(expressions)
        self._loops: list[tuple[int, int]] = []  # (merge, continue) of the loops around
        self._special: dict[str, Callable] = {
            "if_then_else": lambda c: self.x.conditional(*c.args),
            "tvm_storage_sync": self._sync, "reinterpret": self._reinterpret, "atomic_add": self._atomic_add,
            "break_loop": lambda c: self.jump(0), "continue_loop": lambda c: self.jump(1),
            "thread_return": self._return, "dp4a": self._dp4a, "isnan": self._is_nan, "isinf": self._is_inf,
            "isfinite": self._is_finite, "popcount": self._popcount, "ctpop": self._popcount, "clz": self._clz,
            "vectorlow": lambda c: self._half(c, 0), "vectorhigh": lambda c: self._half(c, 1),
            "vectorcombine": lambda c: self.x.lanes(c.args[0]) + self.x.lanes(c.args[1]),
            "large_uint_imm": self._large_constant, "assume": lambda c: [],
            "tvm_warp_activemask": lambda c: [self.m.constant(dtypes.of(c)[0], 0)],
            "tvm_warp_shuffle": self._warp_shuffle, "tvm_warp_shuffle_up": self._warp_shuffle,
            "tvm_warp_shuffle_down": self._warp_shuffle, "tvm_warp_shuffle_xor": self._warp_shuffle,
        }  # fmt: skip

    def call(self, call) -> list[int]:
        """The lanes of a call's result; nothing for a call without one."""
        name = call_name(call)
        arguments = list(call.args)
        if name in _INDIRECT:
            name, arguments = arguments[0].value, arguments[1:]
            for known in (name, name.removesuffix("f")):
                if self.x.math.knows(known):
                    return self._math(known, call, arguments)
            return self._named(name, call, arguments)
        if name in self._special:
            return self._special[name](call)
        if name in _OPERATORS:
            dtype, lanes = dtypes.of(call)
            pairs = zip(*(self.x.spread(a, lanes) for a in arguments), strict=True)
            return [self.a.binary(_OPERATORS[name], dtype, a, b) for a, b in pairs]
        if name == "bitwise_not":
            return [self.a.bit_not(dtypes.of(call)[0], v) for v in self.x.lanes(arguments[0])]
        if name in _PASS_THROUGH:
            return self.x.lanes(arguments[0])
        if self.x.math.knows(name):
            return self._math(name, call, arguments)
        raise CodegenError(f"the intrinsic {name} is not supported on Vulkan")

    def _math(self, name: str, call, arguments: list) -> list[int]:
        dtype, lanes = dtypes.of(call)
        columns = []
        for argument in arguments:
            of = dtypes.of(argument)[0]
            columns.append([self.a.cast(dtype, of, v) for v in self.x.spread(argument, lanes)])
        return [self.x.math.call(name, dtype, list(values)) for values in zip(*columns, strict=True)]

    def _named(self, name: str, call, arguments: list) -> list[int]:
        dtype = dtypes.of(call)[0]
        if name.startswith("matrix_"):
            self.subgroup = True
            return self.matrices.call(name, arguments)
        if name == "dot8_f16":
            return [self._dot8(self.x.scalar(arguments[0]), self.x.lanes(arguments[1]))]
        if name == "unpack8_f16":
            return self._unpack8(self.x.scalar(arguments[0]), self.x.scalar(arguments[1]))
        if name in _DOTS:
            return [self._dot(_DOTS[name], *(self.x.scalar(a) for a in arguments))]
        if not name.startswith("subgroup_"):
            raise CodegenError(f"the function {name} is not known on Vulkan")
        self._uses_subgroup(dtype)
        if name in _SUBGROUP_VALUES:
            return [self.a.cast(dtype, U32, self.m.builtin(_SUBGROUP_VALUES[name]))]
        scope = self.m.constant(U32, spirv.SUBGROUP_SCOPE)
        if name in _REDUCTIONS:
            self.m.capabilities.add("GroupNonUniformArithmetic")
            operation = _REDUCTIONS[name][2 if dtype.is_float else 0 if dtype.is_signed else 1]
            self.m.use(dtype)
            type_id = self.m.type(dtype)
            return [self.m.op(operation, type_id, scope, spirv.REDUCE, v) for v in self.x.lanes(arguments[0])]
        if name in _SHUFFLES:
            index = self.a.cast(U32, dtypes.of(arguments[1])[0], self.x.scalar(arguments[1]))
            return [self._shuffle(_SHUFFLES[name], dtype, v, index) for v in self.x.lanes(arguments[0])]
        if name == "subgroup_broadcast":
            self.m.capabilities.add("GroupNonUniformBallot")
            return [self.m.op("GroupNonUniformBroadcastFirst", self.m.type(dtype), scope, self.x.scalar(arguments[0]))]
        if name in _VOTES:
            self.m.capabilities.add("GroupNonUniformVote")
            vote = self.m.op(_VOTES[name], self.m.type(BOOL), scope, self.x.condition(arguments[0]))
            return [self.a.cast(dtype, BOOL, vote)]
        raise CodegenError(f"the function {name} is not known on Vulkan")

    # ---- subgroups

    def _uses_subgroup(self, dtype: DType) -> None:
        self.m.capabilities.add("GroupNonUniform")
        self.subgroup = True
        self.extended_types |= dtype.bits != 32 and not dtype.is_bool

    def _shuffle(self, operation: str, dtype: DType, value: int, index: int) -> int:
        self.m.capabilities.add("GroupNonUniformShuffle")
        self.m.use(dtype)
        return self.m.op(operation, self.m.type(dtype), self.m.constant(U32, spirv.SUBGROUP_SCOPE), value, index)

    def _warp_shuffle(self, call) -> list[int]:
        """(mask, value, lane or delta, width, warp_size): groups of `width` lanes; a source outside the group is the
        lane itself."""
        dtype = dtypes.of(call)[0]
        _, value, operand, width_expr, warp = call.args
        width = literal(width_expr)
        if width is None or width & (width - 1):
            raise CodegenError("a warp shuffle needs a constant power of two as its width on Vulkan")
        self._uses_subgroup(dtype)
        self.min_subgroup_size = max(self.min_subgroup_size, literal(warp) or width)
        lane = self.m.builtin("SubgroupLocalInvocationId")
        amount = self.a.cast(U32, dtypes.of(operand)[0], self.x.scalar(operand))
        base = self.a.binary("BitwiseAnd", U32, lane, self.m.constant(U32, ~(width - 1)))
        inside = self.a.binary("Sub", U32, lane, base)
        kind = call_name(call).rsplit("_", 1)[1]
        if kind == "up":
            valid = self.a.binary("GE", U32, inside, amount)
            source = self.a.binary("Sub", U32, lane, amount)
        elif kind == "down":
            valid = self.a.binary("LT", U32, self.a.binary("Add", U32, inside, amount), self.m.constant(U32, width))
            source = self.a.binary("Add", U32, lane, amount)
        elif kind == "xor":
            valid = self.a.binary("LT", U32, amount, self.m.constant(U32, width))
            source = self.a.binary("BitwiseXor", U32, lane, amount)
        else:
            valid = self.m.constant(BOOL, True)
            within = self.a.binary("BitwiseAnd", U32, amount, self.m.constant(U32, width - 1))
            source = self.a.binary("Add", U32, base, within)
        index = self.a.select(U32, valid, source, lane)
        return [self._shuffle("GroupNonUniformShuffle", dtype, v, index) for v in self.x.lanes(value)]

    # ---- the rest

    def _dot(self, operation: str, a: int, b: int, c: int) -> int:
        self.m.capabilities |= {"DotProduct", "DotProductInput4x8BitPacked"}
        product = self.m.pure(operation, self.m.type(I32), a, b, spirv.PACKED_4X8)
        return self.a.binary("Add", I32, product, c)

    def _codes8(self, word: int) -> list[int]:
        """The 4-bit codes of a word less 8 as pairs of float16, in the order 0 4, 1 5, 2 6, 3 7.

        Two codes at once: or-ing one into the mantissa of 1024 gives 1024 + code, and one that is four bits further up
        1024 + 16 * code."""
        m, pair = self.m, self.m.vector(F16, 2)
        m.use(F16)
        upper = self.a.binary("RShift", U32, word, m.constant(U32, 8))
        pairs = []
        for i, (source, mask) in enumerate(
            ((word, 0x000F000F), (word, 0x00F000F0), (upper, 0x000F000F), (upper, 0x00F000F0))
        ):
            bits = self.a.binary("BitwiseAnd", U32, source, m.constant(U32, mask))
            bits = self.a.binary("BitwiseOr", U32, bits, m.constant(U32, 0x64006400))
            value = m.pure("Bitcast", pair, bits)
            if i % 2 == 0:
                value = m.pure("FAdd", pair, value, m.constant_vector(F16, 2, -1032.0))
            else:
                scale, offset = m.constant_vector(F16, 2, 1 / 16), m.constant_vector(F16, 2, -72.0)
                value = m.pure("ExtInst", pair, m.glsl, spirv.EXT["Fma"], value, scale, offset)
            pairs.append(value)
        return pairs

    def _dot8(self, word: int, x: list[int]) -> int:
        m, pair, single, total = self.m, self.m.vector(F16, 2), self.m.type(F16), None
        for i, value in enumerate(self._codes8(word)):
            factor = m.pure("CompositeConstruct", pair, x[2 * i], x[2 * i + 1])
            if total is None:
                total = m.pure("FMul", pair, value, factor)
            else:
                total = m.pure("ExtInst", pair, m.glsl, spirv.EXT["Fma"], value, factor, total)
        low, high = (m.pure("CompositeExtract", single, total, i) for i in range(2))
        return self.a.binary("Add", F32, self.a.cast(F32, F16, low), self.a.cast(F32, F16, high))

    def _unpack8(self, word: int, scale: int) -> list[int]:
        pair = self.m.vector(F16, 2)
        factor = self.m.pure("CompositeConstruct", pair, scale, scale)
        values = [self.m.pure("FMul", pair, value, factor) for value in self._codes8(word)]
        return [self.m.scalar("Bitcast", U32, value) for value in values]

    def _dp4a(self, call) -> list[int]:
        """dp4a(int8x4 or uint8x4, same, 32-bit accumulator)."""
        words = []
        for vector in call.args[:2]:
            of, lanes = dtypes.of(vector)
            values = self.x.lanes(vector)
            words.append(values[0] if lanes == 1 and of.bits == 32 else self.a.reinterpret(U32, 1, of, values)[0])
        signed = dtypes.of(call.args[0])[0].is_signed
        return [self._dot("SDot" if signed else "UDot", *words, self.x.scalar(call.args[2]))]

    def _sync(self, call) -> list[int]:
        """A barrier of the workgroup, ordering workgroup memory and the device memory that the kernel both reads and
        writes. ('warp': the same for a subgroup.)"""
        scope_name = call.args[0].value
        if scope_name not in ("shared", "shared.dyn", "warp"):
            raise CodegenError(f"a barrier of scope '{scope_name}' is not available on Vulkan")
        scope = spirv.SUBGROUP_SCOPE if scope_name == "warp" else spirv.WORKGROUP_SCOPE
        order = spirv.ACQUIRE_RELEASE | spirv.WORKGROUP_MEMORY
        if any(usage.loaded and usage.stored and root in self.x.memory.addresses
               for root, usage in self.x.memory.analysis.usage.items()):  # fmt: skip
            order |= spirv.UNIFORM_MEMORY
        if self.x.memory.analysis.matrices:
            order |= spirv.MAKE_AVAILABLE | spirv.MAKE_VISIBLE
        scope_id = self.m.constant(U32, scope)
        self.m.effect("ControlBarrier", scope_id, scope_id, self.m.constant(U32, order))
        return []

    def _reinterpret(self, call) -> list[int]:
        to, lanes = dtypes.of(call)
        return self.a.reinterpret(to, lanes, dtypes.of(call.args[0])[0], self.x.lanes(call.args[0]))

    def _atomic_add(self, call) -> list[int]:
        pointer, value = call.args[0], self.x.scalar(call.args[1])
        if type(pointer).__name__ == "Call" and call_name(pointer) == "address_of":
            load = pointer.args[0]
            if type(load).__name__ == "TensorLoad":
                return [self.x.memory.atomic_add(load.source, load.indices[0], value)]
        raise CodegenError("atomic_add needs the address of a buffer element")

    def _is_nan(self, call) -> list[int]:
        return [self.m.scalar("IsNan", BOOL, self._as_float(call, v)) for v in self.x.lanes(call.args[0])]

    def _is_inf(self, call) -> list[int]:
        return [self.m.scalar("IsInf", BOOL, self._as_float(call, v)) for v in self.x.lanes(call.args[0])]

    def _is_finite(self, call) -> list[int]:
        special = zip(self._is_nan(call), self._is_inf(call), strict=True)
        return [self.a.logical_not(self.a.binary("Or", BOOL, nan, inf)) for nan, inf in special]

    def _as_float(self, call, value: int) -> int:
        of = dtypes.of(call.args[0])[0]
        return value if of.is_float and of.bits >= 32 else self.a.cast(F32, of, value)

    def _popcount(self, call) -> list[int]:
        return self._counted(call, self.a.bit_count, U32)

    def _clz(self, call) -> list[int]:
        return self._counted(call, self.a.leading_zeros, I32)

    def _counted(self, call, function, of: DType) -> list[int]:
        to, argument = dtypes.of(call)[0], dtypes.of(call.args[0])[0]
        return [self.a.cast(to, of, function(argument, v)) for v in self.x.lanes(call.args[0])]

    def _half(self, call, which: int) -> list[int]:
        values = self.x.lanes(call.args[0])
        middle = len(values) // 2
        return values[middle:] if which else values[:middle]

    def _large_constant(self, call) -> list[int]:
        low, high = (literal(a) for a in call.args)
        return [self.m.constant(dtypes.of(call)[0], (high << 32) | low)]

    # ---- jumps

    def enter_loop(self, merge: int, again: int) -> None:
        self._loops.append((merge, again))

    def leave_loop(self) -> None:
        self._loops.pop()

    def jump(self, which: int) -> list[int]:
        """Leave the innermost loop (0) or start its next round (1)."""
        if not self._loops:
            raise CodegenError("break and continue need a loop around them")
        self.m.end("Branch", self._loops[-1][which])
        return []

    def _return(self, call) -> list[int]:
        self.m.end("Return")
        return []
