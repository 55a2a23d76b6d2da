"""Requests that wait: by priority, and within one priority the clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """`priority` (lower first) and `client` of an item are read once, when it is put in."""

    def __init__(self, priority: Callable[[Item], int], client: Callable[[Item], str]):
        self._priority, self._client = priority, client
        self._levels: dict[int, OrderedDict[str, deque[Item]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: Item) -> None:
        level = self._levels.setdefault(self._priority(item), OrderedDict())
        level.setdefault(self._client(item), deque()).append(item)
        self._size += 1

    def __iter__(self) -> Iterator[Item]:
        """All items in the order in which they would be taken."""
        for priority in sorted(self._levels):
            waiting = [list(items) for items in self._levels[priority].values()]
            for turn in range(max(map(len, waiting), default=0)):
                yield from (items[turn] for items in waiting if turn < len(items))

    def take(self, item: Item) -> None:
        """Remove an item whose turn has come: its client goes to the end of the line."""
        level = self._levels[self._priority(item)]
        client = self._client(item)
        level[client].remove(item)
        self._size -= 1
        if level[client]:
            level.move_to_end(client)
        else:
            del level[client]
            if not level:
                del self._levels[self._priority(item)]

    def drop(self, item: Item) -> None:
        """Remove an item that gives up; nobody's turn changes."""
        level = self._levels[self._priority(item)]
        client = self._client(item)
        level[client].remove(item)
        self._size -= 1
        if not level[client]:
            del level[client]
            if not level:
                del self._levels[self._priority(item)]
