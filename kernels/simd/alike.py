"""Several tokens times a weight, each token computed in exactly the order of the one-token form.

A few weight rows are unpacked once, for all tokens, and every token's sums run over the same lanes in the same order as
in `linear.row_dots`: a token's result does not depend, to the bit, on how many others share the call.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .vector import Accumulator, hold, load, opaque, segments, splat, store
from .weights import Rows


class Packing:
    """Activations of n tokens in tiles of the given sizes (descending), a tile's in the order they are read.

    In a tile of `size` tokens element j of `lanes` words from `word` on lies, token by token, at
    (word * per_word + j * lanes) * size + token * lanes. A remainder that nearly fills a tile takes it, and so does
    whatever is left for the last size; so there are `tokens` >= n places.
    """

    def __init__(self, weights: Rows, n, sizes: tuple):
        self.w, self.sizes = weights, sizes
        spare = [*(size // 4 for size in sizes[:-1]), sizes[-1] - 1]  # places of a tile that may stay empty
        first, rest = T.int32(0), n
        self.starts, self.counts = [], []
        for size, empty in zip(sizes, spare, strict=True):
            count = T.bind(tirx.floordiv(rest + empty, size))
            self.starts.append(first)
            self.counts.append(count)
            first = T.bind(first + count * size)
            rest = T.bind(tirx.max(rest - count * size, 0))
        self.tokens = first
        self.capacity = n + max(spare)
        self.x = T.alloc_buffer((self.capacity * weights.padded,), "float32", scope="global")
        self.sums = None
        if not weights.scheme.is_float:
            self.sums = T.alloc_buffer((self.capacity * weights.words,), "float32", scope="global")

    def places(self, slot):
        """For the token at `slot`: where (word, j, lanes) of its activations lies, and where (word, lanes) of its
        sums of words."""

        def tile(start, size: int):
            return T.int32(size), start + tirx.floordiv(slot - start, size) * size

        size, token0 = tile(self.starts[-1], self.sizes[-1])
        for start, end, choice in reversed(list(zip(self.starts, self.starts[1:], self.sizes, strict=False))):
            choice, at = tile(start, choice)
            size, token0 = tirx.Select(slot < end, choice, size), tirx.Select(slot < end, at, token0)
        size, token0 = opaque(size), opaque(token0)
        t, w = opaque(slot - token0), self.w

        def x(word, j: int, lanes: int):
            return token0 * w.padded + (word * w.per_word + j * lanes) * size + t * lanes

        def sums(word, lanes: int):
            return token0 * w.words + word * size + t * lanes

        return x, sums

    def each_tile(self, body) -> None:
        """Emit body(first token, size) for every size, in loops that run over the tiles of that size."""
        for start, count, size in zip(self.starts, self.counts, self.sizes, strict=True):
            with T.serial(count) as i:
                body(opaque(start + i * size), size)


class Panel:
    """A few weight rows unpacked to float32, in the order in which tiles of tokens read them: small, to stay in the
    nearest cache.

    Their words lie in vectors of `lanes`: per vector of words the rows' element 0, their element 1 …, then their
    scales and, if there are any, minima. What is left of a row in narrower vectors is there once for every token that
    fits beside the first.
    """

    def __init__(self, w: Rows, lanes: int, rows: int):
        self.w, self.lanes, self.rows = w, lanes, rows
        self.depth = w.per_word + (0 if w.scheme.is_float else 2 if w.scheme.asymmetric else 1)
        self.stride = self.depth * rows * lanes
        vectors = sum(count for *_, count in segments(w.words, lanes))
        self.buffer = T.alloc_buffer((vectors * self.stride,), "float32", scope="global")

    def unpack(self, rows: list) -> None:
        w, at0 = self.w, 0
        for start, width, count in segments(w.words, self.lanes):
            with T.serial(count) as i:
                word = T.bind(start + i * width)
                at = opaque(at0 + i * self.stride)
                for r, row in enumerate(rows):
                    values = w.codes(row, word, width)
                    values += (w.affine(row, word, width) or ())[: self.depth - w.per_word]
                    for j, value in enumerate(values):
                        store(
                            self.buffer, _beside(value, width, self.lanes), [],
                            at + (j * self.rows + r) * self.lanes, self.lanes,
                        )  # fmt: skip
            at0 += count * self.stride

    def dots(self, packing: Packing, token0, size: int, use) -> None:
        """use(token, row of the panel, float32) for the dot products of every row with each of a tile's tokens.

        Where vectors of words are narrower than the lanes, tokens lie side by side in one.
        """
        w = self.w
        x, sums, at = opaque(token0 * w.padded), opaque(token0 * w.words), 0
        folded, wide = None, self.lanes
        for _, width, count in segments(w.words, self.lanes):
            beside = min(size, self.lanes // width)
            totals = [[Accumulator(width * beside) for _ in range(self.rows)] for _ in range(size // beside)]
            with T.serial(count) as i:
                self._add_words(
                    packing, totals, size * width, opaque(at + i * self.stride),
                    opaque(x + i * (width * w.per_word * size)), opaque(sums + i * (width * size)),
                )  # fmt: skip
            at += count * self.stride
            x, sums = opaque(x + count * width * w.per_word * size), opaque(sums + count * width * size)
            values = [[total[r].get() for total in totals] for r in range(self.rows)]
            if folded is not None:
                folded = [self._fold(v, wide, width, size) for v in folded]
                values = [[a + b for a, b in zip(v, f, strict=True)] for v, f in zip(values, folded, strict=True)]
            folded, wide = [[hold(v) for v in row] for row in values], width
        for r, row in enumerate(folded):
            sums_of = self._fold(row, wide, 1, size)
            lanes = size // len(sums_of)
            for t in range(size):
                value = sums_of[t // lanes]
                use(token0 + t, r, value if lanes == 1 else tirx.Shuffle([value], [t % lanes]))

    def _fold(self, vectors: list, width: int, narrow: int, size: int) -> list:
        """Sums of the halves of every token's `width` values, and so on until there are `narrow`."""
        while width > narrow:
            beside = size // len(vectors)
            join = 1 if beside * width < self.lanes or len(vectors) == 1 else 2
            halves_of = [[t * width + i for t in range(join * beside) for i in range(width // 2)], []]
            halves_of[1] = [i + width // 2 for i in halves_of[0]]
            groups = [vectors[i : i + join] for i in range(0, len(vectors), join)]
            vectors = []
            for group in groups:
                low, high = (tirx.Shuffle(group, half) for half in halves_of)
                vectors.append(hold(low + high))
            width //= 2
        return vectors

    def _add_words(self, packing: Packing, totals: list, step: int, at, x, sums) -> None:
        """Add one vector of words, at index `at` of the panel, times the activations from `x` on to the totals."""
        w, scheme, lanes = self.w, self.w.scheme, totals[0][0].lanes
        partial = totals if scheme.is_float else [[Accumulator(lanes, None) for _ in row] for row in totals]

        def panel(j: int) -> list:
            return [hold(load(self.buffer, [], at + (j * self.rows + r) * self.lanes, lanes)) for r in range(self.rows)]

        for j in range(w.per_word):
            weights = panel(j)
            for t, row in enumerate(partial):
                values = hold(load(packing.x, [], x + (j * step + t * lanes), lanes))
                for acc, weight in zip(row, weights, strict=True):
                    if j or scheme.is_float:
                        acc.add(weight * values)
                    elif scheme.asymmetric:
                        acc.set(weight * values)
                    else:
                        acc.set(load(packing.sums, [], sums + t * lanes, lanes) + weight * values)
        if scheme.is_float:
            return
        scales = panel(w.per_word)
        offsets = panel(w.per_word + 1) if scheme.asymmetric else None
        for t, (row, total) in enumerate(zip(partial, totals, strict=True)):
            for r, (acc, to) in enumerate(zip(row, total, strict=True)):
                start = to.get()
                if scheme.asymmetric:
                    start = start + offsets[r] * load(packing.sums, [], sums + t * lanes, lanes)
                to.set(start + scales[r] * acc.get())


def _beside(value, width: int, lanes: int):
    """`lanes` wide: the value, and itself again and again."""
    if width == 1:
        return splat(value, lanes)
    return value if width == lanes else tirx.Shuffle([hold(value)] * (lanes // width), list(range(lanes)))
