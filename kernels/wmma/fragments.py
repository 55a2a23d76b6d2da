"""How the lanes of a wave hold the 16 x 16 tiles of a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fragments:
    """lanes: of a wave. columns: of both operands that one `product` takes; held: how many neighbouring ones a lane
    holds of row lane % 16, from column(lane) on (a machine may ignore some). results: elements of a result tile that a
    lane holds, of column lane % 16; row(lane, i): the row of the i-th. product(a, b, c): a @ b^T + c of one wave, where
    a and b are float16 vectors of `held` and c is a float32 vector of `results`.
    """

    lanes: int
    columns: int
    held: int
    results: int
    column: Callable
    row: Callable
    product: Callable
