"""Which blocks of a paged KV cache belong to whom, and which hold a prefix that another sequence can share.

A block holds the keys and values of `size` consecutive tokens. Full blocks hang in a tree: a node's path from the root
spells the tokens before it, so a prompt finds its longest known prefix by walking down. A block that no sequence uses
stays in the tree until the space is wanted; then the leaf that was used longest ago goes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Node:
    """A full block in the tree. `users` counts sequences that read it."""

    block: int
    tokens: tuple[int, ...]
    parent: _Node | None
    users: int = 0
    used_at: int = 0
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


@dataclass(eq=False)
class Lease:
    """The blocks of one sequence: `blocks[i]` holds its tokens i*size to (i+1)*size - 1.

    `shared` tokens were there already when it began; `limit` tokens are the most it will have.
    """

    limit: int
    shared: int
    blocks: list[int]
    _nodes: list[_Node]  # the leading blocks, those in the tree; the rest are the sequence's alone
    _place: _Node | None  # where its next full block goes; None once another sequence has put the same tokens there


class BlockPool:
    """`count` blocks of `size` tokens."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size
        self._free = list(range(count - 1, -1, -1))
        self._root = _Node(-1, (), None)
        self._clock = itertools.count(1)
        self._promised = 0  # blocks that leases may still take
        self._idle = 0  # blocks in the tree that no sequence uses
        self._heap: list[tuple[int, int, _Node]] = []  # idle leaves by their last use; may hold stale entries

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.count - len(self._free) - self._idle

    @property
    def cached(self) -> int:
        """Blocks kept for later sequences."""
        return self._idle

    def known(self, tokens: Sequence[int]) -> int:
        """How many leading tokens lie in shareable blocks; always short of all, for the last one has to run."""
        return len(self._walk(tokens)) * self.size

    def open(self, tokens: Sequence[int], limit: int) -> Lease | None:
        """Blocks for a sequence that begins with `tokens` and grows to `limit` at most; None if they do not fit now.

        What is granted is certain: `grow` up to the limit never fails.
        """
        nodes = self._walk(tokens)
        needed = -(-limit // self.size) - len(nodes)
        waking = sum(node.users == 0 for node in nodes)
        if needed + waking + self._promised > len(self._free) + self._idle:
            return None
        for node in nodes:
            self._use(node)
        self._promised += needed
        place = nodes[-1] if nodes else self._root
        return Lease(limit, len(nodes) * self.size, [n.block for n in nodes], nodes, place)

    def grow(self, lease: Lease, length: int) -> None:
        """Make room for `length` tokens."""
        while len(lease.blocks) * self.size < length:
            lease.blocks.append(self._take())
            self._promised -= 1

    def fill(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Offer to others what has become full now that the sequence's cache holds exactly `tokens`."""
        while lease._place is not None and (len(lease._nodes) + 1) * self.size <= len(tokens):
            start = len(lease._nodes) * self.size
            key = tuple(tokens[start : start + self.size])
            if key in lease._place.children:
                lease._place = None  # whatever follows stays private: a parent must not go before its child
                return
            node = _Node(lease.blocks[len(lease._nodes)], key, lease._place, users=1, used_at=next(self._clock))
            lease._place.children[key] = node
            lease._nodes.append(node)
            lease._place = node

    def close(self, lease: Lease) -> None:
        """Give the blocks back; those in the tree stay for later sequences."""
        self._promised -= -(-lease.limit // self.size) - len(lease.blocks)
        for node in reversed(lease._nodes):
            node.users -= 1
            if node.users == 0:
                self._idle += 1
                self._rest(node)
        self._free += reversed(lease.blocks[len(lease._nodes) :])
        lease.blocks, lease._nodes, lease._place = [], [], None

    def _walk(self, tokens: Sequence[int]) -> list[_Node]:
        node, found = self._root, []
        for start in range(0, len(tokens) - self.size, self.size):
            node = node.children.get(tuple(tokens[start : start + self.size]))
            if node is None:
                break
            found.append(node)
        return found

    def _use(self, node: _Node) -> None:
        self._idle -= node.users == 0
        node.users += 1
        node.used_at = next(self._clock)

    def _rest(self, node: _Node) -> None:
        node.used_at = next(self._clock)
        if not node.children:
            self._offer(node)

    def _offer(self, node: _Node) -> None:
        """Remember an idle leaf; entries that no longer say the truth are dropped when there are many."""
        if len(self._heap) > 2 * self.count + 16:
            self._heap = [entry for entry in self._heap if self._idle_leaf(entry)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (node.used_at, node.block, node))

    @staticmethod
    def _idle_leaf(entry: tuple[int, int, _Node]) -> bool:
        used_at, _, node = entry
        return not node.users and not node.children and node.used_at == used_at and node.parent is not None

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        while True:
            entry = heapq.heappop(self._heap)
            if not self._idle_leaf(entry):
                continue
            node, parent = entry[2], entry[2].parent
            del parent.children[node.tokens]
            node.parent = None
            self._idle -= 1
            if parent.block >= 0 and not parent.users and not parent.children:
                self._offer(parent)
            return node.block
