"""Which products run on tile registers: quantised ones of any number of tokens."""

from __future__ import annotations

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simd import Library, Tiles

from .instructions import ROWS
from .linear import AmxTiles, linear
from .weights import serves


class AmxLibrary(Library):
    def __init__(self, tiles: Tiles, amx: AmxTiles, kv_dtype: str):
        super().__init__(tiles, kv_dtype)
        self.amx = amx

    def build_linear(self, op: Linear, name: str):
        if op.tokens is None and op.units >= ROWS and serves(op.scheme):
            return linear(op, self.tiles.linear, self.amx, name)
        return super().build_linear(op, name)
