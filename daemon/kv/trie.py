"""
The index of the prefix cache: an uncompressed trie of 16-token blocks.

Pure policy over opaque slots: no mlx, no clock, one thread. An edge is a block's token ids, so a path is a prefix and
a match compares tokens, never hashes. Nodes are neither split nor merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent, ExtentLedger, Slot
from daemon.kv.leaves import LeafQueue
from daemon.kv.node import Node
from daemon.kv.tally import Tally


class Lease:
    """
    Holds the nodes of one match against eviction. Release it exactly once, or use it as a context manager.

    Attributes:
        namespace: Where the match is.
        nodes: The matched path, root excluded, shallowest first.
    """

    __slots__ = ("_released", "_trie", "namespace", "nodes")

    def __init__(self, trie: PrefixTrie, namespace: str, nodes: list[Node]) -> None:
        self.namespace = namespace
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
    """
    Stores and finds prefixes. Lookup and insert cost O(blocks of the prompt); eviction O(log stored blocks).

    Attributes:
        ledger: What the stored KV takes.
        blocks: Blocks that a lookup can find.
    """

    def __init__(self) -> None:
        self.ledger = ExtentLedger()
        self.blocks = 0
        self._roots: dict[str, Node] = {}
        self._leases: set[Lease] = set()
        self._orphans: set[Node] = set()
        self._leaves = LeafQueue()
        self._ticks = count(1)

    @property
    def leases(self) -> int:
        """Leases that are not released."""
        return len(self._leases)

    def tallies(self) -> dict[str, tuple[Tally, int]]:
        """Return, for each namespace that stores anything, its tally and how many different first blocks it has."""
        return {namespace: (root.tally, len(root.children)) for namespace, root in self._roots.items()}

    def match(self, namespace: str, keys: Sequence[bytes]) -> Lease:
        """Lease the longest stored prefix of `keys`, which may be empty, and mark it as used now."""
        nodes = list(self._walk(namespace, keys))
        tick = next(self._ticks)
        for node in nodes:
            node.tick = tick
            node.locks += 1
        lease = Lease(self, namespace, nodes)
        self._leases.add(lease)
        return lease

    def insert(self, lease: Lease, keys: Sequence[bytes], slots: Sequence[tuple[Slot, ...]]) -> int:
        """
        Store blocks right after the path of a lease, and lease them too: no prefix has a hole, and none of it is
        evicted for its own sequel. Blocks that are stored already keep what they have.

        Returns:
            How many blocks were new.

        Raises:
            KeyError: If the path was forgotten meanwhile.
        """
        node = lease.nodes[-1] if lease.nodes else self._root(lease.namespace)
        if node.detached:
            raise KeyError("the path of the lease was forgotten")
        tick = next(self._ticks)
        before = self.blocks
        for key, block in zip(keys, slots, strict=True):
            node = node.children.get(key) or self._add(node, key, block)
            node.tick = tick
            node.locks += 1
            lease.nodes.append(node)
        return self.blocks - before

    def evict(self, fits: Callable[[], bool]) -> int:
        """
        Drop unlocked leaves, least recently used first, until `fits()`.

        Returns:
            How many blocks were dropped. If `fits()` is still false, everything left is leased.
        """
        before = self.blocks
        while not fits():
            victim = self._leaves.pop()
            if victim is None:
                break
            parent = victim.parent
            assert parent is not None, "a leaf without a parent was queued"
            self._unlink(victim)
            self._count(victim, -1)
            self._free(victim)
            self._leaves.offer(parent)
        return before - self.blocks

    def tops(self, accept: Callable[[str], bool]) -> list[Node]:
        """Return the topmost blocks of the namespaces that are accepted."""
        roots = [root for namespace, root in self._roots.items() if accept(namespace)]
        return [child for root in roots for child in root.children.values()]

    def branches(self, namespace: str, keys: Sequence[bytes], accept: Callable[[bytes], bool]) -> list[Node]:
        """
        Return the topmost blocks that lead only to prompts which begin with `keys` and then an accepted block.

        A stored path that ends on the way counts too: its prompt may have gone on that way.
        """
        path = list(self._walk(namespace, keys))
        if len(path) == len(keys):
            last = path[-1] if path else self._roots.get(namespace)
            found = [child for key, child in last.children.items() if accept(key)] if last is not None else []
        else:
            found = []
        if not found and path and not path[-1].children:
            found = path[-1:]
        return _with_lone_ancestors(found)

    def subtree(self, tops: Sequence[Node]) -> list[Node]:
        """Return nodes and everything below them."""
        nodes = list(tops)
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    def orphan_uses(self) -> Counter[Extent]:
        """Return how many forgotten blocks, held by leases alone, use each extent."""
        return _uses(self._orphans)

    def detach(self, tops: Sequence[Node]) -> None:
        """Forget nodes and everything below them at once. What a lease still holds is freed when the lease ends."""
        nodes = self.subtree(tops)
        parents = [top.parent for top in tops if top.parent is not None]
        for top in tops:
            self._unlink(top)
        for node in nodes:
            node.detached, node.parent = True, None
            node.children.clear()
            self._count(node, -1)
            if node.locks:
                self._orphans.add(node)
            else:
                self._free(node)
        self._leaves.prune()
        for parent in parents:
            self._leaves.offer(parent)

    def check_integrity(self) -> None:
        """
        Recount everything.

        Raises:
            AssertionError: If pointers, counts, locks, the eviction queue or bytes disagree.
        """
        held = Counter(node for lease in self._leases for node in lease.nodes)
        nodes = self.subtree(self.tops(lambda _: True))
        for node in nodes:
            assert node.parent is not None, "a stored block has no parent"
            assert node.parent.children.get(node.key) is node, "parent and child disagree"
            assert node.depth == node.parent.depth + 1, "depth is wrong"
            assert not node.detached, "a detached block is reachable"
            assert node.locks == held[node], "locks and leases disagree"
            assert node.slots, "a stored block has no KV"
            assert node.queued or not node.evictable, "an evictable leaf is not queued"
        for root in self._roots.values():
            assert root.parent is None, "a root has a parent"
            assert root.children, "an empty root was kept"
            below = self.subtree(list(root.children.values()))
            assert all(node.tally is root.tally for node in below), "a block is tallied elsewhere"
            assert root.tally.blocks == len(below), "blocks of a namespace are miscounted"
            assert root.tally.nbytes == sum(map(_block_bytes, below)), "bytes of a namespace are miscounted"
        assert len(nodes) == self.blocks, f"{self.blocks} blocks counted, {len(nodes)} stored"
        assert self._orphans == {node for node in held if node.detached}, "an orphan is lost"
        assert all(node.locks == held[node] for node in self._orphans), "locks and leases of an orphan disagree"
        queue = list(self._leaves)
        assert len(queue) == len(set(queue)), "a node is queued twice"
        assert set(queue) == {node for node in nodes if node.queued}, "the eviction queue holds dead nodes"
        self.ledger.check(_uses(nodes) + self.orphan_uses())

    def _root(self, namespace: str) -> Node:
        return self._roots.get(namespace) or Node(namespace.encode(), None, 0, Tally())

    def _walk(self, namespace: str, keys: Sequence[bytes]) -> Iterator[Node]:
        node = self._roots.get(namespace)
        for key in keys:
            node = node.children.get(key) if node is not None else None
            if node is None:
                return
            yield node

    def _add(self, parent: Node, key: bytes, slots: tuple[Slot, ...]) -> Node:
        if parent.depth == 0:
            self._roots[parent.key.decode()] = parent
        child = parent.children[key] = Node(key, parent, parent.depth + 1, parent.tally, slots)
        for slot in slots:
            self.ledger.take(slot)
        self._count(child, 1)
        return child

    def _unlink(self, node: Node) -> None:
        parent, node.parent = node.parent, None
        assert parent is not None, "a block left the trie twice"
        del parent.children[node.key]
        if parent.depth == 0 and not parent.children:
            del self._roots[parent.key.decode()]

    def _count(self, node: Node, change: int) -> None:
        """Note that a block came (1) or went (-1); its slots are still there."""
        self.blocks += change
        node.tally.blocks += change
        node.tally.nbytes += change * _block_bytes(node)

    def _free(self, node: Node) -> None:
        slots, node.slots = node.slots, ()
        for slot in slots:
            self.ledger.drop(slot)

    def _release(self, lease: Lease) -> None:
        self._leases.remove(lease)
        for node in lease.nodes:
            node.locks -= 1
            if node.detached and not node.locks:
                self._orphans.remove(node)
                self._free(node)
        deepest = next((node for node in reversed(lease.nodes) if not node.detached), None)
        if deepest is not None:
            self._leaves.offer(deepest)


def _block_bytes(node: Node) -> int:
    return sum(slot.extent.nbytes // slot.extent.blocks for slot in node.slots)


def _with_lone_ancestors(tops: Sequence[Node]) -> list[Node]:
    """Move siblings up together to their highest ancestor that leads to nothing else."""
    chosen = list(tops)
    while chosen and (up := chosen[0].parent) is not None and up.depth > 0 and len(up.children) == len(chosen):
        chosen = [up]
    return chosen


def _uses(nodes: Sequence[Node] | set[Node]) -> Counter[Extent]:
    return Counter(slot.extent for node in nodes for slot in node.slots)
