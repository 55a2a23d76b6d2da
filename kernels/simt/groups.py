"""Activations of one token for 3-bit codes with packed half arithmetic."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .activations import PACKED_SCALE, Staged
from .common import shared


class GroupedActivations(Staged):
    """3-bit codes with packed half arithmetic: a group's 32 activations in the order that `dot32` wants, stored as
    those of PackedActivations are. A lane takes two neighbouring groups: even and odd ones lie apart."""

    @staticmethod
    def bytes(k) -> int:
        return 2 * k.weights.padded

    def allocate(self) -> None:
        self.x = shared((4, 2, self.w.groups // 2, 8), "float16")  # [eight of a group, parity, pair of groups, …]

    def stage(self, word, values: list) -> None:
        group, half = tirx.floordiv(word, 2), T.bind(tirx.floormod(word, 2))
        slot = [tirx.floormod(group, 2), T.bind(tirx.floordiv(group, 2))]
        for j, value in enumerate(values):
            stored = tirx.Cast("float16", value * T.float32(1 / PACKED_SCALE))
            T.buffer_store(self.x, stored, [j // 4, *slot, j % 4 * 2 + half])

    def partial_dots(self, rows: list, stored: list, scales: list, word) -> list:
        w, dots = self.w, []
        pair = T.bind(tirx.floordiv(word, 4))
        for g in range(2):
            x = [T.bind(T.BufferLoad(self.x, [i, g, pair, tirx.Ramp(0, 1, 8)])) for i in range(4)]
            dots.append([])
            for r, row in enumerate(rows):
                dot = self.k.machine.dot32(stored[r][2 * g : 2 * g + 2], w.high(row, 2 * pair + g), x)
                dots[g].append(T.bind(scales[r][g] * dot))
                self.k.machine.divide()
        return [T.float32(PACKED_SCALE) * (one + two) for one, two in zip(*dots, strict=True)]
