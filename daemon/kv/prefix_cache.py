"""The prefix cache: looks prompts up, hands out what to restore, stores new blocks, and keeps to its budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from daemon.kv.block import BLOCK_TOKENS, block_keys, key_starts_with
from daemon.kv.extents import EXTENT_BLOCKS, Extent, Run, Slot, runs
from daemon.kv.node import Node
from daemon.kv.trie import Lease, PrefixTrie

Pack = Callable[[int, int], Sequence[Extent]]
"""Copies blocks `start` to `stop` out of a live KV cache: one evaluated extent for each layer group."""


@dataclass(frozen=True, slots=True)
class Limits:
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


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the start; tokens and lookups count requests that may use the cache."""

    lookups: int = 0
    hits: int = 0
    tokens_looked_up: int = 0
    tokens_reused: int = 0
    inserts: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of lookups whose prefix was reused; 0.0 before the first."""
        return self.hits / self.lookups if self.lookups else 0.0


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


class PrefixCache:
    """
    One trie with budgets and counters. Single-threaded: the engine's MLX thread owns it.

    Args:
        limits: What it may hold.
        min_prefix_len: Shortest match worth reusing, in tokens.
    """

    def __init__(self, limits: Limits, min_prefix_len: int = BLOCK_TOKENS) -> None:
        self.limits = limits
        self.counters = Counters()
        self.trie = PrefixTrie()
        self._min_prefix_len = min_prefix_len

    @property
    def enabled(self) -> bool:
        """False if a budget of zero turned the cache off."""
        return min(self.limits.blocks, self.limits.nbytes, self.limits.buffers) > 0

    def lookup(self, namespace: str, tokens: Sequence[int]) -> Lease:
        """
        Lease the longest cached prefix of a prompt.

        At least one token is left to compute, because only a computed token has logits. A match below
        `min_prefix_len` counts as none. The lease may be empty; release it all the same.
        """
        reusable = block_keys(tokens[:-1])
        lease = self.trie.match(namespace, reusable)
        if 0 < lease.tokens < self._min_prefix_len:
            lease.release()
            lease = self.trie.match(namespace, ())
        self._count(lookups=1, tokens_looked_up=len(tokens))
        return lease

    def restored(self, lease: Lease) -> None:
        """Count a match as reused; called once its KV really is in the request's cache."""
        self._count(hits=1, tokens_reused=lease.tokens)
        if lease.nodes:
            lease.nodes[0].tally.hits += 1
            lease.nodes[0].tally.tokens_reused += lease.tokens

    def runs(self, lease: Lease) -> list[list[Run]]:
        """Return, for each layer group, where the KV of a match is, in order."""
        groups = zip(*(node.slots for node in lease.nodes), strict=True)
        return [runs(list(slots)) for slots in groups]

    def store(self, namespace: str, tokens: Sequence[int], block_bytes: int, pack: Pack) -> int:
        """
        Store every full block of `tokens` that is not stored yet; nothing if they make less than `min_prefix_len`.
        `pack` is asked for new blocks only.

        Args:
            namespace: Digest of the request's namespace.
            tokens: Exactly the tokens whose KV the live cache holds.
            block_bytes: Bytes of one block, all layers.
            pack: Copies blocks out of the live cache. An error in it passes through; nothing of it is stored.

        Returns:
            How many blocks were stored: the first ones, as far as the budgets and what others lease allow.

        Raises:
            ValueError: If `pack` returned other blocks than it was asked for.
        """
        keys = block_keys(tokens)
        if not self.enabled or len(keys) * BLOCK_TOKENS < self._min_prefix_len:
            return 0
        stored = 0
        try:
            with self.trie.match(namespace, keys) as lease:
                while blocks := self._make_room(len(keys) - len(lease.nodes), block_bytes):
                    stored += self._append(lease, keys, blocks, pack)
        finally:
            self._count(inserts=stored)
            self._evict(self._within_budget)
        return stored

    def memory_usage(self) -> int:
        """Return the exact bytes of all stored KV."""
        return self.trie.ledger.nbytes

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        before = self.memory_usage()
        self._evict(lambda: before - self.memory_usage() >= nbytes)
        return before - self.memory_usage()

    def clear(self, accept: Callable[[str], bool] = lambda _: True, *, dry_run: bool = False) -> Dropped:
        """Forget the namespaces that are accepted; without an argument, everything."""
        return self._forget(self.trie.tops(accept), dry_run=dry_run)

    def forget_prefix(self, namespace: str, prefix: Sequence[int], *, dry_run: bool = False) -> Dropped:
        """
        Forget all prompts that begin with `prefix`; the empty prefix begins them all. Blocks before its end that other
        prompts share stay.
        """
        keys = block_keys(prefix)
        rest = list(prefix[len(keys) * BLOCK_TOKENS :])
        if keys and not rest:
            last = keys.pop()
            tops = self.trie.branches(namespace, keys, lambda key: key == last)
        else:
            tops = self.trie.branches(namespace, keys, lambda key: key_starts_with(key, rest))
        return self._forget(tops, dry_run=dry_run)

    def check_integrity(self) -> None:
        """
        Recount everything and compare with the budgets.

        Raises:
            AssertionError: If anything disagrees.
        """
        self.trie.check_integrity()
        assert self.trie.blocks <= self.limits.blocks, "more blocks than allowed"
        assert self.memory_usage() <= self.limits.nbytes, "more bytes than allowed"
        assert self.trie.ledger.buffers <= self.limits.buffers, "more buffers than allowed"

    def _append(self, lease: Lease, keys: Sequence[bytes], blocks: int, pack: Pack) -> int:
        start = len(lease.nodes)
        stop = start + blocks
        extents = pack(start, stop)
        if not extents or any(extent.blocks != blocks for extent in extents):
            raise ValueError(f"asked for blocks {start} to {stop}, got something else")
        slots = [tuple(Slot(extent, position) for extent in extents) for position in range(blocks)]
        return self.trie.insert(lease, keys[start:stop], slots)

    def _make_room(self, missing: int, block_bytes: int) -> int:
        """Evict for the next extent of `missing` blocks, and return how many blocks it may have."""
        wanted = min(missing, EXTENT_BLOCKS)
        self._evict(lambda: self._room(block_bytes) >= wanted)
        return min(wanted, self._room(block_bytes))

    def _room(self, block_bytes: int) -> int:
        """Return how many blocks fit now."""
        if self.trie.ledger.buffers >= self.limits.buffers:
            return 0
        nbytes = max(0, self.limits.nbytes - self.memory_usage())
        return min(self.limits.blocks - self.trie.blocks, nbytes // max(1, block_bytes))

    def _within_budget(self) -> bool:
        return (
            self.trie.blocks <= self.limits.blocks
            and self.memory_usage() <= self.limits.nbytes
            and self.trie.ledger.buffers <= self.limits.buffers
        )

    def _evict(self, fits: Callable[[], bool]) -> None:
        self._count(evictions=self.trie.evict(fits))

    def _forget(self, tops: Sequence[Node], *, dry_run: bool) -> Dropped:
        nodes = self.trie.subtree(tops)
        uses = Counter(slot.extent for node in nodes for slot in node.slots)
        leased = self.trie.orphan_uses()
        gone = [extent for extent in uses if uses[extent] + leased[extent] == extent.live]
        leased.update(slot.extent for node in nodes if node.locks for slot in node.slots)
        freed = sum(extent.nbytes for extent in gone if not leased[extent])
        if not dry_run:
            self.trie.detach(tops)
        return Dropped(len(nodes), freed, sum(extent.nbytes for extent in gone) - freed)

    def _count(self, **deltas: int) -> None:
        self.counters = replace(
            self.counters, **{name: getattr(self.counters, name) + delta for name, delta in deltas.items()}
        )
