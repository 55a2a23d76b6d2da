"""Scales, minima and high planes of a block's rows in shared memory, fetched in 16-byte loads, for the one-token form.

Neighbours in memory belong to neighbouring groups of a row, so a lane that takes one group of codes at a time would
load them two or four bytes at a time.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .common import shared, strided

WIDE = "mlcrt.wide_gemv"  # attribute of a kernel: bits of its codes; whether every load of the weight has 16 bytes


def described(k, tiles, staged: StagedGroups | None):
    """For targets that stage scales: what they may check the machine code for."""
    if not tiles.gemv_staged:
        return contextlib.nullcontext()
    w, scheme = k.weights, k.op.scheme
    size = scheme.bits // 8 if scheme.is_float else 4
    wide = w.per_lane * size == 16 and (scheme.is_float or staged is not None and staged.wide)
    return T.attr(tirx.const(scheme.bits), WIDE, int(wide))


def tiles_with_room(k, tiles, activations: int):
    """Fewer rows at once, then smaller blocks, where that lets a block's scales fit beside `activations` bytes. Half
    the loads in flight will do for such long rows, and addresses for more of them do not fit the registers; nor do, of
    3-bit codes, the 64 activations of a load where they are not in shared memory."""
    chosen, room = tiles, tiles.gemv_staged - activations
    per_row, least = _row_bytes(k), 4 if activations or k.op.scheme.bits != 3 else 2
    while chosen.gemv_subgroups * chosen.gemv_rows * per_row > room:
        if chosen.gemv_rows > k.parts:
            rows = chosen.gemv_rows // 2
            chosen = replace(chosen, gemv_rows=rows, gemv_depth=max(least, tiles.gemv_depth * rows // tiles.gemv_rows))
        elif chosen.gemv_subgroups > 2:
            chosen = replace(chosen, gemv_subgroups=chosen.gemv_subgroups // 2)
        else:
            return tiles
    return chosen


def staged_groups(k, tiles, block, units: int, activations: int) -> StagedGroups | None:
    """For blocks that compute `units` units a subgroup, once; None where there is nothing to stage or no room."""
    staged = StagedGroups(k, block, units * tiles.gemv_subgroups)
    return staged if 0 < staged.bytes <= tiles.gemv_staged - activations else None


def _size(part: str) -> int:
    return 4 if part == "high" else 2


def _row_bytes(k) -> int:
    return k.weights.groups * sum(map(_size, k.weights.group_parts))


class StagedGroups:
    """What is stored per group of `units` units from block * units on, in `k.runs` runs of neighbouring rows. `bytes`:
    of shared memory; wide: whether all loads have 16 bytes."""

    def __init__(self, k, block, units: int):
        self.k, self.w, self.first, self.units = k, k.weights, block * units, units
        self.groups = self.w.groups * k.parts // k.runs  # of a stored row
        self.count = units * self.groups
        self.bytes = k.parts * units * _row_bytes(k)
        self.wide = all(self._width(part) * _size(part) == 16 for part in self.w.group_parts)
        self.local = {}  # rows among the staged ones by hash of the row

    def _width(self, part: str) -> int:
        """Values in a load."""
        widest, apart = min(16 // _size(part), self.k.machine.vector), self.k.run_pitch * self.groups
        return next(v for v in (8, 4, 2, 1) if v <= widest and self.count % v == apart % v == 0)

    def locate(self, rows: list) -> None:
        """Note where `rows` are: units one after the other, of each its parts."""
        for i, row in enumerate(rows):
            part = i % self.k.parts
            self.local[hash(row)] = row - self.k.weight_row(self.first, part) + part * self.units

    def fetch(self, thread, threads: int) -> None:
        """Issue the loads; a barrier has to come before the first use."""
        w, op = self.w, self.k.op
        held = {}
        for part in w.group_parts:
            width = self._width(part)
            held[part] = shared((self.k.runs * self.count,), "uint32" if part == "high" else "float16")
            for r, first in enumerate(self.k.run_starts(self.first)):
                start = T.bind(first * self.groups)
                left = (op.units - self.first) * self.groups
                with strided(self.count // width, thread, threads) as i, T.If(i * width < left), T.Then():
                    at, to = start + i * width, r * self.count + i * width
                    index, where = (at, to) if width == 1 else (tirx.Ramp(at, 1, width), tirx.Ramp(to, 1, width))
                    T.buffer_store(held[part], T.BufferLoad(w.buffers[part], [0, index]), [where])
        w.grouped = lambda part, row, group: T.BufferLoad(held[part], [self._place(self.local[hash(row)], group)])

    def _place(self, local, group):
        if self.k.runs == self.k.parts:
            return local * self.groups + group
        run, group = tirx.floordiv(group, self.groups), tirx.floormod(group, self.groups)
        return run * self.count + local * self.groups + group  # one row after another make a long one
