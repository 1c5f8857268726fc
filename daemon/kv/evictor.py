"""The budget of the prefix cache: makes room for what is to be stored, by eviction and compaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.nodes import Extent
from daemon.kv.trie import Lack, PrefixTrie

log = structlog.get_logger()

Copy = Callable[[Extent, int, int], Extent]
"""Copies the blocks from one position of an extent to another into a new extent."""


@dataclass(frozen=True, slots=True)
class PrefixLimits:
    """
    What the cache may hold.

    Attributes:
        blocks: Most blocks; 0 disables the cache.
        nbytes: Most bytes; 0 disables the cache.
        buffers: Most device buffers. Metal allows 499,000 in the whole process.
    """

    blocks: int
    nbytes: int
    buffers: int = 100_000


class Evictor:
    """
    Keeps a trie within its limits, and the share of each partition (salt) of them fair.

    Attributes:
        limits: What the trie may hold.
        evictions: Blocks that were evicted since the start.
    """

    def __init__(self, limits: PrefixLimits, trie: PrefixTrie, copy: Copy) -> None:
        self.limits = limits
        self.evictions = 0
        self._trie = trie
        self._copy = copy

    def enforce(self) -> None:
        """Evict what is over a limit."""
        self._evict(self._over_budget)

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        ledger = self._trie.ledger
        before = ledger.nbytes

        def lack(reclaimable: int) -> Lack:
            return Lack.MEMORY if before - ledger.nbytes + reclaimable < nbytes else Lack.NOTHING

        self._evict(lack)
        return before - ledger.nbytes

    def make_room(self, partition: str, missing: int, block_bytes: int, *, new_blocks: bool = True) -> int:
        """Evict for the next extent of `missing` blocks, and return how many blocks it may have."""
        wanted = min(missing, EXTENT_BLOCKS)
        if not wanted:
            return 0

        def lack(reclaimable: int) -> Lack:
            if self._room_in_memory(block_bytes, reclaimable) < wanted:
                return Lack.MEMORY
            return Lack.BLOCKS if new_blocks and self.limits.blocks - self._trie.blocks < wanted else Lack.NOTHING

        own = partition if self._over_its_share(partition, wanted * block_bytes, wanted * new_blocks) else None
        self._evict(lack, own)
        room = self._room_in_memory(block_bytes, 0)
        return min(wanted, room, max(0, self.limits.blocks - self._trie.blocks)) if new_blocks else min(wanted, room)

    def _room_in_memory(self, block_bytes: int, reclaimable: int) -> int:
        """Return for how many blocks there is memory, if so many bytes more are free."""
        ledger = self._trie.ledger
        if ledger.buffers >= self.limits.buffers:
            return 0
        return max(0, self.limits.nbytes - ledger.nbytes + reclaimable) // max(1, block_bytes)

    def _over_its_share(self, partition: str, nbytes: int, blocks: int) -> bool:
        """
        Tell whether a partition would take more than half of the budget from others that use it too.

        It then has to make room among its own: no salt can push all others below half.
        """
        bytes_after = self._trie.ledger.shares[partition] + nbytes
        blocks_after = self._trie.shares[partition] + blocks
        alone = self._trie.shares.keys() <= {partition}
        return not alone and (2 * bytes_after > self.limits.nbytes or 2 * blocks_after > self.limits.blocks)

    def _over_budget(self, reclaimable: int) -> Lack:
        ledger = self._trie.ledger
        if ledger.nbytes - reclaimable > self.limits.nbytes or ledger.buffers > self.limits.buffers:
            return Lack.MEMORY
        return Lack.BLOCKS if self._trie.blocks > self.limits.blocks else Lack.NOTHING

    def _evict(self, lack: Callable[[int], Lack], partition: str | None = None) -> None:
        """Evict until nothing lacks, counting on what compaction frees (`lack` gets those bytes), and compact."""
        ledger = self._trie.ledger
        self.evictions += self._trie.evict(lambda: lack(ledger.reclaimable), partition)
        if lack(0) is not Lack.NOTHING and ledger.sparse:
            self._compact()
            self.evictions += self._trie.evict(lambda: lack(0), partition)

    def _compact(self) -> None:
        try:
            self._trie.compact(self._copy)
        except Exception:
            log.exception("compacting stored prefixes failed; more of them are evicted instead")
