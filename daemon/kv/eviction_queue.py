"""
A queue of blocks or checkpoints, least recently used first, over all partitions or in one of them.

Every lookup changes the age of all blocks on its path. Updating a queue each time would make lookups expensive, so the
queue is lazy: an item notes its own age (`tick`), and the queue is corrected only when an item reaches the front.

States of an item, as far as the queue is concerned:

                 offer(), if evictable
       outside ------------------------> queued ---+
          ^                                |  ^    | at the front, but used since it was
          |                                |  +----+ queued: goes back with its new tick
          +--------------------------------+
            at the front and not evictable (locked, has a child, withdrawn): leaves the queue
            at the front, evictable, tick unchanged: pop() returns it, and it is evicted

The owner of an item offers it again when its lock ends or its last child leaves. So every evictable item is queued at
any time; a queued item need not be evictable.

Each partition has a heap of its entries (tick, -depth, serial, item). A second heap holds a copy of the first entry of
each partition, so that the oldest item of all is found without a look at every partition. Copies are not removed when
a heap changes: a copy that differs from the present first entry of its partition is skipped.

An item that is forgotten is withdrawn. It stays in its heap until withdrawn items may be more than half of all: then
all that are not evictable leave at once. So forgetting one of many does not cost a look at the others.

Costs: `offer` and `pop` O(log n); `withdraw` O(1), on average over many; locking, using and building upon an item O(1),
since the queue is not told.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar


class Aged(Protocol):
    """An item that the queue can order: a node or a checkpoint."""

    tick: int
    queued: bool

    @property
    def depth(self) -> int:
        """Distance from the root; of two items of the same age, the deeper goes first."""

    @property
    def evictable(self) -> bool:
        """Whether it may be evicted now."""

    @property
    def partition(self) -> str:
        """Partition that it counts against; it does not change while the item is queued."""


T = TypeVar("T", bound=Aged)
_Entry = tuple[int, int, int, T]


class EvictionQueue(Generic[T]):
    """Orders items by their last use; of the same age, the deeper first. Each item is in it at most once."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[_Entry[T]]] = {}
        self._heads: list[tuple[int, int, int, str]] = []
        self._serial = count()
        self._size = self._withdrawn = 0
        """Entries of all heaps, and how many of them may have been withdrawn."""

    def __iter__(self) -> Iterator[T]:
        return (entry[3] for heap in self._heaps.values() for entry in heap)

    def offer(self, item: T) -> None:
        """Queue an item if it is evictable and not queued yet."""
        if item.evictable and not item.queued:
            item.queued = True
            heap = self._heaps.setdefault(item.partition, [])
            entry = (item.tick, -item.depth, next(self._serial), item)
            heapq.heappush(heap, entry)
            self._size += 1
            if heap[0] is entry:
                heapq.heappush(self._heads, (*entry[:3], item.partition))

    def peek(self, partition: str | None = None) -> T | None:
        """Return the item to evict next, of one partition or of all; None if none may be evicted."""
        while (owner := self._oldest() if partition is None else partition) is not None:
            heap = self._heaps.get(owner)
            if not heap:
                return None
            tick, _, _, item = heap[0]
            if item.evictable and item.tick == tick:
                return item
            self._take(owner)
            self.offer(item)  # used since it was queued: it goes back with its new tick
        return None

    def pop(self, partition: str | None = None) -> T | None:
        """Remove and return the item to evict next, of one partition or of all; None if none may be evicted."""
        item = self.peek(partition)
        if item is not None:
            self._take(item.partition)
        return item

    def withdraw(self, item: T) -> None:
        """Note that an item will never be evictable again."""
        self._withdrawn += item.queued
        self._prune()

    def _prune(self) -> None:
        """Drop all items that are not evictable, if more than half of all may have been withdrawn."""
        if 2 * self._withdrawn <= self._size:
            return
        for partition, heap in list(self._heaps.items()):
            first, keep = heap[0], [entry for entry in heap if entry[3].evictable]
            for *_, item in heap:
                item.queued = item.evictable
            heapq.heapify(keep)
            self._heaps[partition] = keep
            if not keep or keep[0] is not first:  # the copy of an entry that stays is there
                self._show_head(partition)
        self._size, self._withdrawn = sum(map(len, self._heaps.values())), 0

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
        self._size -= 1
        self._show_head(partition)
        self._prune()

    def _show_head(self, partition: str) -> None:
        heap = self._heaps[partition]
        if heap:
            heapq.heappush(self._heads, (*heap[0][:3], partition))
        else:
            del self._heaps[partition]
