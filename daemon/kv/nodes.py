"""The nodes of the prefix trie, and what they hold: counters, extents, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, TOKEN_BYTES


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
        nbytes: Exact bytes of the payload.
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
