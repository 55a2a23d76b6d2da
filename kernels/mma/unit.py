"""What a kernel may ask of NVIDIA's tensor cores and of the copies that feed them.

Fragments are those of m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): with r = lane / 4 and c = lane % 4 a
lane holds, as pairs of float16 in uint32, of A the elements (r, 2c..), (r+8, 2c..), (r, 2c+8..), (r+8, 2c+8..); of B
the elements (2c.., r) and (2c+8.., r); of the float32 result (r, 2c), (r, 2c+1), (r+8, 2c), (r+8, 2c+1).

A contraction may visit its elements in any order as long as A and B agree. Kernels use that to give each lane
neighbouring elements of a row, which it can load at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class MatrixUnit(ABC):
    """Statements and expressions that a target emits."""

    @abstractmethod
    def mma(self, accumulator, at, a: list, b: list) -> None:
        """accumulator[at .. at+3] (float32, registers) += A @ B; a: four and b: two uint32 expressions."""

    @abstractmethod
    def pack(self, low, high):
        """Two float32 as a pair of float16 in a uint32."""

    @abstractmethod
    def transpose(self, pairs):
        """An 8x8 float16 matrix of which each lane holds a pair (row r, columns 2c, 2c+1), transposed (movmatrix)."""

    @abstractmethod
    def scaled_codes(self, out, word, scale) -> None:
        """out[0..3] (uint32, registers): (code - 8) * scale of a word's 4-bit codes, pairs (0,4) (1,5) (2,6) (3,7)."""

    @abstractmethod
    def copy(self, to, to_index: list, source, source_index: list, size: int) -> None:
        """Start copying `size` bytes (4 or 16, aligned) from device to shared memory."""

    @abstractmethod
    def commit(self) -> None:
        """Close the group of copies started since the last commit."""

    @abstractmethod
    def wait(self, pending: int) -> None:
        """Wait until at most `pending` groups of this thread are unfinished."""

    @abstractmethod
    def arrive(self, which, total):
        """int32: 1 in the last of `total` blocks that call this for counter `which` (below 1024), which then sees what
        the others wrote before; 0 in the others. All threads of a block call it; it is a barrier."""


class WarpgroupUnit(MatrixUnit):
    """Tensor cores that four warps drive together, while these go on: wgmma.mma_async.m64nNk16 (PTX ISA, "Asynchronous
    warpgroup level matrix instructions").

    Of A the warp w of the warpgroup holds the rows 16w .. 16w+15, as fragments of m16n8k16; of the float32 result it
    holds the same rows, every eight columns as m16n8k16 has them.
    """

    @abstractmethod
    def publish(self) -> None:
        """What this thread wrote to shared memory will be seen by the tensor cores, behind the next barrier."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first instruction after registers of A or of the result were written."""

    @abstractmethod
    def warpgroup_mma(self, accumulator, n: int, a: list, right, right_index: list) -> None:
        """Start accumulator[0 .. n/2-1] (float32, registers) += A @ B; a: four uint32 expressions. `right` (float16,
        shared, 1024-byte aligned): n rows of 64 elements, 16-byte units exchanged by the row modulo eight; B are its
        16 columns from right_index on, transposed."""

    @abstractmethod
    def end(self) -> None:
        """Close the group of instructions started since the last end."""

    @abstractmethod
    def finished(self, pending: int) -> None:
        """Wait until at most `pending` groups of this warpgroup are unfinished."""

    @abstractmethod
    def bell(self, bells, index: list) -> None:
        """Make bells[index] (uint64, shared memory) ready to be rung by bulk copies; one thread does it for all."""

    @abstractmethod
    def bulk_copy(self, to, to_index: list, source, source_index: list, size, bells, bell: list) -> None:
        """One thread starts copying `size` bytes (an int32, a multiple of 16) from device to shared memory, for the
        tensor cores; bells[bell] rings when they are there."""

    @abstractmethod
    def await_bell(self, bells, index: list, odd) -> None:
        """Wait until bells[index] has rung once more than `odd` (int32: 0, then 1, then 0 ...) times, modulo two."""
