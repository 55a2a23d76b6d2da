"""Vocabulary for TensorIR written for blocks of threads with subgroups (warps, wavefronts)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

_STATIC_SHARED = 36 << 10


@dataclass(frozen=True)
class Machine:
    """What kernels need to know of a GPU.

    subgroup: lanes that run together; exchange(value, mask): the value of lane `lane ^ mask` of the subgroup.
    dot8(word, x): float32 sum of (code - 8) * x over the eight 4-bit codes of a word, where the float16x8 vector x
    holds elements 0, 4, 1, 5, 2, 6, 3, 7; None where the hardware has no packed half arithmetic worth it.
    overlap(): for hardware that may start a kernel before the one in front of it has ended: wait until that one has,
    and let the next kernel start. Before it a kernel may only read what older kernels wrote.
    stream(buffer, index, dtype):
    a load that stays where it is written, before or after `overlap`; dtype is uint32x4, float16, float16x8 or float32.
    vector: most elements of one load or store; shared_bytes: shared memory of a block; any_angle: whether sine and
    cosine are right for any angle, so that nothing need be taken off first (which fast math would undo).
    dot32(words, high, x): dot8 for (code - 4) * x over a group of 3-bit codes, of two words and a high plane; x is
    four float16x8 vectors of elements 0, 16, 1, 17, 2, 18 … 15, 31. part(): a point that the compiler may move no
    instruction across, where left to itself it would keep more values than there are registers.
    """

    subgroup: int
    exchange: Callable
    dot8: Callable | None = None
    overlap: Callable[[], None] | None = None
    stream: Callable | None = None
    vector: int = 8
    shared_bytes: int = 96 << 10
    any_angle: bool = False
    dot32: Callable | None = None
    part: Callable[[], None] | None = None

    def divide(self) -> None:
        """A point that instructions do not cross, where the machine has one."""
        if self.part is not None:
            self.part()

    def follow(self) -> None:
        """From here on the results of the kernel in front may be read, and its inputs overwritten."""
        if self.overlap is not None:
            self.overlap()


def prim_func(name: str, body: Callable[[], None]):
    """A private PrimFunc whose arguments and statements `body` declares."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        body()
    return builder.get()


@contextlib.contextmanager
def launch(**extents):
    """Bind threads: launch(bx=grid, by=…, tx=block) yields the indices in the order given."""
    names = {"bx": "blockIdx.x", "by": "blockIdx.y", "bz": "blockIdx.z", "tx": "threadIdx.x", "ty": "threadIdx.y"}
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(T.launch_thread(names[n], e)) for n, e in extents.items())


@contextlib.contextmanager
def resident(blocks: int | None):
    """Hold the compiler to registers that let this many blocks share a multiprocessor (CUDA only)."""
    if blocks is None:
        yield
    else:
        with T.attr(tirx.const(0), "tirx.launch_bounds_min_blocks_per_sm", blocks):
            yield


@contextlib.contextmanager
def where(condition, always: bool = False):
    """What is emitted in the block runs only if `condition`, which may be known to hold: True, or `always`."""
    if always or condition is True:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def first_of(cases: Iterable) -> None:
    """Of (condition, emit) the first whose condition holds is what runs; that of the last is None."""
    (condition, emit), *others = cases
    if condition is None:
        emit()
        return
    with T.If(condition):
        with T.Then():
            emit()
        with T.Else():
            first_of(others)


def barrier() -> None:
    """All threads of the block have arrived and their shared-memory writes are seen."""
    T.evaluate(T.tvm_storage_sync("shared"))


def shared(shape, dtype: str = "float32"):
    """Shared memory of a block; dynamic where it is more than every GPU grants statically (48 KB in all)."""
    size = math.prod(shape) * (2 if dtype == "float16" else 4)
    return T.alloc_buffer(shape, dtype, scope="shared.dyn" if size > _STATIC_SHARED else "shared")


def local(shape, dtype: str = "float32"):
    return T.alloc_buffer(shape, dtype, scope="local")


class Register:
    """One mutable scalar (or a few) of a thread."""

    def __init__(self, value=None, dtype: str = "float32", count: int = 1):
        self.buffer = local((count,), dtype)
        if value is not None:
            for i in range(count):
                self.set(value, i)

    def get(self, i=0):
        return T.BufferLoad(self.buffer, [i])

    def set(self, value, i=0) -> None:
        T.buffer_store(self.buffer, value, [i])

    def add(self, value, i=0) -> None:
        self.set(self.get(i) + value, i)


def subgroup_reduce(machine: Machine, value, combine, width: int | None = None):
    """combine over groups of `width` neighbouring lanes (default the subgroup); every lane gets the result."""
    acc = Register(value)
    step = (width or machine.subgroup) // 2
    while step:
        acc.set(combine(acc.get(), machine.exchange(acc.get(), step)))
        step //= 2
    return acc.get()


def block_reduce(machine: Machine, value, combine, threads: int, thread):
    """combine over all threads of a block; every thread gets the result. Contains two barriers."""
    partial = subgroup_reduce(machine, value, combine)
    count = threads // machine.subgroup
    if count == 1:
        return partial
    scratch = shared((count,))
    with T.If(tirx.floormod(thread, machine.subgroup) == 0), T.Then():
        T.buffer_store(scratch, partial, [tirx.floordiv(thread, machine.subgroup)])
    barrier()
    total = Register(T.BufferLoad(scratch, [0]))
    for i in range(1, count):
        total.set(combine(total.get(), T.BufferLoad(scratch, [i])))
    barrier()
    return total.get()


def strided(total, thread, threads: int):
    """for i in range(thread, total, threads), guarded; use as `with strided(...) as i:`"""
    return _Strided(total, thread, threads)


class _Strided:
    def __init__(self, total, thread, threads: int):
        self.total, self.thread, self.threads = total, thread, threads
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        count = tirx.floordiv(self.total + self.threads - 1, self.threads)
        step = self.stack.enter_context(T.serial(count))
        index = T.bind(step * self.threads + self.thread)
        exact = isinstance(self.total, int) and self.total % self.threads == 0
        if not exact:
            self.stack.enter_context(T.If(index < self.total))
            self.stack.enter_context(T.Then())
        return index

    def __exit__(self, *exc):
        return self.stack.__exit__(*exc)
