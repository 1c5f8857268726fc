"""
The index of the prefix cache: an uncompressed trie of 16-token blocks.

Pure policy over opaque slots: no mlx, no clock, one thread. An edge is a block's token ids, so a path is a prefix and
a match compares tokens, never hashes. Nodes are neither split nor merged.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent, ExtentLedger, Slot


@dataclass(slots=True, eq=False)
class Node:
    """
    One block below its prefix. A root stands for the empty prefix of a namespace and has no slots.

    Attributes:
        key: The block's token ids; the namespace for a root.
        parent: The node of the prefix before it; None for a root and once it is detached.
        depth: Blocks from the root.
        slots: Where its KV is, one for each layer group.
        locks: Leases that hold it or a node below it.
        tick: When it was last used; larger is later.
        queued: Whether the eviction queue knows it.
        detached: Whether it was forgotten while leased.
    """

    key: bytes
    parent: Node | None
    depth: int
    slots: tuple[Slot, ...] = ()
    children: dict[bytes, Node] = field(default_factory=dict)
    locks: int = 0
    tick: int = 0
    queued: bool = False
    detached: bool = False


class Lease:
    """
    Holds the nodes of one match against eviction. Release it exactly once, or use it as a context manager.

    Attributes:
        nodes: The matched path, root excluded, shallowest first.
    """

    __slots__ = ("_released", "_trie", "nodes")

    def __init__(self, trie: PrefixTrie, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._trie = trie
        self._released = False

    @property
    def tokens(self) -> int:
        """Tokens of the match."""
        return len(self.nodes) * BLOCK_TOKENS

    def release(self) -> None:
        """
        Let the nodes go.

        Raises:
            RuntimeError: If it was released before.
        """
        if self._released:
            raise RuntimeError("a lease was released twice")
        self._released = True
        self._trie._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class PrefixTrie:
    """Stores and finds prefixes. Lookup and insert cost O(blocks of the prompt); eviction O(log stored blocks)."""

    def __init__(self) -> None:
        self.ledger = ExtentLedger()
        self.blocks = 0
        self.leases = 0
        self._roots: dict[str, Node] = {}
        self._ticks = count(1)
        self._serial = count()
        self._queue: list[tuple[int, int, int, Node]] = []

    def match(self, namespace: str, keys: Sequence[bytes]) -> Lease:
        """Lease the longest stored prefix of `keys`, which may be empty, and mark it as used now."""
        nodes = list(self._walk(namespace, keys))
        tick = next(self._ticks)
        for node in nodes:
            node.tick = tick
            node.locks += 1
        self.leases += 1
        return Lease(self, nodes)

    def stored(self, namespace: str, keys: Sequence[bytes]) -> int:
        """Return how many blocks of `keys` are stored, counted from the first, without marking them as used."""
        return sum(1 for _ in self._walk(namespace, keys))

    def insert(self, namespace: str, keys: Sequence[bytes], start: int, slots: Sequence[tuple[Slot, ...]]) -> int:
        """
        Store blocks `start` to `start + len(slots)` of `keys`. Blocks that are stored already keep what they have.

        Returns:
            How many blocks were new.

        Raises:
            KeyError: If a block before `start` is not stored: a prefix must have no holes.
        """
        if self.stored(namespace, keys[:start]) < start:
            raise KeyError(f"block {start} of a prefix that is not stored")
        node = self._roots.setdefault(namespace, Node(namespace.encode(), None, 0))
        for key in keys[:start]:
            node = node.children[key]
        tick = next(self._ticks)
        added = 0
        for key, block in zip(keys[start:], slots, strict=False):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(key, node, node.depth + 1, block)
                self._account(child)
                added += 1
            child.tick = tick
            node = child
        if added:
            self._queue_leaf(node)
        return added

    def evict(self, fits: Callable[[], bool]) -> int:
        """
        Drop unlocked leaves, least recently used first, until `fits()`.

        Returns:
            How many blocks were dropped. If `fits()` is still false, everything left is leased.
        """
        dropped = 0
        while not fits():
            victim = self._next_victim()
            if victim is None:
                break
            parent = victim.parent
            assert parent is not None
            self._unlink(victim)
            self._free(victim)
            self._queue_leaf(parent)
            self.blocks -= 1
            dropped += 1
        return dropped

    def tops(self, accept: Callable[[str], bool]) -> list[Node]:
        """Return the topmost blocks of the namespaces that are accepted."""
        roots = [root for namespace, root in self._roots.items() if accept(namespace)]
        return [child for root in roots for child in root.children.values()]

    def below(self, namespace: str, keys: Sequence[bytes], accept: Callable[[bytes], bool]) -> list[Node]:
        """Return the blocks right after the prefix `keys` whose key is accepted; none if the prefix is not stored."""
        node = self._roots.get(namespace)
        for key in keys:
            if node is None:
                return []
            node = node.children.get(key)
        return [] if node is None else [child for key, child in node.children.items() if accept(key)]

    def subtree(self, tops: Sequence[Node]) -> Iterator[Node]:
        """Iterate over nodes and everything below them."""
        stack = list(tops)
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def with_lone_ancestors(self, tops: Sequence[Node]) -> list[Node]:
        """Move each node up to its highest ancestor that leads to nothing else."""
        chosen = set(tops)
        result: dict[Node, None] = {}
        for top in tops:
            node = top
            while (up := node.parent) is not None and up.parent is not None and set(up.children.values()) <= chosen:
                chosen.add(up)
                node = up
            result[node] = None
        return [node for node in result if node.parent not in chosen]

    def detach(self, tops: Sequence[Node]) -> None:
        """
        Forget nodes and everything below them at once. What a lease still holds is freed when the lease ends.
        """
        nodes = list(self.subtree(tops))
        self.blocks -= len(nodes)
        for top in tops:
            parent = top.parent
            self._unlink(top)
            if parent is not None:
                self._queue_leaf(parent)
        for node in nodes:
            node.detached = True
            if not node.locks:
                self._free(node)

    def check_integrity(self) -> None:
        """
        Recount everything.

        Raises:
            AssertionError: If pointers, counts, locks or bytes disagree.
        """
        live: dict[Extent, int] = {}
        blocks = 0
        for root in self._roots.values():
            assert root.parent is None, "a root has a parent"
            for node in self.subtree(list(root.children.values())):
                blocks += 1
                assert node.parent is not None, "a stored block has no parent"
                assert node.parent.children.get(node.key) is node, "parent and child disagree"
                assert node.depth == node.parent.depth + 1, "depth is wrong"
                assert not node.detached, "a detached block is reachable"
                assert node.locks >= max((c.locks for c in node.children.values()), default=0), "a lock is missing"
                assert node.children or node.locks or node.queued, "an evictable leaf is not queued"
                for slot in node.slots:
                    live[slot.extent] = live.get(slot.extent, 0) + 1
        assert blocks == self.blocks, f"{self.blocks} blocks counted, {blocks} stored"
        if not self.leases:
            self.ledger.check(live)

    def _walk(self, namespace: str, keys: Sequence[bytes]) -> Iterator[Node]:
        node = self._roots.get(namespace)
        for key in keys:
            node = node.children.get(key) if node is not None else None
            if node is None:
                return
            yield node

    def _account(self, node: Node) -> None:
        self.blocks += 1
        for slot in node.slots:
            self.ledger.take(slot)

    def _unlink(self, node: Node) -> None:
        parent, node.parent = node.parent, None
        if parent is None:
            return
        del parent.children[node.key]
        if parent.parent is None and not parent.children and not parent.detached:
            self._roots.pop(parent.key.decode(), None)

    def _free(self, node: Node) -> None:
        slots, node.slots = node.slots, ()
        for slot in slots:
            self.ledger.drop(slot)

    def _release(self, lease: Lease) -> None:
        self.leases -= 1
        for node in lease.nodes:
            node.locks -= 1
            if node.detached and not node.locks:
                self._free(node)
        deepest = next((node for node in reversed(lease.nodes) if not node.detached), None)
        if deepest is not None:
            self._queue_leaf(deepest)

    def _queue_leaf(self, node: Node) -> None:
        evictable = not (node.children or node.locks or node.detached or node.queued or node.parent is None)
        if evictable:
            node.queued = True
            heapq.heappush(self._queue, (node.tick, -node.depth, next(self._serial), node))

    def _next_victim(self) -> Node | None:
        while self._queue:
            tick, _, _, node = heapq.heappop(self._queue)
            node.queued = False
            if node.tick == tick and not (node.children or node.locks or node.parent is None):
                return node
            self._queue_leaf(node)
        return None
