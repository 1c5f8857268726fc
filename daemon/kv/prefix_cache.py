"""The prefix cache: looks prompts up, hands out what to restore, stores new blocks, and keeps to its budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from daemon.kv.evictor import Copy, Evictor, PrefixLimits
from daemon.kv.extent_ledger import EXTENT_BLOCKS, Run, runs
from daemon.kv.keys import BLOCK_TOKENS, block_keys, key_starts_with, partition_of
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.source import Resume, Source
from daemon.kv.spec import LayerGroup, PrefixSpec
from daemon.kv.trie import PrefixTrie
from daemon.shared.failpoints import failpoint


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
        copy: Copies the blocks from one position of an extent to another into a new extent.

    Attributes:
        trie: The index.
        min_prefix_len: Shortest match worth reusing, in tokens.
    """

    def __init__(self, limits: PrefixLimits, min_prefix_len: int = BLOCK_TOKENS, *, copy: Copy) -> None:
        self.trie = PrefixTrie()
        self._counters = Counters()
        self._budget = Evictor(limits, self.trie, copy)
        self.min_prefix_len = min_prefix_len

    @property
    def limits(self) -> PrefixLimits:
        """What it may hold."""
        return self._budget.limits

    @property
    def counters(self) -> Counters:
        """Totals since the start."""
        return replace(self._counters, evictions=self._budget.evictions)

    @property
    def enabled(self) -> bool:
        """False if a budget of zero turned the cache off."""
        return min(self.limits.blocks, self.limits.nbytes, self.limits.buffers) > 0

    def lookup(self, namespace: str, tokens: Sequence[int], parts: PrefixSpec) -> PrefixLease:
        """
        Lease the longest cached prefix of a prompt that a request can go on from.

        At least one token is left to compute, because only a computed token has logits. A match below
        `min_prefix_len` counts as none. The lease may be empty; release it all the same.
        """
        lease = self.trie.match(namespace, block_keys(tokens[:-1]), parts.restorable)
        if 0 < lease.tokens < self.min_prefix_len:
            lease.release()
            lease = self.trie.match(namespace, ())
        self._count(lookups=1, tokens_looked_up=len(tokens))
        return lease

    def restored(self, lease: PrefixLease) -> None:
        """Count a match as reused; called once its KV really is in the request's cache."""
        self._count(hits=1, tokens_reused=lease.tokens)
        if lease.nodes:
            lease.nodes[0].tally.hits += 1
            lease.nodes[0].tally.tokens_reused += lease.tokens

    def runs(self, lease: PrefixLease, parts: PrefixSpec) -> list[list[Run]]:
        """Return, for each layer group, where the KV of a match is, in order: of a window, the blocks it can see."""
        blocks = len(lease.nodes)
        return [runs(lease.nodes[blocks - group.visible(blocks) :], index) for index, group in enumerate(parts.groups)]

    def store(self, namespace: str, tokens: Sequence[int], parts: PrefixSpec, source: Source, *, resume: Resume) -> int:
        """
        Store every full block of `tokens` that is not stored yet; nothing if they make less than `min_prefix_len`.

        Args:
            namespace: Digest of the request's namespace.
            tokens: Exactly the tokens whose KV the source holds.
            parts: What a prefix consists of.
            source: Copies KV; it is asked for what is missing only. An error in it passes through; nothing of what it
                was asked for is stored.
            resume: Whether later requests shall be able to go on after these tokens, if they end with a block.

        Returns:
            How many blocks were stored: the first ones, as far as the budgets and what others lease allow.

        Raises:
            ValueError: If the source returned other blocks than it was asked for.
        """
        keys = block_keys(tokens)
        if not self.enabled or len(keys) * BLOCK_TOKENS < self.min_prefix_len:
            return 0
        before = self.trie.blocks + self._budget.evictions
        partition = partition_of(namespace)
        try:
            with self.trie.match(namespace, keys) as lease:
                while blocks := self._budget.make_room(partition, len(keys) - len(lease.nodes), parts.block_bytes):
                    self._append(lease, keys, blocks, parts, source)
                if resume is not Resume.NO and len(lease.nodes) == len(keys):
                    self._make_resumable(lease, parts, source, passing=resume is Resume.PASSING)
        finally:
            self._budget.enforce()
            stored = self.trie.blocks + self._budget.evictions - before
            self._count(inserts=stored)
        return stored

    def memory_usage(self) -> int:
        """Return the exact bytes of all stored KV."""
        return self.trie.ledger.nbytes

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        return self._budget.shed(nbytes)

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

    def _append(
        self, lease: PrefixLease, keys: Sequence[bytes], blocks: int, parts: PrefixSpec, source: Source
    ) -> None:
        start = len(lease.nodes)
        stop = start + blocks
        extents = tuple(
            _packed(source, index, start, stop) if group.window is None else None
            for index, group in enumerate(parts.groups)
        )
        failpoint("kv.publish")
        self.trie.insert(lease, keys[start:stop], extents)

    def _make_resumable(self, lease: PrefixLease, parts: PrefixSpec, source: Source, *, passing: bool) -> None:
        """Store what a request that goes on after a leased path needs of windows and recurrent layers."""
        for index, group in enumerate(parts.groups):
            if group.window is not None and not self._fill_window(lease, index, group, source):
                return
        if parts.state_bytes and lease.checkpoint is None:
            partition = partition_of(lease.namespace)
            room = self._budget.make_room(partition, 1, parts.state_bytes, new_blocks=False)
            checkpoint = source.checkpoint(lease.tokens) if room else None
            if checkpoint is not None:
                self.trie.attach(lease, checkpoint)
        if parts.windowed and not passing:
            self._thin_windows(lease, parts)

    def _fill_window(self, lease: PrefixLease, index: int, group: LayerGroup, source: Source) -> bool:
        """Store the blocks that a window sees at the end of a leased path, and tell whether they are all there."""
        seen = lease.nodes[len(lease.nodes) - group.visible(len(lease.nodes)) :]
        for first, last in _stretches([node for node in seen if node.extents[index] is None]):
            room = self._budget.make_room(
                partition_of(lease.namespace), last - first, group.block_bytes, new_blocks=False
            )
            if room < last - first:
                return False
            self.trie.fill(lease, index, _packed(source, index, first, last))
        return True

    def _thin_windows(self, lease: PrefixLease, parts: PrefixSpec) -> None:
        """Drop the KV of windows on the way to a position to go on from, back to the one before it or to a fork."""
        *way, end = lease.nodes
        end.resumable = True
        passed: list[Node] = []
        for node in reversed(way):
            if node.resumable or node.degree > 1:
                break
            passed.append(node)
        for index, group in enumerate(parts.groups):
            if group.window is not None:
                self.trie.thin([node for node in passed if end.depth - node.depth >= group.visible(end.depth)], index)

    def _forget(self, tops: Sequence[Node], *, dry_run: bool) -> Dropped:
        nodes = self.trie.subtree(tops)
        uses = _uses(nodes)
        leased = _uses(self.trie.orphans())
        gone = [held for held in uses if uses[held] + leased[held] == _users(held)]
        leased.update(_uses(node for node in nodes if node.locks))
        freed = sum(held.nbytes for held in gone if not leased[held])
        if not dry_run:
            self.trie.detach(tops)
        return Dropped(len(nodes), freed, sum(held.nbytes for held in gone) - freed)

    def _count(self, **deltas: int) -> None:
        self._counters = replace(
            self._counters, **{name: getattr(self._counters, name) + delta for name, delta in deltas.items()}
        )


def _packed(source: Source, group: int, start: int, stop: int) -> Extent:
    extent = source.pack(group, start, stop)
    if (extent.start, extent.stop) != (start, stop):
        raise ValueError(f"asked for blocks {start} to {stop}, got {extent.start} to {extent.stop}")
    return extent


def _stretches(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Yield the block indices of consecutive nodes, first and one after the last, in stretches of an extent at most."""
    first = 0
    for position in range(1, len(nodes) + 1):
        full = position - first == EXTENT_BLOCKS
        if position == len(nodes) or full or nodes[position].depth != nodes[position - 1].depth + 1:
            yield nodes[first].depth - 1, nodes[position - 1].depth
            first = position


def _uses(nodes: Iterable[Node]) -> Counter[Extent | Checkpoint]:
    """Return how many of some blocks use each extent and checkpoint."""
    held = (each for node in nodes for each in (*node.extents, node.checkpoint))
    return Counter(each for each in held if each is not None)


def _users(held: Extent | Checkpoint) -> int:
    return held.live if isinstance(held, Extent) else 1
