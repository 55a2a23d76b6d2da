"""Blocks of the KV cache: never two owners, never lost, and a shared one holds what its path says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcrt.runtime.pages import BlockPool

SIZE = 4


class Model:
    """A cache that remembers, per block, the whole text before and in it, as whoever wrote it knew it."""

    def __init__(self, count):
        self.pool, self.content, self.open = BlockPool(count, SIZE), {}, []

    def begin(self, prompt, limit):
        lease = self.pool.open(prompt, limit)
        if lease is None:
            return None
        assert lease.shared < len(prompt) and lease.shared % SIZE == 0
        for i, block in enumerate(lease.blocks):
            assert self.content[block] == tuple(prompt[: (i + 1) * SIZE]), "a shared block holds something else"
        entry = (lease, list(prompt[: lease.shared]))
        self.open.append(entry)
        return entry

    def append(self, entry, tokens):
        lease, text = entry
        self.pool.grow(lease, len(text) + len(tokens))
        for token in tokens:
            block = lease.blocks[len(text) // SIZE]
            others = [e for e in self.open if e is not entry and block in e[0].blocks]
            assert not others, "written while another reads it"
            text.append(token)
            self.content[block] = tuple(text)
        self.pool.fill(lease, text)

    def end(self, entry):
        self.open.remove(entry)
        self.pool.close(entry[0])

    def check(self):
        for lease, text in self.open:
            for i, block in enumerate(lease.blocks[: len(text) // SIZE]):
                assert self.content[block] == tuple(text[: (i + 1) * SIZE])
        assert self.pool.used == len({b for lease, _ in self.open for b in lease.blocks})
        assert 0 <= self.pool.cached <= self.pool.count - self.pool.used


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "append", "append", "end"]), st.integers(0, 7), st.integers(1, 11)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(3, 14), steps=STEPS)
def test_blocks_have_one_owner_and_grants_are_kept(count, steps):
    """Prompts come from few texts, so that they share; growing up to the granted limit never fails."""
    model = Model(count)
    for kind, which, size in steps:
        if kind == "begin":
            prompt = [which % 3] * (size // 2) + [5] * (size - size // 2)
            if size <= count * SIZE:
                model.begin(prompt, min(size + which, count * SIZE))
        elif model.open:
            entry = model.open[which % len(model.open)]
            if kind == "append":
                room = entry[0].limit - len(entry[1])
                model.append(entry, [size % 2] * min(room, size))
            else:
                model.end(entry)
        model.check()
    for entry in list(model.open):
        model.append(entry, [9] * (entry[0].limit - len(entry[1])))
        model.check()
    for entry in list(model.open):
        model.end(entry)
    assert model.pool.used == 0
    assert model.begin([1] * 2, count * SIZE) is not None, "an empty pool grants everything"


def test_what_was_used_longest_ago_goes_first():
    model = Model(4)
    for token in (1, 2, 3):
        entry = model.begin([token] * 5, 5)
        model.append(entry, [token] * 5)
        model.end(entry)
    assert [model.pool.known([t] * 5) for t in (1, 2, 3)] == [4, 4, 4]
    model.end(model.begin([1] * 5, 5))
    entry = model.begin([7] * 8, 8)
    model.append(entry, [7] * 8)
    assert [model.pool.known([t] * 5) for t in (1, 2, 3)] == [4, 0, 4]


def test_a_leaf_goes_before_what_leads_to_it():
    model = Model(3)
    entry = model.begin([1] * 12, 12)
    model.append(entry, [1] * 12)
    model.end(entry)
    assert model.pool.known([1] * 13) == 12
    entry = model.begin([2] * 5, 5)
    model.append(entry, [2] * 5)
    assert model.pool.known([1] * 13) == 4


@pytest.mark.parametrize("limit, fits", [(12, True), (13, False)])
def test_no_room_is_said_before_anything_changes(limit, fits):
    model = Model(5)
    other = model.begin([1] * 3, 8)
    model.append(other, [1] * 3)
    before = model.pool.used
    assert (model.pool.open([2], limit) is not None) is fits
    assert model.pool.used == before


def test_the_list_of_idle_leaves_stays_short():
    model = Model(8)
    for _ in range(500):
        entry = model.begin([3] * 9, 9)
        model.append(entry, [3] * (9 - len(entry[1])))
        model.end(entry)
    assert len(model.pool._heap) <= 2 * 8 + 17
