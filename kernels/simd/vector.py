"""Small vocabulary for TensorIR written with explicit vectors.

Values are tirx expressions of type float32xL, uint32xL …; L is a power of two up to the target's lane count.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

LINE = 64  # bytes of a cache line, or less where lines are longer
STACK = 255  # elements of 4 bytes: TVM's kMaxStackAlloca is 1024 bytes, exclusive


def vtype(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes_index(start, lanes: int, stride: int = 1):
    return start if lanes == 1 else tirx.Ramp(start, stride, lanes)


def load(buffer, leading: list, start, lanes: int, stride: int = 1):
    """buffer[*leading, start : start + lanes*stride : stride] as one vector."""
    return T.BufferLoad(buffer, [*leading, lanes_index(start, lanes, stride)])


def store(buffer, value, leading: list, start, lanes: int) -> None:
    T.buffer_store(buffer, value, [*leading, lanes_index(start, lanes)])


def stack(count: int, dtype: str = "float32"):
    """A buffer of `count` elements of 4 bytes that LLVM can keep in registers.

    The scope is what matters: on a CPU TVM puts small buffers of scope "global" on the stack, and asks its runtime for
    those of scope "local" one call each, which costs more than a dot product.
    """
    assert count <= STACK, "larger buffers come from the runtime"
    return T.alloc_buffer((count,), dtype, scope="global")


def opaque(value):
    """An int32 that TVM's simplifier does not look into: what it can prove of a long index takes it seconds."""
    buffer = stack(1, "int32")
    T.buffer_store(buffer, value, [0])
    return T.BufferLoad(buffer, [0])


def hold(value):
    """Compute once, use often: the value of `value` in a local buffer.

    Floats go through a buffer that LLVM promotes to a register, not through a let: TVM's simplifier inlines bounds of
    let-bound variables into each other, which takes minutes for a chain as long as a softmax.
    """
    dtype = str(value.ty.dtype)
    if not dtype.startswith("float32"):
        return T.bind(value)
    lanes = int(dtype.removeprefix("float32x")) if "x" in dtype else 1
    buffer = stack(lanes)
    store(buffer, value, [], 0, lanes)
    return load(buffer, [], 0, lanes)


def prefetch(buffer, index: list) -> None:
    """Ask for the cache line of an element that will soon be read. It need not exist: nothing is read of it now."""
    address = tirx.address_of(T.BufferLoad(buffer, index))
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))


def splat(value, lanes: int):
    return value if lanes == 1 else T.Broadcast(value, lanes)


def const(value: float, lanes: int):
    return splat(T.float32(value), lanes)


def to_float(value, lanes: int, native_f16: bool = True):
    """float16 or integer vector to float32; unsigned codes go through int32, which every x86 converts in one go."""
    if value.ty.dtype.startswith("float16") and not native_f16:
        return _half_to_float(value, lanes)
    if value.ty.dtype.startswith("uint"):
        value = tirx.Cast(vtype("int32", lanes), value)
    return value if value.ty.dtype.startswith("float32") else tirx.Cast(vtype("float32", lanes), value)


def _half_to_float(value, lanes: int):
    """Finite float16 by integer arithmetic: the fields move into place and the exponent is rebiased by a product."""

    def word(bits: int):
        return splat(tirx.IntImm("int32", bits), lanes)

    bits = T.bind(tirx.Cast(vtype("int32", lanes), tirx.reinterpret(vtype("uint16", lanes), value)))
    magnitude = tirx.shift_left(tirx.bitwise_and(bits, word(0x7FFF)), word(13))
    magnitude = tirx.reinterpret(vtype("float32", lanes), magnitude) * const(2.0**112, lanes)
    sign = tirx.shift_left(tirx.bitwise_and(bits, word(0x8000)), word(16))
    value = tirx.bitwise_or(tirx.reinterpret(vtype("int32", lanes), magnitude), sign)
    return tirx.reinterpret(vtype("float32", lanes), value)


def repeat(value, lanes: int, times: int):
    """Each of `lanes` elements `times` times in a row: [a, b] → [a, a, b, b]."""
    if times == 1:
        return value
    if lanes == 1:
        return splat(value, times)
    return tirx.Shuffle([value] * times, [i // times for i in range(lanes * times)])


def every(chunks: list, lanes: int) -> list:
    """Of n vectors (a power of two) that hold consecutive elements: vector j has elements j, j + n, j + 2n …"""
    if len(chunks) == 1:
        return chunks
    pairs = list(zip(chunks[::2], chunks[1::2], strict=True))
    even, odd = (
        every([hold(tirx.Shuffle([a, b], list(range(first, 2 * lanes, 2)))) for a, b in pairs], lanes)
        for first in (0, 1)
    )
    return [value for pair in zip(even, odd, strict=True) for value in pair]


def halves(value, lanes: int):
    half = lanes // 2
    if half == 1:
        return tirx.Shuffle([value], [0]), tirx.Shuffle([value], [1])
    kind = vtype(str(value.ty.dtype).partition("x")[0], half)
    return tirx.call_intrin(kind, "tirx.vectorlow", value), tirx.call_intrin(kind, "tirx.vectorhigh", value)


def horizontal(value, lanes: int, combine):
    while lanes > 1:
        value = T.bind(combine(*halves(value, lanes)))
        lanes //= 2
    return value


def horizontal_sum(value, lanes: int):
    return horizontal(value, lanes, lambda a, b: a + b)


def horizontal_max(value, lanes: int):
    return horizontal(value, lanes, tirx.max)


def segments(length: int, lanes: int) -> list[tuple[int, int, int]]:
    """Cover range(length) by vectors: (start, lanes, count) with ever smaller powers of two."""
    result, start = [], 0
    while start < length:
        while lanes > length - start:
            lanes //= 2
        count = (length - start) // lanes
        result.append((start, lanes, count))
        start += lanes * count
    return result


class Sums:
    """A float32 array of constant length that stays in registers where they suffice; constant indices only."""

    _PART = 128

    def __init__(self, length: int):
        self._parts = [stack(min(self._PART, length - start)) for start in range(0, length, self._PART)]

    def load(self, d: int, lanes: int):
        return load(self._parts[d // self._PART], [], d % self._PART, lanes)

    def store(self, value, d: int, lanes: int) -> None:
        store(self._parts[d // self._PART], value, [], d % self._PART, lanes)


class Accumulator:
    """A float32 vector that stays in registers: a small local buffer that LLVM promotes."""

    def __init__(self, lanes: int, value: float = 0.0, dtype: str = "float32"):
        self.lanes = lanes
        self.buffer = stack(lanes, dtype)
        if value is not None:
            self.set(const(value, lanes))

    def get(self):
        return load(self.buffer, [], 0, self.lanes)

    def set(self, value) -> None:
        store(self.buffer, value, [], 0, self.lanes)

    def add(self, value) -> None:
        self.set(self.get() + value)

    def element(self, i):
        return T.BufferLoad(self.buffer, [i])
