"""Nodes of the prefix trie."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.kv.extents import Slot
from daemon.kv.tally import Tally


@dataclass(slots=True, eq=False)
class Node:
    """
    One block below its prefix. A root stands for the empty prefix of a namespace and has no slots.

    Attributes:
        key: The block's token ids; the namespace for a root.
        parent: The node of the prefix before it; None for a root and once it has left the trie.
        depth: Blocks from the root.
        tally: What its namespace counts, shared by all its nodes.
        slots: Where its KV is, one for each layer group.
        locks: Leases that hold it.
        tick: When it was last used; larger is later.
        queued: Whether the eviction queue knows it.
        detached: Whether it was forgotten; a lease may still hold its KV.
    """

    key: bytes
    parent: Node | None
    depth: int
    tally: Tally
    slots: tuple[Slot, ...] = ()
    children: dict[bytes, Node] = field(default_factory=dict)
    locks: int = 0
    tick: int = 0
    queued: bool = False
    detached: bool = False

    @property
    def evictable(self) -> bool:
        """Whether it is an unlocked leaf."""
        return self.parent is not None and not (self.children or self.locks or self.detached)
