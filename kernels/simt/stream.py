"""Rows of a weight on their way to the registers of a subgroup."""

from __future__ import annotations

import contextlib

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .common import Machine, local, where
from .weights import Rows


class WeightStream:
    """Rows of a weight on their way to registers, `depth` loads per row ahead of their use.

    `begin` issues the first loads, before the activations are even staged, since weights wait for nobody. With several
    items the loads run on from the end of one into the next, for which depth has to divide the steps of a row.
    """

    def __init__(self, w: Rows, rows: int, lane, machine: Machine, loads: int, items: int, staged: bool):
        self.w, self.lane, self.span, self.machine = w, lane, machine.subgroup * w.per_lane, machine
        self.steps = -(-w.words // self.span)
        self.depth = min(max(1, loads // rows), self.steps)
        if items > 1:
            self.depth = next(d for d in range(self.depth, 0, -1) if self.steps % d == 0)
        dtype = w.scheme.float_storage if w.scheme.is_float else "uint32"
        self.slots = [[local((w.per_lane,), dtype) for _ in range(rows)] for _ in range(self.depth)]
        self.scales = None
        if not w.scheme.is_float and not staged:
            self.scales = [[local((w.lane_groups,), "float16") for _ in range(rows)] for _ in range(self.depth)]

    def begin(self, rows: list) -> None:
        for d in range(self.depth):
            self.fetch(d, rows, T.int32(d), True)

    def word(self, step):
        return step * self.span + self.lane * self.w.per_lane

    @contextlib.contextmanager
    def inside(self, word):
        """Guard for lanes that would read beyond the row."""
        with where(word < self.w.words, self.w.words % self.span == 0 and self.steps % self.depth == 0):
            yield

    def fetch(self, slot: int, rows: list, step, wanted) -> None:
        w, n = self.w, self.w.per_lane
        buffer = w.buffers["" if w.scheme.is_float else "codes"]
        with contextlib.ExitStack() as guard:
            if wanted is not True:
                guard.enter_context(T.If(wanted))
                guard.enter_context(T.Then())
            word = T.bind(self.word(step))
            guard.enter_context(self.inside(word))
            skip, at = w.place(word)
            for r, row in enumerate(rows):
                row = row + skip
                index, whole = (at, 0) if n == 1 else (tirx.Ramp(at, 1, n), tirx.Ramp(0, 1, n))
                stored = T.BufferLoad(buffer, [row, index])
                if self.machine.stream is not None and n == 4 and not w.scheme.is_float:
                    stored = self.machine.stream(buffer, [row, at], "uint32x4")
                T.buffer_store(self.slots[slot][r], stored, [whole])
                for g in range(w.lane_groups if self.scales is not None else 0):
                    group = tirx.floordiv(at * w.per_word, w.scheme.group) + g
                    scale = T.BufferLoad(w.buffers["scales"], [row, group])
                    if self.machine.stream is not None:
                        scale = self.machine.stream(w.buffers["scales"], [row, group], "float16")
                    T.buffer_store(self.scales[slot][r], scale, [g])

    def consume(self, rows: list, following, use) -> None:
        """use(word, stored words per row, scales of their groups per row) for every step of `rows`, fetching ahead;
        `following`: whether there is a next item, and its rows, or None."""
        with T.serial(-(-self.steps // self.depth)) as chunk:
            for d in range(self.depth):
                step = T.bind(chunk * self.depth + d)
                word = T.bind(self.word(step))
                with self.inside(word):
                    stored, scales = [], []
                    for r in range(len(rows)):
                        held = self.slots[d][r]
                        stored.append([T.bind(T.BufferLoad(held, [i])) for i in range(self.w.per_lane)])
                        if self.scales is not None:
                            held = [T.BufferLoad(self.scales[d][r], [g]) for g in range(self.w.lane_groups)]
                            scales.append([T.bind(tirx.Cast("float32", scale)) for scale in held])
                        elif not self.w.scheme.is_float:
                            scales.append([self.w.affine(rows[r], at)[0] for at in self.w.group_starts(word)])
                    self.fetch_ahead(d, T.bind(step + self.depth), rows, following)
                    use(word, stored, scales)
                self.machine.divide()

    def fetch_ahead(self, slot: int, step, rows: list, following) -> None:
        here = step < self.steps
        if following is None:
            self.fetch(slot, rows, step, here)
            return
        more, others = following
        chosen = [T.bind(tirx.Select(here, row, other)) for row, other in zip(rows, others, strict=True)]
        self.fetch(slot, chosen, T.bind(tirx.Select(here, step, step - self.steps)), tirx.Or(here, more))
