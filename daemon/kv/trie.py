"""
The index of the prefix cache, an uncompressed trie of 16-token blocks.

Pure policy over opaque payloads: no mlx, no clock, one thread. An edge is the token ids of a block or a tail, so a path
is a prefix and a match compares tokens, never hashes. Nodes are neither split nor merged.

A block moves through these states:

    insert()              stored: lookups find it
    match(), insert()     locked: a lease holds it, and it is not evicted
    drop_oldest()         gone: it was a leaf without a lock or a keep, least recently used
    detach()              forgotten: gone at once if unlocked, else an orphan that goes with its last lease
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

from daemon.kv.eviction_queue import EvictionQueue
from daemon.kv.extent_ledger import ExtentLedger
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Checkpoint, Extent, Node, Tree
from daemon.kv.place import Place

Choose = Callable[[list[Node]], Place]
"""Returns the place, on a stored path of blocks or right behind it, at which a request can go on."""


class PrefixTrie(Tree):
    """
    A tree that holds KV: stores, finds, evicts and forgets prefixes.

    Lookup and insert cost O(blocks of the prompt), eviction of a block O(log stored blocks).

    Attributes:
        ledger: Bytes and buffers of the stored KV.
        blocks: Blocks and tails that a lookup can find.
        tails: How many of them are tails.
        partition_blocks: Blocks of each partition that has any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ExtentLedger()
        self.blocks = self.tails = 0
        self.partition_blocks: Counter[str] = Counter()
        self._leases: set[PrefixLease] = set()
        self._orphans: set[Node] = set()
        self._leaves: EvictionQueue[Node] = EvictionQueue()
        self._checkpoints: EvictionQueue[Checkpoint] = EvictionQueue()
        self._ticks = count(1)

    @property
    def leases(self) -> int:
        """Leases that are not released."""
        return len(self._leases)

    def ends_of_others(self, lease: PrefixLease) -> set[Node]:
        """Return the last nodes of all leases but one."""
        return {other.nodes[-1] for other in self._leases if other is not lease and other.nodes}

    def match(self, namespace: str, keys: Sequence[bytes], choose: Choose = Place) -> PrefixLease:
        """
        Lease the place that is chosen on the longest stored path along `keys`, or right behind it; by default its end.

        The whole stored path along `keys` is marked as used now, and so is the checkpoint at the end of the match.
        """
        path = self.walk(namespace, keys)
        tick = next(self._ticks)
        nodes, unused = choose(path)
        self.ledger.locking(nodes)
        for node in nodes:
            node.tick = tick
            node.locks += 1
        for node in path[max(0, len(nodes) - 1) :]:  # a tail may stand at the place of its first block
            node.tick = tick
        checkpoint = nodes[-1].checkpoint if nodes else None
        if checkpoint is not None:
            checkpoint.tick = tick
        lease = PrefixLease(namespace, list(nodes), len(path) * BLOCK_TOKENS, self._release, unused)
        self._leases.add(lease)
        return lease

    def insert(self, lease: PrefixLease, keys: Sequence[bytes], extents: tuple[Extent | None, ...]) -> int:
        """
        Store blocks right after the path of a lease, and lease them too.

        So no stored prefix has a hole, and no block is evicted to make room for the block after it. Blocks that are
        stored already keep their KV.

        Args:
            lease: Holds the path before them.
            keys: Their tokens.
            extents: Their KV, one extent for each layer group; its first block is the first of `keys`.

        Returns:
            How many blocks were new.

        Raises:
            KeyError: If the path was forgotten meanwhile.
        """
        node = lease.nodes[-1] if lease.nodes else self.root(lease.namespace)
        if node.detached:
            raise KeyError("the path of the lease was forgotten")
        tick, blocks_before = next(self._ticks), self.blocks
        stored = []
        for key in keys:
            node = node.child(key) or self._add(node, key, extents)
            node.tick = tick
            stored.append(node)
        self.ledger.locking(stored)
        for node in stored:
            node.locks += 1
        lease.nodes += stored
        return self.blocks - blocks_before

    def fill(self, lease: PrefixLease, group: int, extent: Extent) -> None:
        """Give blocks of a leased path that lack the KV of one layer group that KV."""
        self._replace(lease.nodes[extent.start : extent.stop], group, extent)

    def thin(self, nodes: Sequence[Node], group: int) -> None:
        """Drop the KV of one layer group from blocks: its window has moved past them."""
        self._replace([node for node in nodes if node.extents[group] is not None], group, None)

    def attach(self, lease: PrefixLease, checkpoint: Checkpoint) -> None:
        """Give the last block of a leased path a checkpoint, unless it has one."""
        node = lease.nodes[-1]
        if node.checkpoint is None and not node.detached:
            checkpoint.tick = node.tick
            node.checkpoint = checkpoint
            self.ledger.keep(checkpoint, node)

    def mark(self) -> int:
        """Return a tick that is later than those of all uses so far, and earlier than those of all to come."""
        return next(self._ticks)

    def oldest(self) -> int | None:
        """Return the tick of what `drop_oldest` would drop with checkpoints; None if it would drop nothing."""
        items = (self._leaves.peek(), self._checkpoints.peek())
        return min((item.tick for item in items if item is not None), default=None)

    def leaves(self, since: int, before: int) -> list[Node]:
        """Return the blocks at the end of a path that may be evicted and were last used between two ticks."""
        return [node for node in self._leaves if node.evictable and since <= node.tick < before]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that may be evicted."""
        return [checkpoint for checkpoint in self._checkpoints if checkpoint.evictable]

    @property
    def leased_bytes(self) -> int:
        """Bytes that leases hold, and that are not evicted before these end."""
        return self.ledger.leased_bytes

    def drop_oldest(self, partition: str | None = None, *, checkpoints: bool) -> bool:
        """
        Drop what was used longest ago: an unlocked leaf, or a checkpoint, which goes before leaves of the same age.

        Args:
            partition: Partition to drop from; None for all of them.
            checkpoints: Whether a checkpoint may go. It frees memory but no block.

        Returns:
            Whether anything was dropped. If not, all that is left is leased or kept.
        """
        leaf, checkpoint = self._leaves.peek(partition), self._checkpoints.peek(partition)
        older = checkpoint is not None and (leaf is None or checkpoint.tick <= leaf.tick)
        if checkpoint is not None and older and checkpoints:
            self._checkpoints.pop(partition)
            self.drop_checkpoint(checkpoint)
        elif leaf is not None:
            self._drop_leaf(partition)
        else:
            return False
        return True

    def drop_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Drop a checkpoint that is stored."""
        assert checkpoint.node is not None, "a checkpoint was dropped twice"
        checkpoint.node.checkpoint = None
        self.ledger.lose(checkpoint)
        self._checkpoints.withdraw(checkpoint)

    def offer(self, node: Node) -> None:
        """Let a block and its checkpoint be evicted again, as far as nothing else holds them."""
        self._leaves.offer(node)
        if node.checkpoint is not None:
            self._checkpoints.offer(node.checkpoint)

    def compact(self, copy: Callable[[Extent, int, int], Extent]) -> None:
        """
        Copy the blocks in use of each sparse extent into new extents, and free the old ones.

        Args:
            copy: Returns an extent of the blocks from one position of an extent to another. Its errors pass through;
                extents that were copied before stay.
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
        """Forget nodes and everything below them. KV that a lease still holds is freed when the lease ends."""
        nodes = self.subtree(tops)
        parents = [top.parent for top in tops if top.parent is not None]
        for top in tops:
            self.unlink(top)
        for node in nodes:
            node.detached, node.parent = True, None
            node.disown_all()
            self._count(-1, node)
            self._leaves.withdraw(node)
            if node.locks:
                self._orphans.add(node)
            else:
                self._free(node)
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
        assert self.tails == sum(node.is_tail for node in nodes), "tails drifted"
        assert len(nodes) == self.blocks, f"{self.blocks} blocks counted, {len(nodes)} stored"
        assert self.blocks == self.partition_blocks.total(), "shares drifted"
        for partition, blocks in Counter(node.partition for node in nodes).items():
            assert self.partition_blocks[partition] == blocks, "shares drifted"
        assert self._orphans == {node for node in held if node.detached}, "an orphan is lost"
        assert all(node.locks == held[node] for node in self._orphans), "locks and leases of an orphan disagree"
        queue = list(self._leaves)
        assert len(queue) == len(set(queue)), "a node is queued twice"
        dead = {node for node in queue if node.detached}
        assert set(queue) - dead == {node for node in nodes if node.queued}, "the eviction queue lost or made up a node"
        assert 2 * len(dead) <= len(queue), "the eviction queue holds too many dead nodes"
        checkpoints = list(self._checkpoints)
        assert len(checkpoints) == len(set(checkpoints)), "a checkpoint is queued twice"
        lost = sum(checkpoint.node is None for checkpoint in checkpoints)
        assert 2 * lost <= len(checkpoints), "the eviction queue holds too many lost checkpoints"
        self.ledger.check([*nodes, *self._orphans])

    def _add(self, parent: Node, key: bytes, extents: tuple[Extent | None, ...]) -> Node:
        child = self.grow(parent, key)
        child.extents = extents
        for extent in extents:
            if extent is not None:
                self.ledger.take(extent, child)
        self._count(1, child)
        return child

    def _replace(self, nodes: Sequence[Node], group: int, extent: Extent | None) -> None:
        """Change which extent holds the KV of one layer group of some blocks; None for no KV."""
        # Blocks that were stored together share one tuple, and go on sharing one: there may be a million of them.
        shared: dict[int, tuple[Extent | None, ...]] = {}
        for node in nodes:
            old = node.extents
            new = shared.get(id(old)) or (*old[:group], extent, *old[group + 1 :])
            shared[id(old)] = node.extents = new
            if extent is not None:
                self.ledger.take(extent, node)
            if (dropped := old[group]) is not None:
                self.ledger.drop(dropped, node)

    def _drop_leaf(self, partition: str | None) -> None:
        leaf = self._leaves.pop(partition)
        assert leaf is not None, "a leaf went between peek and pop"
        parent = leaf.parent
        assert parent is not None, "a leaf without a parent was queued"
        self.unlink(leaf)
        self._free(leaf)
        self._leaves.offer(parent)
        self._count(-1, leaf)

    def _count(self, blocks: int, node: Node) -> None:
        counters = node.counters
        self.blocks += blocks
        self.tails += blocks * node.is_tail
        counters.blocks += blocks
        self.partition_blocks[counters.partition] += blocks
        if not self.partition_blocks[counters.partition]:
            del self.partition_blocks[counters.partition]

    def _free(self, node: Node) -> None:
        extents, node.extents = node.extents, ()
        for extent in extents:
            if extent is not None:
                self.ledger.drop(extent, node)
        if node.checkpoint is not None:
            self.drop_checkpoint(node.checkpoint)

    def _release(self, lease: PrefixLease) -> None:
        self._leases.remove(lease)
        for node in lease.nodes:
            node.locks -= 1
        self.ledger.unlocked(lease.nodes)
        for node in lease.nodes:
            if node.detached and not node.locks:
                self._orphans.remove(node)
                self._free(node)
            elif node.checkpoint is not None:
                self._checkpoints.offer(node.checkpoint)
        deepest = next((node for node in reversed(lease.nodes) if not node.detached), None)
        if deepest is not None:
            self._leaves.offer(deepest)
