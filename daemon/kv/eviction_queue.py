"""The eviction queue: what was used longest ago leaves first, of everything or of one partition."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar


class Aged(Protocol):
    """Something that can be evicted when its turn comes."""

    tick: int
    queued: bool

    @property
    def depth(self) -> int:
        """Of two of the same age, the deeper goes first."""

    @property
    def evictable(self) -> bool:
        """Whether it may go now."""

    @property
    def partition(self) -> str:
        """Whose it is; the same as long as it is queued."""


T = TypeVar("T", bound=Aged)
_Entry = tuple[int, int, int, T]


class EvictionQueue(Generic[T]):
    """
    Least recently used first; of the same age, the deeper first.

    What is used again, locked or built upon stays where it is and is sorted out when its turn comes, so that only
    eviction pays: O(log of what is queued). Each item is in it at most once.
    """

    def __init__(self) -> None:
        self._heaps: dict[str, list[_Entry[T]]] = {}
        self._heads: list[tuple[int, int, int, str]] = []
        self._serial = count()

    def __iter__(self) -> Iterator[T]:
        return (entry[3] for heap in self._heaps.values() for entry in heap)

    def offer(self, item: T) -> None:
        """Queue an item if it is evictable and not queued yet."""
        if item.evictable and not item.queued:
            item.queued = True
            heap = self._heaps.setdefault(item.partition, [])
            entry = (item.tick, -item.depth, next(self._serial), item)
            heapq.heappush(heap, entry)
            if heap[0] is entry:
                heapq.heappush(self._heads, (*entry[:3], item.partition))

    def peek(self, partition: str | None = None) -> T | None:
        """Return the item whose turn it is, of one partition or of all; None if none may go."""
        while (owner := self._oldest() if partition is None else partition) is not None:
            heap = self._heaps.get(owner)
            if not heap:
                return None
            tick, _, _, item = heap[0]
            if item.evictable and item.tick == tick:
                return item
            self._take(owner)
            self.offer(item)
        return None

    def pop(self, partition: str | None = None) -> T | None:
        """Take the item whose turn it is."""
        item = self.peek(partition)
        if item is not None:
            self._take(item.partition)
        return item

    def prune(self) -> None:
        """Drop what may not go now, which would otherwise stay in memory until its turn comes."""
        for partition, heap in list(self._heaps.items()):
            keep = [entry for entry in heap if entry[3].evictable]
            for *_, item in heap:
                item.queued = item.evictable
            heapq.heapify(keep)
            self._heaps[partition] = keep
            self._show_head(partition)

    def _oldest(self) -> str | None:
        """Return the partition with the oldest entry."""
        while self._heads:
            *entry, partition = self._heads[0]
            heap = self._heaps.get(partition)
            if heap and heap[0][:3] == tuple(entry):
                return partition
            heapq.heappop(self._heads)
        return None

    def _take(self, partition: str) -> None:
        *_, item = heapq.heappop(self._heaps[partition])
        item.queued = False
        self._show_head(partition)

    def _show_head(self, partition: str) -> None:
        heap = self._heaps[partition]
        if heap:
            heapq.heappush(self._heads, (*heap[0][:3], partition))
        else:
            del self._heaps[partition]
