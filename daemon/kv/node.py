"""Nodes of the prefix trie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.kv.extents import Checkpoint, Extent
from daemon.kv.tally import Tally


@dataclass(slots=True, eq=False)
class Node:
    """
    One block below its prefix. A root stands for the empty prefix of a namespace and holds no KV.

    Most nodes have one child, which is kept without a dictionary: an index of a million blocks must stay small.

    Attributes:
        key: The block's token ids; the namespace for a root.
        parent: The node of the prefix before it; None for a root and once it has left the trie.
        depth: Blocks from the root.
        tally: What its namespace counts, shared by all its nodes.
        extents: Where its KV is, one for each layer group; None where a sliding window has moved past the block.
        checkpoint: State of the recurrent layers after it.
        resumable: Whether the windows that end with it were stored to stay.
        locks: Leases that hold it.
        tick: When it was last used; larger is later.
        queued: Whether the eviction queue knows it.
        detached: Whether it was forgotten; a lease may still hold its KV.
    """

    key: bytes
    parent: Node | None
    depth: int
    tally: Tally
    extents: tuple[Extent | None, ...] = ()
    checkpoint: Checkpoint | None = None
    resumable: bool = False
    locks: int = 0
    tick: int = 0
    queued: bool = False
    detached: bool = False
    _children: Node | dict[bytes, Node] | None = None

    @property
    def evictable(self) -> bool:
        """Whether it is an unlocked leaf."""
        return self.parent is not None and self._children is None and not (self.locks or self.detached)

    @property
    def partition(self) -> str:
        """Whose share of the budget its namespace counts against."""
        return self.tally.partition

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
        """How many children it has."""
        return 1 if isinstance(self._children, Node) else len(self._children or ())

    def adopt(self, child: Node) -> None:
        """Add a child, whose key no other has."""
        if self._children is None:
            self._children = child
        elif isinstance(self._children, Node):
            self._children = {self._children.key: self._children, child.key: child}
        else:
            self._children[child.key] = child

    def disown(self, child: Node) -> None:
        """Remove a child."""
        if isinstance(self._children, dict) and len(self._children) > 1:
            del self._children[child.key]
        else:
            self._children = None

    def disown_all(self) -> None:
        """Remove all children."""
        self._children = None


def partition_of(namespace: str) -> str:
    """Return whose share of the budget a namespace counts against: its part after the slash."""
    return namespace.partition("/")[2]
