"""
Thins the checkpoints of recurrent layers when memory is short: first goes what costs least to do without.

A checkpoint of a large model takes as much memory as thousands of tokens of KV, so checkpoints alone could fill the
budget. While memory is short and they take more than their share, they go before blocks. A request that finds no
checkpoint goes on from the one before it on its path, and computes the blocks between the two. So of the checkpoints
that were not used lately, the one with the shortest distance to the one before it goes; and before all, one that is on
the disk as well. Checkpoints that are near to going are offered to the disk. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from operator import attrgetter

from daemon.kv.nodes import Checkpoint
from daemon.kv.spec import Below
from daemon.kv.tree import path_to
from daemon.kv.trie import PrefixTrie

SHARE = 0.5
"""The share of the budget that checkpoints may take while blocks need it."""

CANDIDATES = 16
"""Of so many that were not used for longest, and of half of all at most, one goes."""

_NEAR = 0.75
"""From this part of their share on, checkpoints are offered to the disk."""


class Thinning:
    """
    Chooses among the checkpoints of a trie.

    Args:
        trie: Holds them.
    """

    def __init__(self, trie: PrefixTrie) -> None:
        self._trie = trie

    def drop_one(self, most: int, partition: str | None) -> bool:
        """
        Drop a checkpoint, if all of them take more than their share of `most` bytes.

        Args:
            most: Bytes of the budget.
            partition: The partition to drop from; None for all.

        Returns:
            Whether one was dropped.
        """
        if self._trie.ledger.checkpoint_bytes <= SHARE * most:
            return False
        chosen = min(self._candidates(partition), key=_loss, default=None)
        if chosen is not None:
            self._trie.drop_checkpoint(chosen)
        return chosen is not None

    def offer(self, most: int, below: Below) -> None:
        """Offer the tier below a checkpoint that is near to going, unless it has it."""
        if self._trie.ledger.checkpoint_bytes <= _NEAR * SHARE * most:
            return
        waiting = (each for each in self._candidates(None) if not (each.below or each.offered))
        chosen = min(waiting, key=_loss, default=None)
        if chosen is not None and chosen.node is not None:
            chosen.offered = below.idle(*path_to(chosen.node), 0.0)

    def _candidates(self, partition: str | None) -> Iterable[Checkpoint]:
        checkpoints = [each for each in self._trie.checkpoints if partition in (None, each.partition)]
        return nsmallest(min(CANDIDATES, (len(checkpoints) + 1) // 2), checkpoints, key=attrgetter("tick"))


def _loss(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the blocks that are computed again without a checkpoint, and the time of its last use."""
    return (0 if checkpoint.below else _distance(checkpoint), checkpoint.tick)


def _distance(checkpoint: Checkpoint) -> int:
    """Return the blocks since the checkpoint before it on its path, or since the beginning."""
    assert checkpoint.node is not None
    node = checkpoint.node.parent
    while node is not None and node.checkpoint is None:
        node = node.parent
    return checkpoint.depth - (0 if node is None else node.depth)
