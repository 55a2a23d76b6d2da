"""Drawing a token on a GPU from the distribution that mlcrt.runtime.sampler draws from, with the same random numbers.

Tokens are ranked by logit, of equals the smaller id first. A slice of the vocabulary offers its best few; whatever is
ranked before the worst of all slices' last offers is then known to be complete. If top-k, top-p or min-p cut within
that, and the random number points into it, the token is decided. If not, or if rounding could have decided otherwise
(the host counts in float64), nothing is chosen, and the host draws from the same logits.
"""

from __future__ import annotations

import contextlib

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels import Space

from .common import Machine, Register, barrier, block_reduce, launch, prim_func, shared

SLICES, TAKEN = 256, 8  # slices of the vocabulary, and how many tokens each one offers
LISTED = SLICES * TAKEN
_GRAIN = 8  # neighbouring tokens of one slice: 32 bytes, which memory delivers at once
_THREADS = 128  # of a block of the first kernel
_LOWEST, _BROKEN, _ABOVE = -3.4e38, 3.4e38, 3.4028234e38  # stand for -inf; NaN or +inf; more than all
_NONE = 2**31 - 1
_FAR = 2.0 * LISTED  # no place in the list
_DOUBT = 2.0**-16  # relative error of a sum of weights, with much to spare
_ROUNDS = ((13, 15, 26, 6), (17, 29, 16, 24))


def draw_scratch() -> list[Space]:
    """Workspaces: logits and ids of the offers, and each slice's sum of weights relative to its best."""
    return [Space((LISTED,)), Space((LISTED,), "int32"), Space((SLICES,))]


def draw(vocab: int, machine: Machine, threads: int = SLICES, name: str = "draw"):
    """PrimFunc(logits [1, vocab] f32, settings [8] i32, kept [1, vocab] f32, outcome [2] i32, token [1] i32,
    offers f32, ids i32, sums f32): the last three are workspaces; kept, outcome and token are changed in place.

    settings: bits of the float32 1/temperature, top_p (2 or more: none), the least logit relative to the best one that
    min-p keeps, and what the random number is multiplied by (0: the best token); top_k (0: none); the low and high
    half of the seed; unused. outcome: the token drawn, -1 if the host has to; how many were drawn before (the counter
    of the random numbers), which a drawn token adds to. kept: the logits that were drawn from. Once outcome is -1,
    nothing is changed until the host resets it, so that a step started too early does no harm. threads: of the block
    that ranks, at least as many as there are slices.
    """

    def body() -> None:
        logits = T.arg("logits", T.Buffer((1, vocab), "float32"))
        settings = T.arg("settings", T.Buffer((8,), "int32"))
        kept = T.arg("kept", T.Buffer((1, vocab), "float32"))
        outcome = T.arg("outcome", T.Buffer((2,), "int32"))
        token = T.arg("token", T.Buffer((1,), "int32"))
        offers = T.arg("offers", T.Buffer((LISTED,), "float32"))
        ids = T.arg("ids", T.Buffer((LISTED,), "int32"))
        sums = T.arg("sums", T.Buffer((SLICES,), "float32"))
        _offer(vocab, machine, logits, settings, kept, outcome, offers, ids, sums)
        with launch(bx=1, tx=threads) as (_, thread):
            machine.follow()
            _Join(vocab, machine, threads, thread).emit(settings, outcome, token, offers, ids, sums)

    return prim_func(name, body)


def _number(settings, i: int):
    return T.bind(tirx.reinterpret("float32", T.BufferLoad(settings, [i])))


def _weight(logit, top, scale):
    """exp((logit - top) / temperature); what float32 cannot hold is 0 anyway."""
    return tirx.exp(tirx.max((logit - top) * scale, T.float32(-200)))


def _offer(vocab: int, machine: Machine, logits, settings, kept, outcome, offers, ids, sums) -> None:
    """First kernel: every slice's best tokens in order, and its sum of weights."""
    each = -(-(-(-vocab // (SLICES * _GRAIN)) * _GRAIN) // _THREADS)  # tokens of a thread
    with launch(bx=SLICES, tx=_THREADS) as (part, thread):
        machine.follow()
        going = T.bind(T.BufferLoad(outcome, [0]))
        held, places = Register(T.float32(_LOWEST), count=each), []
        for i in range(each):
            at = T.bind(thread + i * _THREADS)
            at = T.bind((tirx.floordiv(at, _GRAIN) * SLICES + part) * _GRAIN + tirx.floormod(at, _GRAIN))
            places.append(at)
            with T.If(at < vocab), T.Then():
                value = T.bind(T.BufferLoad(logits, [0, at]))
                held.set(_sound(value), i)
                with T.If(going >= 0), T.Then():
                    T.buffer_store(kept, value, [0, at])
        last, last_id = Register(T.float32(_ABOVE)), Register(T.int32(-1), "int32")
        best, where, peak = Register(), Register(dtype="int32"), Register(T.float32(_LOWEST))
        first = _First(machine, _THREADS)
        with T.serial(TAKEN) as turn:
            best.set(T.float32(_LOWEST))
            where.set(T.int32(_NONE))
            for i, at in enumerate(places):
                value = T.bind(held.get(i))
                after = tirx.Or(value < last.get(), tirx.And(value == last.get(), at > last_id.get()))
                with T.If(tirx.And(after, value > best.get())), T.Then():
                    best.set(value)
                    where.set(at)
            first.reduce(thread, best, where)
            last.set(best.get())
            last_id.set(where.get())
            with T.If(turn == 0), T.Then():
                peak.set(best.get())
            with T.If(thread == 0), T.Then():
                T.buffer_store(offers, best.get(), [part * TAKEN + turn])
                T.buffer_store(ids, where.get(), [part * TAKEN + turn])
        total, scale = Register(T.float32(0)), _number(settings, 0)
        for i, at in enumerate(places):
            with T.If(at < vocab), T.Then():
                total.add(_weight(held.get(i), peak.get(), scale))
        whole = T.bind(block_reduce(machine, total.get(), lambda a, b: a + b, _THREADS, thread))
        with T.If(thread == 0), T.Then():
            T.buffer_store(sums, whole, [part])


def _sound(value):
    """The logit, with -inf as the lowest number, and anything that no model should give as the highest."""
    bits = T.bind(tirx.reinterpret("int32", value))
    nan = tirx.bitwise_and(bits, T.int32(0x7FFFFFFF)) > T.int32(0x7F800000)
    broken = tirx.Or(nan, bits == T.int32(0x7F800000))
    return tirx.Select(broken, T.float32(_BROKEN), tirx.max(value, T.float32(_LOWEST)))


class _Whole:
    """Whole numbers in shared memory, as the bits of floats: on ROCm both kinds cannot take turns in it."""

    def __init__(self, count: int):
        self.buffer = shared((count,))

    def get(self, i):
        return tirx.reinterpret("int32", T.BufferLoad(self.buffer, [i]))

    def set(self, i, value) -> None:
        T.buffer_store(self.buffer, tirx.reinterpret("float32", value), [i])


class _First:
    """Finds the largest value of a block's threads, of equals that with the smallest index; any number of times."""

    def __init__(self, machine: Machine, threads: int):
        self.machine, self.count = machine, threads // machine.subgroup
        if self.count > 1:
            self.values, self.indices = shared((self.count,)), _Whole(self.count)

    def reduce(self, thread, best: Register, where: Register) -> None:
        """Every thread's (best, where) becomes the block's."""

        def take(value, index) -> None:
            value, index = T.bind(value), T.bind(index)
            better = tirx.Or(value > best.get(), tirx.And(value == best.get(), index < where.get()))
            with T.If(better), T.Then():
                best.set(value)
                where.set(index)

        machine, step = self.machine, self.machine.subgroup // 2
        while step:
            take(machine.exchange(best.get(), step), machine.exchange(where.get(), step))
            step //= 2
        if self.count == 1:
            return
        with T.If(tirx.floormod(thread, machine.subgroup) == 0), T.Then():
            T.buffer_store(self.values, best.get(), [tirx.floordiv(thread, machine.subgroup)])
            self.indices.set(tirx.floordiv(thread, machine.subgroup), where.get())
        barrier()
        for i in range(self.count):
            take(T.BufferLoad(self.values, [i]), self.indices.get(i))
        barrier()


class _Join:
    """Second kernel, one block: rank the offers, find where the filters cut, and draw."""

    def __init__(self, vocab: int, machine: Machine, threads: int, thread):
        self.vocab, self.machine, self.threads, self.thread = vocab, machine, threads, thread
        self.each = LISTED // threads
        self.keys, self.names, self.mass = shared((LISTED,)), _Whole(LISTED), shared((LISTED,))

    def emit(self, settings, outcome, token, offers, ids, sums) -> None:
        thread, keys, mass = self.thread, self.keys, self.mass
        scale, top_p, low, spread = (_number(settings, i) for i in range(4))
        top_k, drawn = T.bind(T.BufferLoad(settings, [4])), T.bind(T.BufferLoad(outcome, [1]))
        uniform = _held(_uniform(T.BufferLoad(settings, [5]), T.BufferLoad(settings, [6]), drawn) * spread)
        bound, bound_id = self._rank(offers, ids)
        top = T.bind(T.BufferLoad(keys, [0]))
        own = Register(T.float32(0))
        with _when(thread < SLICES):
            own.set(T.BufferLoad(sums, [thread]) * _weight(T.BufferLoad(offers, [thread * TAKEN]), top, scale))
        every = self._sum(own.get())  # the weight of the whole vocabulary
        self._accumulate(top, scale)
        known = self._known(bound, bound_id)

        beyond = T.float32(LISTED if self.complete else _FAR)  # the place of a cut that no known token is behind
        cut = Register(beyond)
        with self._heads(known) as place, _when(place >= top_k):
            cut.set(tirx.min(cut.get(), _real(place)))
        first = self._least(cut.get())  # that top-k drops
        most = Register(every)
        with _when(top_k > 0):
            most.set(self._mass_before(first))
        need = _held(top_p * most.get())

        cut, unsure = Register(beyond), Register(T.float32(0))
        with self._heads(known) as place:
            real, before = _held(_real(place)), T.bind(T.BufferLoad(mass, [place - 1]))
            key = T.bind(T.BufferLoad(keys, [place]))
            with _when(top_k > 0, place >= top_k):
                cut.set(tirx.min(cut.get(), real))
            with _when(top_p < T.float32(1)):
                with _when(before >= need):
                    cut.set(tirx.min(cut.get(), real))
                with _when(tirx.max(before - need, need - before) <= T.float32(_DOUBT) * most.get()):
                    unsure.set(T.float32(-1))
            with _when(key - top < low):
                cut.set(tirx.min(cut.get(), real))
        end = self._least(cut.get())  # the first that any filter drops
        unsure = Register(self._least(unsure.get()))

        share = Register(every)  # the weight of all that are kept
        with _when(end < T.float32(_FAR)):
            share.set(self._mass_before(end))
        target, stop = _held(uniform * share.get()), _held(tirx.min(end, _real(known)))
        pick = Register(T.float32(_FAR))
        with T.serial(self.each) as e:
            place = T.bind(thread * self.each + e)
            reached = T.bind(T.BufferLoad(mass, [place]))
            with _when(reached > target, _real(place) < stop):
                pick.set(tirx.min(pick.get(), _real(place)))
        chosen = self._least(pick.get())

        going = T.bind(T.BufferLoad(outcome, [0]))
        with _when(thread == 0, going >= 0):
            with _when(top_k > 0, first >= T.float32(_FAR)):
                unsure.set(T.float32(-1))
            with _when(end >= T.float32(_FAR)):  # right only if nothing is to be cut
                for filtered in (top_k > 0, top_p < T.float32(1), low > T.float32(_LOWEST)):
                    with _when(filtered):
                        unsure.set(T.float32(-1))
            for broken in (top <= T.float32(_LOWEST), top >= T.float32(_BROKEN), chosen >= T.float32(_FAR)):
                with _when(broken):
                    unsure.set(T.float32(-1))
            at = _held(tirx.Cast("int32", tirx.min(chosen, T.float32(LISTED - 1))), "int32")
            close = _held(T.float32(_DOUBT) * share.get())
            reached, before = (T.bind(T.BufferLoad(mass, [i])) for i in (at, tirx.max(at - 1, 0)))
            with _when(reached - target <= close, _real(at + 1) < end):
                unsure.set(T.float32(-1))
            with _when(at > 0, target - before <= close):
                unsure.set(T.float32(-1))
            with _when(unsure.get() < T.float32(0)):
                T.buffer_store(outcome, T.int32(-1), [0])
            with _when(unsure.get() == T.float32(0)):
                T.buffer_store(token, self.names.get(at), [0])
                T.buffer_store(outcome, self.names.get(at), [0])
                T.buffer_store(outcome, drawn + 1, [1])

    def _rank(self, offers, ids):
        """Sort the offers into keys and names; the worst last offer of a slice: all before it is known."""
        thread, keys, names = self.thread, self.keys, self.names
        with T.serial(self.each) as e:
            at = T.bind(e * self.threads + thread)
            odd = tirx.floormod(tirx.floordiv(at, TAKEN), 2) == 1  # every other list backwards: bitonic pairs
            inside = T.bind(tirx.floormod(at, TAKEN))
            source = T.bind(at - inside + tirx.Select(odd, TAKEN - 1 - inside, inside))
            T.buffer_store(keys, T.BufferLoad(offers, [source]), [at])
            names.set(at, T.BufferLoad(ids, [source]))
        bound, bound_id = Register(T.float32(_LOWEST)), Register(T.int32(_NONE), "int32")
        with _when(thread < SLICES):
            bound.set(T.BufferLoad(offers, [thread * TAKEN + TAKEN - 1]))
            bound_id.set(T.BufferLoad(ids, [thread * TAKEN + TAKEN - 1]))
        _First(self.machine, self.threads).reduce(thread, bound, bound_id)
        barrier()
        levels = LISTED.bit_length() - TAKEN.bit_length()
        with T.serial(levels) as level:
            length = T.bind(tirx.shift_left(T.int32(2 * TAKEN), level))  # of the sequences that come out
            with T.serial(level + TAKEN.bit_length()) as stage:
                apart = T.bind(tirx.shift_right(length, stage + 1))
                with T.serial(self.each // 2) as e:
                    pair = T.bind(e * self.threads + thread)
                    inside = T.bind(tirx.bitwise_and(pair, apart - 1))
                    left = T.bind((pair - inside) * 2 + inside)
                    right = T.bind(left + apart)
                    a, b = T.bind(T.BufferLoad(keys, [left])), T.bind(T.BufferLoad(keys, [right]))
                    m, n = T.bind(names.get(left)), T.bind(names.get(right))
                    wrong = tirx.Or(b > a, tirx.And(b == a, n < m))
                    down = tirx.bitwise_and(left, length) == 0
                    swap = T.bind(tirx.Select(down, wrong, tirx.Not(wrong)))
                    T.buffer_store(keys, tirx.Select(swap, b, a), [left])
                    T.buffer_store(keys, tirx.Select(swap, a, b), [right])
                    names.set(left, tirx.Select(swap, n, m))
                    names.set(right, tirx.Select(swap, m, n))
                barrier()
        return T.bind(bound.get()), T.bind(bound_id.get())

    def _accumulate(self, top, scale) -> None:
        """mass[i] = weights of the tokens ranked 0 … i."""
        thread, mass = self.thread, self.mass
        sides = [shared((self.threads,)), shared((self.threads,))]
        own = Register(T.float32(0))
        for e in range(self.each):
            place = T.bind(thread * self.each + e)
            own.add(_weight(T.BufferLoad(self.keys, [place]), top, scale))
            T.buffer_store(mass, own.get(), [place])
        T.buffer_store(sides[0], own.get(), [thread])
        barrier()
        step = 1
        while step < self.threads:
            behind = tirx.Select(thread >= step, T.BufferLoad(sides[0], [tirx.max(thread - step, 0)]), T.float32(0))
            T.buffer_store(sides[1], T.BufferLoad(sides[0], [thread]) + behind, [thread])
            barrier()
            sides.reverse()
            step *= 2
        before = tirx.Select(thread > 0, T.BufferLoad(sides[0], [tirx.max(thread - 1, 0)]), T.float32(0))
        before = T.bind(before)
        for e in range(self.each):
            place = thread * self.each + e
            T.buffer_store(mass, T.BufferLoad(mass, [place]) + before, [place])
        barrier()

    @property
    def complete(self) -> bool:
        """Whether the list is the whole vocabulary."""
        return -(-self.vocab // (SLICES * _GRAIN)) * _GRAIN <= TAKEN

    def _known(self, bound, bound_id):
        """How many of the ranking's first places are certain."""
        count = Register(T.float32(0))
        with T.serial(self.each) as e:
            place = T.bind(self.thread * self.each + e)
            key, name = T.bind(T.BufferLoad(self.keys, [place])), T.bind(self.names.get(place))
            with _when(name < self.vocab):
                if self.complete:
                    count.add(T.float32(1))
                else:
                    with _when(tirx.Or(key > bound, tirx.And(key == bound, name <= bound_id))):
                        count.add(T.float32(1))
        return _held(tirx.Cast("int32", self._sum(count.get())), "int32")

    @contextlib.contextmanager
    def _heads(self, known):
        """Each known place of this thread, but for the first, whose logit is not that of the place before: equal ones
        are kept or dropped together."""
        with T.serial(self.each) as e:
            place = T.bind(self.thread * self.each + e)
            key, before = (T.bind(T.BufferLoad(self.keys, [i])) for i in (place, tirx.max(place - 1, 0)))
            with _when(place < known, key < before):
                yield place

    def _mass_before(self, end):
        """Sum of the weights before a place (a float32), which is in the list or just behind it."""
        at = tirx.Cast("int32", tirx.min(end, T.float32(LISTED))) - 1
        return T.BufferLoad(self.mass, [tirx.max(at, 0)])

    def _sum(self, value):
        return block_reduce(self.machine, value, lambda a, b: a + b, self.threads, self.thread)

    def _least(self, value):
        return block_reduce(self.machine, value, tirx.min, self.threads, self.thread)


def _held(value, dtype: str = "float32"):
    """A value computed once: what T.bind names, TVM may substitute."""
    return Register(value, dtype).get()


@contextlib.contextmanager
def _when(*conditions):
    """Where all of them hold, asked in order."""
    with contextlib.ExitStack() as stack:
        for condition in conditions:
            stack.enter_context(T.If(condition))
            stack.enter_context(T.Then())
        yield


def _real(place):
    return tirx.Cast("float32", place)


def _uniform(low, high, counter):
    """A number in [0, 1), of 24 bits: Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011) of the counter (counter, 0) with the key (low, high)."""
    key = [T.bind(tirx.reinterpret("uint32", T.bind(part))) for part in (low, high)]
    key.append(T.bind(tirx.bitwise_xor(tirx.bitwise_xor(key[0], key[1]), T.uint32(0x1BD11BDA))))
    # registers, for TVM substitutes what is bound, and each round names the one before twice
    x = Register(tirx.reinterpret("uint32", counter) + key[0], "uint32")
    y = Register(key[1], "uint32")
    for group in range(5):
        for turn in _ROUNDS[group % 2]:
            x.add(y.get())
            left, right = tirx.shift_left(y.get(), T.uint32(turn)), tirx.shift_right(y.get(), T.uint32(32 - turn))
            y.set(tirx.bitwise_xor(x.get(), tirx.bitwise_or(left, right)))
        x.add(key[(group + 1) % 3])
        y.add(key[(group + 2) % 3] + T.uint32(group + 1))
    return tirx.Cast("float32", tirx.shift_right(x.get(), T.uint32(8))) * T.float32(2.0**-24)
