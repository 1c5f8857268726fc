"""The nodes of the prefix trie, what they hold (counters, extents, checkpoints), and the tree that they make up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, TOKEN_BYTES, partition_of


@dataclass(slots=True, eq=False)
class Node:
    """
    One block after its prefix, or a tail: the 1 to 15 tokens behind the last block of a prompt or an answer.

    A tail is a leaf. A root stands for the empty prefix of a namespace and holds no KV. Most nodes have one child. They
    have no dictionary, because an index of a million blocks must stay small.

    Attributes:
        key: The token ids, see `block_keys`; fewer than a block's for a tail; the namespace for a root.
        parent: The node of the prefix before it; None for a root and for a node that has left the trie.
        depth: Blocks from the root.
        counters: Counters of its namespace, the same object in all its nodes.
        extents: The extent of each layer group that holds its KV; None where no KV of a window is kept.
        checkpoint: State of the recurrent layers after it.
        resumable: Whether its windows were stored to stay, and not only in passing (`Resume`).
        locks: Leases that hold it.
        kept: Keeps that hold it (`daemon/kv/keeps.py`).
        tick: Time of its last use, as a counter; larger is later.
        queued: Whether it is in the eviction queue.
        detached: Whether it was forgotten; a lease may still hold its KV.
        tails: How many of its children are tails.
    """

    key: bytes
    parent: Node | None
    depth: int
    counters: NamespaceCounters
    extents: tuple[Extent | None, ...] = ()
    checkpoint: Checkpoint | None = None
    resumable: bool = False
    locks: int = 0
    kept: int = 0
    tick: int = 0
    queued: bool = False
    detached: bool = False
    tails: int = 0
    _children: Node | dict[bytes, Node] | None = None

    @property
    def evictable(self) -> bool:
        """Whether it is a leaf that neither a lease nor a keep holds."""
        return self.parent is not None and self._children is None and not (self.locks or self.kept or self.detached)

    @property
    def partition(self) -> str:
        """Partition of the budget that its namespace counts against."""
        return self.counters.partition

    @property
    def is_tail(self) -> bool:
        """Whether it has fewer tokens than a block."""
        return self.depth > 0 and len(self.key) < KEY_BYTES

    @property
    def tokens(self) -> int:
        """Tokens of the block or the tail."""
        return len(self.key) // TOKEN_BYTES

    @property
    def end(self) -> int:
        """Tokens of its path."""
        return (self.depth - 1) * BLOCK_TOKENS + self.tokens

    def child(self, key: bytes) -> Node | None:
        """Return the child with a key, if there is one."""
        if isinstance(self._children, Node):
            return self._children if self._children.key == key else None
        return self._children.get(key) if self._children is not None else None

    def children(self) -> Iterator[Node]:
        """Yield all children."""
        if isinstance(self._children, Node):
            yield self._children
        elif self._children is not None:
            yield from self._children.values()

    @property
    def degree(self) -> int:
        """Number of its children."""
        return 1 if isinstance(self._children, Node) else len(self._children or ())

    def adopt(self, child: Node) -> None:
        """Add a child; no other child has its key."""
        self.tails += child.is_tail
        if self._children is None:
            self._children = child
        elif isinstance(self._children, Node):
            self._children = {self._children.key: self._children, child.key: child}
        else:
            self._children[child.key] = child

    def disown(self, child: Node) -> None:
        """Remove a child."""
        self.tails -= child.is_tail
        if isinstance(self._children, dict) and len(self._children) > 1:
            del self._children[child.key]
        else:
            self._children = None

    def disown_all(self) -> None:
        """Remove all children."""
        self.tails = 0
        self._children = None


@dataclass(slots=True, eq=False)
class NamespaceCounters:
    """
    Running totals of one namespace. They begin with its first block, and end when its last block is gone.

    Attributes:
        partition: Partition of the budget that it counts against.
        blocks: Blocks that a lookup can find.
        hits: Lookups with a reused prefix.
        tokens_reused: Tokens with reused KV.
    """

    partition: str = ""
    blocks: int = 0
    hits: int = 0
    tokens_reused: int = 0


@dataclass(slots=True, eq=False)
class Extent:
    """
    KV of consecutive blocks of one path, for the layers of one group: an opaque, immutable payload and its users.

    Attributes:
        payload: Evaluated, compact arrays; None after the last user has gone.
        nbytes: Exact bytes of the payload; in a group, those of the rank with the most layers.
        buffers: Device buffers of the payload.
        start: Index of its first block in the path that it was copied from.
        blocks: Blocks it was made with.
        live: Blocks that still use it.
        users: The node of each block; None for a block that was evicted.
        partition: Partition of the budget that it counts against.
    """

    payload: object
    nbytes: int
    buffers: int
    start: int
    blocks: int
    live: int = 0
    users: list[Node | None] = field(default_factory=list)
    partition: str = ""

    @property
    def stop(self) -> int:
        """Index of the block after its last."""
        return self.start + self.blocks

    @property
    def sparse(self) -> bool:
        """Whether some, but fewer than half, of its blocks are in use."""
        return 0 < 2 * self.live < self.blocks

    @property
    def reclaimable(self) -> int:
        """Estimate of the bytes that compaction would free; 0 unless it is sparse."""
        return self.nbytes * (self.blocks - self.live) // self.blocks if self.sparse else 0

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the runs of blocks in use, as positions in the extent: the first, and one past the last."""
        first = None
        for position, user in enumerate([*self.users, None]):
            if user is not None and first is None:
                first = position
            elif user is None and first is not None:
                yield first, position
                first = None


@dataclass(slots=True, eq=False)
class Checkpoint:
    """
    The state of recurrent layers after exactly the tokens of one path: an opaque payload.

    Attributes:
        payload: Evaluated, compact arrays.
        nbytes: Exact bytes of the payload.
        buffers: Device buffers of the payload.
        node: The last node of its path; None before it is stored and after it was dropped.
        kept: Whether a keep holds it.
        tick: Time of its last use, as a counter; larger is later.
        queued: Whether it is in the eviction queue.
        partition: Partition of the budget that it counts against.
        below: Whether the tier below has got it.
        offered: Whether the tier below was offered it.
    """

    payload: object
    nbytes: int
    buffers: int
    node: Node | None = None
    kept: bool = False
    tick: int = 0
    queued: bool = False
    partition: str = ""
    below: bool = False
    offered: bool = False

    @property
    def depth(self) -> int:
        """Blocks of its prefix; 0 after it was dropped."""
        return self.node.depth if self.node is not None else 0

    @property
    def evictable(self) -> bool:
        """Whether it is stored and neither a lease nor a keep holds it."""
        return self.node is not None and not (self.node.locks or self.kept or self.node.detached)


class Tree:
    """
    One root for each namespace that has a block. An edge is a block's token ids, so a path is a prefix. `PrefixTrie`
    derives from it, as its callers ask for paths as often as for KV, and keeps the counts: here, pointers move only.
    """

    def __init__(self) -> None:
        self._roots: dict[str, Node] = {}

    @property
    def namespaces(self) -> list[str]:
        """Namespaces that have a block."""
        return list(self._roots)

    def tallies(self) -> dict[str, tuple[NamespaceCounters, int]]:
        """Return, for each namespace that has a block, its counters and its number of different first blocks."""
        return {namespace: (root.counters, root.degree) for namespace, root in self._roots.items()}

    def tally(self, namespace: str) -> tuple[NamespaceCounters, int] | None:
        """Return counters and number of first blocks of one namespace; None if it has no block."""
        root = self._roots.get(namespace)
        return None if root is None else (root.counters, root.degree)

    def root(self, namespace: str) -> Node:
        """Return the root of a namespace; it joins the tree with its first block."""
        new = NamespaceCounters(partition_of(namespace))
        return self._roots.get(namespace) or Node(namespace.encode(), None, 0, new)

    def walk(self, namespace: str, keys: Sequence[bytes]) -> list[Node]:
        """Return the longest stored path along `keys`, which may be empty."""
        path: list[Node] = []
        self.follow(namespace, path, keys)
        return path

    def follow(self, namespace: str, path: list[Node], keys: Sequence[bytes]) -> None:
        """Lengthen a stored path along `keys`, the keys of the blocks that follow it, as far as they are stored."""
        node = path[-1] if path else self._roots.get(namespace)
        if node is not None:
            for key in keys:
                node = node.child(key)
                if node is None:
                    break
                path.append(node)

    def after(self, namespace: str, path: Sequence[Node], most: int) -> tuple[Node, ...]:
        """Return the blocks right behind a stored path of a namespace, at most `most` of them."""
        end = path[-1] if path else self._roots.get(namespace)
        return () if end is None else tuple(islice(end.children(), most))

    def grow(self, parent: Node, key: bytes) -> Node:
        """Add a block below a node that has no child with this key."""
        if parent.depth == 0:
            self._roots[parent.key.decode()] = parent
        child = Node(key, parent, parent.depth + 1, parent.counters)
        parent.adopt(child)
        return child

    def unlink(self, node: Node) -> None:
        """Take a node, and with it all below it, out of the tree."""
        parent, node.parent = node.parent, None
        assert parent is not None, "a block left the trie twice"
        parent.disown(node)
        if parent.depth == 0 and not parent.degree:
            del self._roots[parent.key.decode()]

    def tops(self, accept: Callable[[str], bool]) -> list[Node]:
        """Return the topmost blocks of the namespaces that are accepted."""
        roots = [root for namespace, root in self._roots.items() if accept(namespace)]
        return [child for root in roots for child in root.children()]

    def branches(self, namespace: str, keys: Sequence[bytes], part: bytes) -> list[Node]:
        """
        Return the topmost nodes that lead only to prompts which begin with `keys` and `part` of a block.

        A stored path that ends on the way counts too: the rest of its prompt is not stored, and may have been theirs.
        """
        path = self.walk(namespace, keys)
        end = path[-1] if path else self.root(namespace)
        tops = [each for each in end.children() if each.key.startswith(part)] if len(path) == len(keys) else []
        if not tops and path:
            rest = b"".join((*keys[len(path) :], part))
            ends = [each for each in end.children() if each.is_tail and rest.startswith(each.key)]
            tops = path[-1:] if end.degree == len(ends) else ends
        return _with_lone_ancestors(tops)

    def subtree(self, tops: Sequence[Node]) -> list[Node]:
        """Return nodes and everything below them."""
        nodes = list(tops)
        # The list grows while it is walked: breadth first, without recursion, however long the prompts are.
        for node in nodes:
            nodes.extend(node.children())
        return nodes

    def check_shape(self, nodes: Sequence[Node]) -> None:
        """
        Check that `nodes`, all nodes of the tree, and its roots agree.

        Raises:
            AssertionError: If parents and children disagree, or an empty root was kept.
        """
        for node in nodes:
            assert node.parent is not None, "a stored block has no parent"
            assert node.parent.child(node.key) is node, "parent and child disagree"
            assert node.depth == node.parent.depth + 1, "depth is wrong"
            assert node.tails == sum(child.is_tail for child in node.children()), "tails are miscounted"
            assert not (node.is_tail and node.degree), "a block follows a tail"
        for root in self._roots.values():
            assert root.parent is None, "a root has a parent"
            assert root.degree, "an empty root was kept"
            below = self.subtree([*root.children()])
            assert all(node.counters is root.counters for node in below), "a block is counted elsewhere"
            assert root.counters.blocks == len(below), "blocks of a namespace are miscounted"


def _with_lone_ancestors(tops: Sequence[Node]) -> list[Node]:
    """Move siblings up to their highest ancestor that leads to nothing else; tails on the way go with them."""
    chosen = list(tops)
    while chosen and (up := chosen[0].parent) is not None and up.depth > 0:
        tails = (each for each in up.children() if each.is_tail and chosen[0].key.startswith(each.key))
        chosen = list(dict.fromkeys((*chosen, *tails)))
        if up.degree > len(chosen):
            break
        chosen = [up]
    return chosen
