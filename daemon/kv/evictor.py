"""
The policy that keeps stored prefixes within their limits, by eviction and compaction.

Every reason to evict is the same question: what is stored, less what may stay? The three callers differ only in what
may stay, which is a value of `PrefixLimits`:

    enforce       the limits themselves
    make_room     the limits, less the extent that is to be stored next
    shed          the bytes stored now, less those that shall become free

The difference is a `Shortage`. The evictor drops the least recently used item, computes the shortage again, and so on
until it is empty or all that is left is leased. Checkpoints beyond their share go before that (`Thinning`). Kept
prefixes (`Keeps`) yield one by one when all else is gone: to what needs the memory, and to what is to be kept as well.
A store of any other prompt ends no keep. What has no room is not stored.

Memory of an extent becomes free with the last of its blocks, so the first pass counts on compaction: it stops when the
bytes that compaction would free cover the shortage. Then sparse extents are copied into smaller ones. Compaction can
fail or free less than estimated, so a second pass evicts the rest without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import structlog

from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.keeps import Keeps
from daemon.kv.nodes import Extent
from daemon.kv.thinning import Thinning
from daemon.kv.trie import PrefixTrie
from daemon.shared.machine_faults import pass_on_device_failure

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


class Shortage(NamedTuple):
    """
    What is stored beyond what may stay. A number that is not positive says how much more could be stored.

    Attributes:
        nbytes: Bytes.
        blocks: Blocks.
        buffers: Device buffers.
    """

    nbytes: int
    blocks: int
    buffers: int

    @property
    def of_memory(self) -> bool:
        """Whether dropping a checkpoint would help: it takes bytes and buffers, and is no block."""
        return self.nbytes > 0 or self.buffers > 0

    def __bool__(self) -> bool:
        return self.of_memory or self.blocks > 0


_UNLIMITED = PrefixLimits(sys.maxsize, sys.maxsize, sys.maxsize)


@dataclass(frozen=True, slots=True)
class Room:
    """
    What one store may take of the limits.

    Attributes:
        evictor: Makes room.
        partition: The partition that stores.
        kept: Whether it is to be kept. Other stores end no keep, except where a salt makes room among its own prefixes.
    """

    evictor: Evictor
    partition: str
    kept: bool = False

    def make_room(self, missing: int, block_bytes: int, *, new_blocks: bool = True) -> int:
        """
        Evict for the next extent of `missing` blocks, and return how many blocks it may have.

        Args:
            missing: Blocks that are still to be stored; an extent takes `EXTENT_BLOCKS` of them at most.
            block_bytes: Bytes of one of them.
            new_blocks: Whether they add to the blocks of the trie. KV for blocks that it has already does not.
        """
        wanted = min(missing, EXTENT_BLOCKS)
        return self.evictor.make_room(self, wanted, block_bytes, new_blocks=new_blocks) if wanted else 0


class Evictor:
    """
    Keeps a trie within its limits, and what each partition (salt) takes of them fair.

    Attributes:
        limits: What the trie may hold.
        trie: Holds it.
        evictions: Blocks that were evicted since the start.
        thinning: Chooses among checkpoints.
    """

    def __init__(self, limits: PrefixLimits, trie: PrefixTrie, keeps: Keeps, copy: Copy) -> None:
        self.limits = limits
        self.evictions = 0
        self.trie = trie
        self.thinning = Thinning(trie)
        self._keeps = keeps
        self._copy = copy

    def enforce(self) -> None:
        """Evict what is over a limit."""
        self._evict(self.limits)

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        bytes_before = self.trie.ledger.nbytes
        self._evict(replace(_UNLIMITED, nbytes=bytes_before - nbytes))
        return bytes_before - self.trie.ledger.nbytes

    def make_room(self, store: Room, wanted: int, block_bytes: int, *, new_blocks: bool) -> int:
        """Evict for `wanted` blocks of an extent, and return for how many there is room; see `Room.make_room`."""
        limits = self.limits
        may_stay = PrefixLimits(
            limits.blocks - wanted if new_blocks else sys.maxsize,
            limits.nbytes - wanted * max(1, block_bytes),
            limits.buffers - 1,
        )
        exceeds = self._exceeds_half(store.partition, wanted * block_bytes, wanted * new_blocks)
        self._evict(may_stay, store.partition if exceeds else None, yields=store.kept or exceeds)
        room = self._room_in_memory(block_bytes)
        return min(wanted, room, max(0, limits.blocks - self.trie.blocks)) if new_blocks else min(wanted, room)

    def _room_in_memory(self, block_bytes: int) -> int:
        """Return for how many blocks there is memory now."""
        ledger = self.trie.ledger
        if ledger.buffers >= self.limits.buffers:
            return 0
        return max(0, self.limits.nbytes - ledger.nbytes) // max(1, block_bytes)

    def _exceeds_half(self, partition: str, nbytes: int, blocks: int) -> bool:
        """
        Tell whether a partition would take more than half of the budget while others have blocks too.

        It then has to make room among its own blocks: no salt can push all others below half.
        """
        bytes_after = self.trie.ledger.partition_bytes[partition] + nbytes
        blocks_after = self.trie.partition_blocks[partition] + blocks
        alone = self.trie.partition_blocks.keys() <= {partition}
        return not alone and (2 * bytes_after > self.limits.nbytes or 2 * blocks_after > self.limits.blocks)

    def _shortage(self, may_stay: PrefixLimits, reclaimable: int = 0) -> Shortage:
        """Return what is stored beyond `may_stay`, if `reclaimable` of the stored bytes count as free."""
        ledger = self.trie.ledger
        return Shortage(
            ledger.nbytes - reclaimable - may_stay.nbytes,
            self.trie.blocks - may_stay.blocks,
            ledger.buffers - may_stay.buffers,
        )

    def _evict(self, may_stay: PrefixLimits, partition: str | None = None, *, yields: bool = True) -> None:
        """
        Evict what is stored beyond `may_stay`, and compact where that saves blocks.

        Args:
            may_stay: What may stay.
            partition: The partition to evict from; None for all.
            yields: Whether kept prefixes go when all else is gone.
        """
        self._keeps.expire()
        self._drop(may_stay, partition, yields=yields, compacting=True)
        if self._shortage(may_stay) and self.trie.ledger.sparse:
            self._compact()
            self._drop(may_stay, partition, yields=yields, compacting=False)

    def _drop(self, may_stay: PrefixLimits, partition: str | None, *, yields: bool, compacting: bool) -> None:
        """Drop the least recently used until there is no shortage; what compaction would free counts if it follows."""
        trie, blocks_before = self.trie, self.trie.blocks
        while shortage := self._shortage(may_stay, trie.ledger.reclaimable if compacting else 0):
            if shortage.of_memory and self.thinning.drop_one(self.limits.nbytes, partition):
                continue
            dropped = trie.drop_oldest(partition, checkpoints=shortage.of_memory)
            if not dropped and not (yields and self._keeps.yield_one(partition)):
                break
        self.evictions += blocks_before - trie.blocks

    def _compact(self) -> None:
        try:
            self.trie.compact(self._copy)
        except Exception as error:
            pass_on_device_failure(error)
            log.exception("prefix_compaction_failed")
