"""The prefix cache: looks prompts up, hands out what to restore, stores new blocks, and keeps to its budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from daemon.kv.block import BLOCK_TOKENS, block_keys, key_starts_with
from daemon.kv.extents import EXTENT_BLOCKS, Extent, Run, Slot, runs
from daemon.kv.trie import Lease, Node, PrefixTrie

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
    """What an invalidation drops: blocks, bytes that are free at once, bytes that leases still hold."""

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
        return self.limits.blocks > 0 and self.limits.nbytes > 0

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

    def runs(self, lease: Lease) -> list[list[Run]]:
        """Return, for each layer group, where the KV of a match is, in order."""
        groups = zip(*(node.slots for node in lease.nodes), strict=True)
        return [runs(list(slots)) for slots in groups]

    def store(self, namespace: str, tokens: Sequence[int], block_bytes: int, pack: Pack) -> int:
        """
        Store every full block of `tokens` that is not stored yet. `pack` is asked for new blocks only.

        Args:
            namespace: Digest of the request's namespace.
            tokens: Exactly the tokens whose KV the live cache holds.
            block_bytes: Bytes of one block, all layers.
            pack: Copies blocks out of the live cache. An error in it leaves the cache as it was.

        Returns:
            How many blocks were stored; fewer than there are when everything else is leased.
        """
        if not self.enabled:
            return 0
        keys = block_keys(tokens)
        stored = 0
        with self.trie.match(namespace, keys) as lease:
            first = len(lease.nodes)
            for start in range(first, len(keys), EXTENT_BLOCKS):
                stop = min(start + EXTENT_BLOCKS, len(keys))
                if not self._make_room(stop - start, block_bytes * (stop - start)):
                    break
                stored += self._insert(namespace, keys, start, pack(start, stop))
        self._count(inserts=stored)
        self._evict(self._within)
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
        Forget all prompts that begin with `prefix` (at least one token). Blocks before its end that other prompts
        share stay.
        """
        keys = block_keys(prefix)
        rest = prefix[len(keys) * BLOCK_TOKENS :]
        last = partial(key_starts_with, tokens=rest) if rest else keys.pop().__eq__
        tops = self.trie.with_lone_ancestors(self.trie.below(namespace, keys, last))
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

    def _insert(self, namespace: str, keys: Sequence[bytes], start: int, extents: Sequence[Extent]) -> int:
        blocks = extents[0].blocks
        slots = [tuple(Slot(extent, position) for extent in extents) for position in range(blocks)]
        return self.trie.insert(namespace, keys, start, slots)

    def _make_room(self, blocks: int, nbytes: int) -> bool:
        def fits() -> bool:
            return self._within(extra_blocks=blocks, extra_bytes=nbytes)

        self._evict(fits)
        return fits()

    def _within(self, extra_blocks: int = 0, extra_bytes: int = 0) -> bool:
        return (
            self.trie.blocks + extra_blocks <= self.limits.blocks
            and self.memory_usage() + extra_bytes <= self.limits.nbytes
            and self.trie.ledger.buffers <= self.limits.buffers
        )

    def _evict(self, fits: Callable[[], bool]) -> None:
        self._count(evictions=self.trie.evict(fits))

    def _forget(self, tops: list[Node], *, dry_run: bool) -> Dropped:
        nodes = list(self.trie.subtree(tops))
        leased = {slot.extent for node in nodes if node.locks for slot in node.slots}
        in_use = sum(extent.nbytes for extent in leased)
        if dry_run:
            gone = {slot.extent for node in nodes for slot in node.slots} - leased
            return Dropped(len(nodes), sum(extent.nbytes for extent in gone), in_use)
        before = self.memory_usage()
        self.trie.detach(tops)
        return Dropped(len(nodes), before - self.memory_usage(), in_use)

    def _count(self, **deltas: int) -> None:
        self.counters = replace(
            self.counters, **{name: getattr(self.counters, name) + delta for name, delta in deltas.items()}
        )
