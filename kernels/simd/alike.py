"""Several tokens times a weight, each token computed in exactly the order of the one-token form.

A tile of weight rows is unpacked once for a tile of tokens, and every token's sums run over the same lanes in the same
order as in `linear.row_dots`: a token's result does not depend, to the bit, on how many others share the call.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .vector import Accumulator, halves, horizontal_sum, load, opaque, segments, stack, store
from .weights import Rows


class Packing:
    """Activations of n tokens in tiles of the given sizes (descending to 1), a tile's in the order they are read.

    In a tile of `size` tokens element j of `lanes` words from `word` on lies, token by token, at
    (word * per_word + j * lanes) * size + token * lanes. A remainder that nearly fills a tile takes it, for unpacking
    costs as much as some three tokens; so there are `tokens` >= n places.
    """

    def __init__(self, weights: Rows, n, sizes: tuple):
        self.w, self.sizes = weights, sizes
        first, rest = T.int32(0), n
        self.starts, self.counts = [], []
        for size in sizes:
            count = T.bind(tirx.floordiv(rest + size // 4, size))
            self.starts.append(first)
            self.counts.append(count)
            first = T.bind(first + count * size)
            rest = T.bind(tirx.max(rest - count * size, 0))
        self.tokens = first
        self.x = T.alloc_buffer(((n + sizes[0] // 4) * weights.padded,), "float32", scope="global")
        self.sums = None
        if not weights.scheme.is_float:
            self.sums = T.alloc_buffer(((n + sizes[0] // 4) * weights.words,), "float32", scope="global")

    def places(self, slot):
        """For the token at `slot`: where (word, j, lanes) of its activations lies, and where (word, lanes) of its
        sums of words."""
        size, token0 = T.int32(1), slot
        for start, end, choice in reversed(list(zip(self.starts, self.starts[1:], self.sizes, strict=False))):
            inside = slot < end
            size = tirx.Select(inside, T.int32(choice), size)
            token0 = tirx.Select(inside, start + tirx.floordiv(slot - start, choice) * choice, token0)
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

    def dots(self, rows: list, lanes: int, token0, size: int, use) -> None:
        """use(token in the tile, float32 dot products with the weight rows) for each of a tile's tokens.

        Whole vectors run with all tokens side by side. What is left of a row, and all that follows, is a loop over the
        tokens: it is little work, and unrolled it would be most of the code.
        """
        w = self.w
        x0, sums0 = opaque(token0 * w.padded), opaque(token0 * w.words)
        (first, width, count), *rest = segments(w.words, lanes)
        totals = [[Accumulator(width) for _ in rows] for _ in range(size)]
        with T.serial(count) as i:
            word = T.bind(first + i * width)
            x, sums = opaque(x0 + word * (w.per_word * size)), opaque(sums0 + word * size)
            self._add_words(_Unpacked(w, rows, word, width), range(size), size, x, sums, totals)
        kept = [stack(size * width) for _ in rows]
        for t in range(size):
            for r, buffer in enumerate(kept):
                store(buffer, totals[t][r].get(), [], t * width, width)
        ends = [_Unpacked(w, rows, T.int32(start), narrow).kept() for start, narrow, _ in rest]
        with T.serial(size) as t:
            tails = [(load(buffer, [], t * width, width), width) for buffer in kept]
            for (start, narrow, _), unpacked in zip(rest, ends, strict=True):
                x, sums = opaque(x0 + start * w.per_word * size), opaque(sums0 + start * size)
                accs = [Accumulator(narrow) for _ in rows]
                self._add_words(unpacked, [t], size, x, sums, [accs])
                tails = [
                    (T.bind(_joined(acc.get(), narrow, tail)), narrow) for acc, tail in zip(accs, tails, strict=True)
                ]
            use(t, [T.bind(horizontal_sum(*tail)) for tail in tails])

    def _add_words(self, unpacked: _Unpacked, tokens, size: int, x, sums, totals: list) -> None:
        """Add the unpacked words times the activations, from index `x` on, of some of a tile's tokens to the totals."""
        w, scheme, width = self.w, self.w.scheme, unpacked.width
        partial = totals if scheme.is_float else [[Accumulator(width, None) for _ in row] for row in totals]
        for j in range(w.per_word):
            weights = unpacked.codes(j)
            for t, sums_of in zip(tokens, partial, strict=True):
                values = T.bind(load(self.x, [], x + (j * size + t) * width, width))
                for acc, weight in zip(sums_of, weights, strict=True):
                    if j or scheme.is_float:
                        acc.add(weight * values)
                    elif scheme.asymmetric:
                        acc.set(weight * values)
                    else:
                        acc.set(load(self.sums, [], sums + t * width, width) + weight * values)
        for r, (scale, offset) in enumerate(unpacked.affine()):
            for t, sums_of, total in zip(tokens, partial, totals, strict=True):
                value = scale * sums_of[r].get()
                if scheme.asymmetric:
                    value = value + offset * load(self.sums, [], sums + t * width, width)
                total[r].add(value)


class _Unpacked:
    """`width` words of some weight rows as float32 vectors: evaluated where they are used, once."""

    def __init__(self, w: Rows, rows: list, word, width: int):
        self.width = width
        self._codes = [w.codes(row, word, width) for row in rows]
        self._affine = [] if w.scheme.is_float else [w.affine(row, word, width) for row in rows]

    def codes(self, j: int) -> list:
        """Element j of the words, per row."""
        return [T.bind(codes[j]) for codes in self._codes]

    def affine(self) -> list:
        return self._affine

    def kept(self) -> _Unpacked:
        """Itself, evaluated now and held in memory, for use in a loop."""

        def keep(values: list) -> list:
            buffer = stack(len(values) * self.width)
            for i, value in enumerate(values):
                store(buffer, value, [], i * self.width, self.width)
            return [load(buffer, [], i * self.width, self.width) for i in range(len(values))]

        self._codes = [keep(codes) for codes in self._codes]
        self._affine = [tuple(keep(list(pair))) for pair in self._affine]
        return self


def _joined(total, width: int, tail):
    """A narrower segment's sums plus those of the wider one before it, folded to its width."""
    value, wide = tail
    while wide > width:
        low, high = halves(T.bind(value), wide)
        value, wide = low + high, wide // 2
    return total + value
