"""What an invalidation drops: blocks, and the bytes that are free at once or later. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daemon.kv.nodes import Checkpoint, Extent, Node


@dataclass(frozen=True, slots=True)
class Dropped:
    """
    What an invalidation drops.

    Attributes:
        blocks: Blocks that no lookup finds any more.
        bytes_freed: Bytes that are free at once. An extent is freed with the last of its blocks.
        bytes_in_use: Bytes that are free once the leases on them end.
    """

    blocks: int
    bytes_freed: int
    bytes_in_use: int


def count_dropped(nodes: Sequence[Node], orphans: Iterable[Node]) -> Dropped:
    """
    Return what it would free to forget blocks.

    Args:
        nodes: The blocks, with everything below them.
        orphans: Blocks that were forgotten earlier and that leases still hold.
    """
    uses = _uses(nodes)
    # An extent is freed with its last user: the forgotten blocks, or blocks forgotten earlier that a lease holds.
    leased = _uses(orphans)
    gone = [held for held in uses if uses[held] + leased[held] == _users(held)]
    leased.update(_uses(node for node in nodes if node.locks))
    freed = sum(held.nbytes for held in gone if not leased[held])
    return Dropped(len(nodes), freed, sum(held.nbytes for held in gone) - freed)


def _uses(nodes: Iterable[Node]) -> Counter[Extent | Checkpoint]:
    """Return how many of `nodes` use each extent and checkpoint."""
    held = (each for node in nodes for each in (*node.extents, node.checkpoint))
    return Counter(each for each in held if each is not None)


def _users(held: Extent | Checkpoint) -> int:
    return held.live if isinstance(held, Extent) else 1
