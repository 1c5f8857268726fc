"""The eviction queue of the prefix trie."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from daemon.kv.node import Node


class LeafQueue:
    """
    Unlocked leaves, least recently used first; of one path, the deeper first.

    A leaf that is used again, locked or built upon stays where it is and is sorted out when its turn comes, so that
    only eviction pays, O(log leaves). Each node is in it at most once.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Node]] = []
        self._serial = count()

    def __iter__(self) -> Iterator[Node]:
        return (node for *_, node in self._heap)

    def offer(self, node: Node) -> None:
        """Queue a node if it is evictable and not queued yet."""
        if node.evictable and not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (node.tick, -node.depth, next(self._serial), node))

    def pop(self) -> Node | None:
        """Take the least recently used leaf; None if every node is locked or leads to one that is."""
        while self._heap:
            tick, _, _, node = heapq.heappop(self._heap)
            node.queued = False
            if node.evictable and node.tick == tick:
                return node
            self.offer(node)
        return None

    def prune(self) -> None:
        """Drop the nodes that were detached, which would otherwise stay in memory until their turn comes."""
        self._heap = [entry for entry in self._heap if not entry[3].detached]
        heapq.heapify(self._heap)
