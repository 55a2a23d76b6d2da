"""The decode step of many sequences on a device with memory of its own: recorded once for a number of rows, replayed.

A step reads tokens and places from buffers that keep their address and leaves logits and their argmax in others. There
is one for each of few numbers of rows; a batch in between fills up with copies of its last sequence, which compute and
store what that one does.
"""

from __future__ import annotations

import numpy as np

NONE = np.zeros(1, np.int32)


def padded(rows: int, most: int) -> int:
    """The number of rows of the step that `rows` sequences take, of at most `most`."""
    if rows > 8:
        return min(-(-rows // 8) * 8, most)
    return min(1 << (rows - 1).bit_length(), most)


def logit_rows(most: int) -> int:
    """Rows of logits that all steps for up to `most` sequences keep together."""
    return sum({padded(rows, most) for rows in range(1, most + 1)})


def unconstrained(rows: int, vocab: int) -> list[np.ndarray]:
    """Arguments of choose (masks, mask, bias_starts, bias_tokens, biases) that change no logit."""
    masks, mask = np.zeros((1, -(-vocab // 32)), np.int32), np.full(rows, -1, np.int32)
    return [masks, mask, np.zeros(rows + 1, np.int32), NONE, np.zeros(1, np.float32)]


class DecodeStep:
    """One token of each of `rows` sequences. `logits` [rows, vocab], `tokens` (their argmax) and `best` are on the
    device and hold until the next call."""

    def __init__(self, runtime, functions: dict, rows: int, vocab: int, blocks, cache, params):
        self.rows = rows
        self._inputs = [runtime.place(np.zeros(rows, np.int32)) for _ in range(3)]
        places = runtime.bundle([*self._inputs[1:], blocks])
        plain = [runtime.place(a) for a in unconstrained(rows, vocab)]
        decode, choose = functions["decode"], functions["choose"]
        self._held = places, plain, blocks
        self.logits = self.tokens = self.best = None

        def step(cache, params) -> None:
            self.logits = self.tokens = self.best = None  # back to the pool, for the recorded run to take
            chosen = choose(decode(self._inputs[0], places, cache, params), *plain, params)
            self.logits, self.tokens, self.best = chosen[0], chosen[1], chosen[2]

        self._run = runtime.step(step, cache, params)

    def __call__(self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray) -> None:
        """int32 arrays with an entry for each sequence, `rows` at most."""
        spare = self.rows - len(tokens)
        for buffer, values in zip(self._inputs, (tokens, positions, sequences), strict=True):
            buffer.copyfrom(np.concatenate([values, np.repeat(values[-1:], spare)]))
        self._run()
