"""
The index of the prefix cache: an uncompressed trie of 16-token blocks.

Pure policy over opaque payloads: no mlx, no clock, one thread. An edge is a block's token ids, so a path is a prefix
and a match compares tokens, never hashes. Nodes are neither split nor merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import count

from daemon.kv.eviction_queue import EvictionQueue
from daemon.kv.extent_ledger import ExtentLedger
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Checkpoint, Extent, NamespaceCounters, Node
from daemon.kv.tree import Tree

Restorable = Callable[[Sequence[Node]], int]
"""Returns after how many blocks of a stored path a request can go on."""


class Lack(Enum):
    """What there is too little of."""

    NOTHING = auto()
    BLOCKS = auto()
    MEMORY = auto()


class PrefixTrie(Tree):
    """
    A tree that holds KV: stores and finds prefixes. Lookup and insert cost O(blocks of the prompt); eviction
    O(log stored blocks).

    Attributes:
        ledger: What the stored KV takes.
        blocks: Blocks that a lookup can find.
        shares: Those of each partition that has any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ExtentLedger()
        self.blocks = 0
        self.shares: Counter[str] = Counter()
        self._leases: set[PrefixLease] = set()
        self._orphans: set[Node] = set()
        self._leaves: EvictionQueue[Node] = EvictionQueue()
        self._checkpoints: EvictionQueue[Checkpoint] = EvictionQueue()
        self._ticks = count(1)

    @property
    def leases(self) -> int:
        """Leases that are not released."""
        return len(self._leases)

    def match(self, namespace: str, keys: Sequence[bytes], restorable: Restorable = len) -> PrefixLease:
        """
        Lease the longest stored prefix of `keys` that is restorable, which may be empty.

        All that is stored on the way of `keys` is marked as used now, and so is the checkpoint at the end of the match.
        """
        path = self.walk(namespace, keys)
        tick = next(self._ticks)
        nodes = path[: restorable(path)]
        for node in nodes:
            node.tick = tick
            node.locks += 1
        for node in path[len(nodes) :]:
            node.tick = tick
        checkpoint = nodes[-1].checkpoint if nodes else None
        if checkpoint is not None:
            checkpoint.tick = tick
        lease = PrefixLease(namespace, nodes, len(path) * BLOCK_TOKENS, self._release)
        self._leases.add(lease)
        return lease

    def insert(self, lease: PrefixLease, keys: Sequence[bytes], extents: tuple[Extent | None, ...]) -> int:
        """
        Store blocks right after the path of a lease, and lease them too: no prefix has a hole, and none of it is
        evicted for its own sequel. Blocks that are stored already keep what they have.

        Args:
            lease: Holds the path before them.
            keys: Their tokens.
            extents: Their KV, one extent for each layer group, whose first block is the first of `keys`.

        Returns:
            How many blocks were new.

        Raises:
            KeyError: If the path was forgotten meanwhile.
        """
        node = lease.nodes[-1] if lease.nodes else self.root(lease.namespace)
        if node.detached:
            raise KeyError("the path of the lease was forgotten")
        tick, before = next(self._ticks), self.blocks
        for key in keys:
            node = node.child(key) or self._add(node, key, extents)
            node.tick = tick
            node.locks += 1
            lease.nodes.append(node)
        return self.blocks - before

    def fill(self, lease: PrefixLease, group: int, extent: Extent) -> None:
        """Give blocks of a leased path, which have none, the KV of one layer group."""
        self._replace(lease.nodes[extent.start : extent.stop], group, extent)

    def thin(self, nodes: Sequence[Node], group: int) -> None:
        """Take the KV of one layer group from blocks: its window has moved past them."""
        self._replace([node for node in nodes if node.extents[group] is not None], group, None)

    def attach(self, lease: PrefixLease, checkpoint: Checkpoint) -> None:
        """Give the last block of a leased path a checkpoint; it keeps one that it has."""
        node = lease.nodes[-1]
        if node.checkpoint is None and not node.detached:
            checkpoint.tick = node.tick
            node.checkpoint = checkpoint
            self.ledger.keep(checkpoint, node)

    def evict(self, lack: Callable[[], Lack], partition: str | None = None) -> int:
        """
        Drop what was used longest ago until nothing lacks: unlocked leaves, and checkpoints, which go before leaves of
        the same age, and stay if only blocks lack.

        Args:
            lack: Tells what there is too little of.
            partition: Whose to drop; None for everybody's.

        Returns:
            How many blocks were dropped. If something still lacks, everything left is leased.
        """
        before = self.blocks
        while (lacking := lack()) is not Lack.NOTHING:
            leaf, checkpoint = self._leaves.peek(partition), self._checkpoints.peek(partition)
            older = checkpoint is not None and (leaf is None or checkpoint.tick <= leaf.tick)
            if checkpoint is not None and older and lacking is Lack.MEMORY:
                self._checkpoints.pop(partition)
                self._lose_checkpoint(checkpoint)
            elif leaf is not None:
                self._drop_leaf(partition)
            else:
                break
        return before - self.blocks

    def compact(self, copy: Callable[[Extent, int, int], Extent]) -> None:
        """
        Copy what is in use of each sparse extent into new ones, so that the rest of its bytes is freed.

        Args:
            copy: Returns an extent of the blocks from one position of an extent to another. An error in it passes
                through; what was copied before it stays.
        """
        for extent in list(self.ledger.sparse):
            for first, last in list(extent.spans()):
                users = [user for user in extent.users[first:last] if user is not None]
                group = users[0].extents.index(extent)
                self._replace(users, group, copy(extent, first, last))

    def orphans(self) -> frozenset[Node]:
        """Return the forgotten blocks that leases still hold."""
        return frozenset(self._orphans)

    def detach(self, tops: Sequence[Node]) -> None:
        """Forget nodes and everything below them at once. What a lease still holds is freed when the lease ends."""
        nodes = self.subtree(tops)
        parents = [top.parent for top in tops if top.parent is not None]
        for top in tops:
            self.unlink(top)
        for node in nodes:
            node.detached, node.parent = True, None
            node.disown_all()
            self._count(-1, node.tally)
            if node.locks:
                self._orphans.add(node)
            else:
                self._free(node)
        self._leaves.prune()
        self._checkpoints.prune()
        for parent in parents:
            self._leaves.offer(parent)

    def check_integrity(self) -> None:
        """
        Recount everything.

        Raises:
            AssertionError: If pointers, counts, locks, the eviction queues or bytes disagree.
        """
        held = Counter(node for lease in self._leases for node in lease.nodes)
        nodes = self.subtree(self.tops(lambda _: True))
        self.check_shape(nodes)
        for node in nodes:
            assert not node.detached, "a detached block is reachable"
            assert node.locks == held[node], "locks and leases disagree"
            assert node.queued or not node.evictable, "an evictable leaf is not queued"
            checkpoint = node.checkpoint
            assert checkpoint is None or checkpoint.queued or not checkpoint.evictable, "a checkpoint is not queued"
        assert len(nodes) == self.blocks == self.shares.total(), f"{self.blocks} blocks counted, {len(nodes)} stored"
        for partition, blocks in Counter(node.partition for node in nodes).items():
            assert self.shares[partition] == blocks, "shares drifted"
        assert self._orphans == {node for node in held if node.detached}, "an orphan is lost"
        assert all(node.locks == held[node] for node in self._orphans), "locks and leases of an orphan disagree"
        queue = list(self._leaves)
        assert len(queue) == len(set(queue)), "a node is queued twice"
        assert set(queue) == {node for node in nodes if node.queued}, "the eviction queue holds dead nodes"
        checkpoints = list(self._checkpoints)
        assert len(checkpoints) == len(set(checkpoints)), "a checkpoint is queued twice"
        self.ledger.check([*nodes, *self._orphans])

    def _add(self, parent: Node, key: bytes, extents: tuple[Extent | None, ...]) -> Node:
        child = self.grow(parent, key)
        child.extents = extents
        for extent in extents:
            if extent is not None:
                self.ledger.take(extent, child)
        self._count(1, child.tally)
        return child

    def _replace(self, nodes: Sequence[Node], group: int, extent: Extent | None) -> None:
        """Change where blocks have the KV of a layer group. Blocks that were stored together go on sharing a tuple."""
        shared: dict[int, tuple[Extent | None, ...]] = {}
        for node in nodes:
            old, before = node.extents[group], node.extents
            after = shared.get(id(before)) or (*before[:group], extent, *before[group + 1 :])
            shared[id(before)] = node.extents = after
            if extent is not None:
                self.ledger.take(extent, node)
            if old is not None:
                self.ledger.drop(old, node)

    def _drop_leaf(self, partition: str | None) -> None:
        leaf = self._leaves.pop(partition)
        assert leaf is not None, "a leaf went between peek and pop"
        parent = leaf.parent
        assert parent is not None, "a leaf without a parent was queued"
        self.unlink(leaf)
        self._free(leaf)
        self._leaves.offer(parent)
        self._count(-1, leaf.tally)

    def _count(self, blocks: int, tally: NamespaceCounters) -> None:
        self.blocks += blocks
        tally.blocks += blocks
        self.shares[tally.partition] += blocks
        if not self.shares[tally.partition]:
            del self.shares[tally.partition]

    def _free(self, node: Node) -> None:
        extents, node.extents = node.extents, ()
        for extent in extents:
            if extent is not None:
                self.ledger.drop(extent, node)
        if node.checkpoint is not None:
            self._lose_checkpoint(node.checkpoint)

    def _lose_checkpoint(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.node is not None, "a checkpoint was dropped twice"
        checkpoint.node.checkpoint = None
        self.ledger.lose(checkpoint)

    def _release(self, lease: PrefixLease) -> None:
        self._leases.remove(lease)
        for node in lease.nodes:
            node.locks -= 1
            if node.detached and not node.locks:
                self._orphans.remove(node)
                self._free(node)
            elif node.checkpoint is not None:
                self._checkpoints.offer(node.checkpoint)
        deepest = next((node for node in reversed(lease.nodes) if not node.detached), None)
        if deepest is not None:
            self._leaves.offer(deepest)
