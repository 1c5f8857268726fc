"""A dictionary that forgets the entries that were used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruDict(Generic[K, V]):
    """
    Keys and values, least recently used first. One thread at a time.

    Args:
        most: The most that all entries may weigh.
        entries: Its first entries, least recently used first.
        weigh: Returns what an entry weighs, which must not change; the default counts entries.
    """

    def __init__(
        self, most: int, entries: Iterable[tuple[K, V]] = (), *, weigh: Callable[[K, V], int] = lambda _key, _value: 1
    ) -> None:
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[K, V] = OrderedDict()
        for key, value in entries:
            self.put(key, value)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """Return the value of a key, which counts as a use of it; None if there is none."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Set the value of a key, which counts as a use of it. If all weigh too much, the oldest are forgotten."""
        self.discard(key)
        self._entries[key] = value
        self._weight += self._weigh(key, value)
        while self._weight > self._most:
            self._weight -= self._weigh(*self._entries.popitem(last=False))

    def discard(self, key: K) -> None:
        """Forget a key, if it is there."""
        if key in self._entries:
            self._weight -= self._weigh(key, self._entries.pop(key))

    def copy(self) -> dict[K, V]:
        """Return a copy of the entries, least recently used first."""
        return dict(self._entries)
