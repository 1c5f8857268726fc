"""
The interface of the prefix cache: it finds the longest stored prefix of a prompt, stores new KV, and keeps its limits.

A prompt is cut into blocks of 16 tokens. The blocks of all prompts of a namespace form a trie, and each block points to
the KV of its tokens. What the cache promises:

Match (`lookup`)
    The match is the longest stored prefix, in whole blocks, after which the model can go on. Tokens are compared, never
    hashes. At least one token of the prompt stays to be computed, since only a computed token has logits. A match
    below `min_prefix_len` counts as none.

Lease (`PrefixLease`)
    Until it is released, nothing that it holds is evicted, and its KV stays readable even if the prefix is forgotten
    meanwhile. A lease is released exactly once; a second release is an error.

Restore (`runs`, `restored`)
    For each layer group, `runs` says where the KV of a match lies. The caller copies it into a cache of its own, so
    that stored KV is never written to. A hit is counted by `restored`, after the copy succeeded.

Store (`store`)
    Blocks are stored front to back, so no stored prefix has a hole. Only missing blocks are copied. If the budget is
    used up, the first blocks are kept. An error of the source leaves the cache as it was before the failed copy.

Resume points (`Resume`, `PrefixSpec.restorable`)
    With full attention a request can go on after any block. A window needs the last blocks before the position, and a
    recurrent layer needs a checkpoint of exactly that position: both are stored at chosen positions only.

Eviction (`Evictor`)
    Bytes, blocks and device buffers never exceed the limits once a call has returned, whatever is leased. The least
    recently used goes first. If more than one salt has blocks, none of them can push the others below half.

Invalidation (`clear`, `forget_prefix`)
    Forgotten blocks are not found from the next lookup on. Their bytes are free at once, or with the last lease on
    them. A dry run reports the same numbers and changes nothing.

Payloads are opaque here: `KVSource` packs them, `Layout` (in `mlx/`) restores them. One thread owns the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from daemon.kv.evictor import Copy, Evictor, PrefixLimits
from daemon.kv.extent_ledger import EXTENT_BLOCKS, Run, runs
from daemon.kv.keys import BLOCK_TOKENS, block_keys, key_starts_with, partition_of
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.spec import KVSource, LayerGroup, PrefixSpec, Resume
from daemon.kv.trie import PrefixTrie
from daemon.shared.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class PrefixCounters:
    """Totals since the start. Lookups and tokens count only requests that may use the cache."""

    lookups: int = 0
    hits: int = 0
    tokens_looked_up: int = 0
    tokens_reused: int = 0
    inserts: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Fraction of lookups with a reused prefix; 0.0 before the first."""
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
    One trie with limits and counters; see the top of this module for its contract.

    It is not thread-safe: the engine's MLX thread owns it.

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
        self._counters = PrefixCounters()
        self._evictor = Evictor(limits, self.trie, copy)
        self.min_prefix_len = min_prefix_len

    @property
    def limits(self) -> PrefixLimits:
        """What it may hold."""
        return self._evictor.limits

    @property
    def counters(self) -> PrefixCounters:
        """Totals since the start."""
        return replace(self._counters, evictions=self._evictor.evictions)

    @property
    def enabled(self) -> bool:
        """False if a budget of zero turned the cache off."""
        return min(self.limits.blocks, self.limits.nbytes, self.limits.buffers) > 0

    def lookup(self, namespace: str, tokens: Sequence[int], spec: PrefixSpec) -> PrefixLease:
        """
        Lease the longest cached prefix of a prompt after which a request can go on.

        The lease may be empty, and has to be released even then.

        Args:
            namespace: Digest of the request's namespace.
            tokens: The prompt.
            spec: What a prefix of the model consists of.
        """
        lease = self.trie.match(namespace, block_keys(tokens[:-1]), spec.restorable)
        if 0 < lease.tokens < self.min_prefix_len:
            lease.release()
            lease = self.trie.match(namespace, ())
        self._count(lookups=1, tokens_looked_up=len(tokens))
        return lease

    def restored(self, lease: PrefixLease) -> None:
        """Count a match as reused. Call it after the match was copied into the request's cache."""
        self._count(hits=1, tokens_reused=lease.tokens)
        if lease.nodes:
            lease.nodes[0].counters.hits += 1
            lease.nodes[0].counters.tokens_reused += lease.tokens

    def runs(self, lease: PrefixLease, spec: PrefixSpec) -> list[list[Run]]:
        """Return, for each layer group, where the KV of a match is, in order. A window needs only what it can see."""
        blocks = len(lease.nodes)
        return [runs(lease.nodes[blocks - group.visible(blocks) :], index) for index, group in enumerate(spec.groups)]

    def store(
        self, namespace: str, tokens: Sequence[int], spec: PrefixSpec, source: KVSource, *, resume: Resume
    ) -> int:
        """
        Store every full block of `tokens` that is not stored yet; nothing if they make less than `min_prefix_len`.

        Args:
            namespace: Digest of the request's namespace.
            tokens: Exactly the tokens that the source holds KV of.
            spec: What a prefix consists of.
            source: Copies the KV that is missing. Its errors pass through, and the copy that failed is not stored.
            resume: Whether later requests shall be able to go on after these tokens, if they end with a block.

        Returns:
            How many blocks were stored: the first ones, as far as the limits and the leases of others allow.

        Raises:
            ValueError: If the source returned other blocks than it was asked for.
        """
        keys = block_keys(tokens)
        if not self.enabled or len(keys) * BLOCK_TOKENS < self.min_prefix_len:
            return 0
        # Blocks that were ever in the trie: the store itself may evict some, its own among them.
        total_before = self.trie.blocks + self._evictor.evictions
        partition = partition_of(namespace)
        try:
            with self.trie.match(namespace, keys) as lease:
                while blocks := self._evictor.make_room(partition, len(keys) - len(lease.nodes), spec.block_bytes):
                    self._append(lease, keys, blocks, spec, source)
                if resume is not Resume.NO and len(lease.nodes) == len(keys):
                    self._make_resumable(lease, spec, source, passing=resume is Resume.PASSING)
        finally:
            self._evictor.enforce()
            stored = self.trie.blocks + self._evictor.evictions - total_before
            self._count(inserts=stored)
        return stored

    def memory_usage(self) -> int:
        """Return the exact bytes of all stored KV."""
        return self.trie.ledger.nbytes

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        return self._evictor.shed(nbytes)

    def clear(self, accept: Callable[[str], bool] = lambda _: True, *, dry_run: bool = False) -> Dropped:
        """Forget the namespaces that `accept` names; everything without an argument."""
        return self._forget(self.trie.tops(accept), dry_run=dry_run)

    def forget_prefix(self, namespace: str, prefix: Sequence[int], *, dry_run: bool = False) -> Dropped:
        """
        Forget all prompts that begin with `prefix`; the empty prefix begins them all.

        Blocks of `prefix` that other prompts share stay.
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
        Recount everything and compare it with the counters and the limits.

        Raises:
            AssertionError: If anything disagrees.
        """
        self.trie.check_integrity()
        assert self.trie.blocks <= self.limits.blocks, "more blocks than allowed"
        assert self.memory_usage() <= self.limits.nbytes, "more bytes than allowed"
        assert self.trie.ledger.buffers <= self.limits.buffers, "more buffers than allowed"

    def _append(
        self, lease: PrefixLease, keys: Sequence[bytes], blocks: int, spec: PrefixSpec, source: KVSource
    ) -> None:
        """Copy the next `blocks` blocks of full attention out of the source, and add them behind a leased path."""
        start = len(lease.nodes)
        stop = start + blocks
        extents = tuple(
            _packed(source, index, start, stop) if group.window is None else None
            for index, group in enumerate(spec.groups)
        )
        failpoint("kv.publish")
        self.trie.insert(lease, keys[start:stop], extents)

    def _make_resumable(self, lease: PrefixLease, spec: PrefixSpec, source: KVSource, *, passing: bool) -> None:
        """Store the windows and the recurrent states that a request needs to go on after a leased path."""
        for index, group in enumerate(spec.groups):
            if group.window is not None and not self._fill_window(lease, index, group, source):
                return
        if spec.state_bytes and lease.checkpoint is None:
            partition = partition_of(lease.namespace)
            room = self._evictor.make_room(partition, 1, spec.state_bytes, new_blocks=False)
            checkpoint = source.checkpoint(lease.tokens) if room else None
            if checkpoint is not None:
                self.trie.attach(lease, checkpoint)
        if spec.windowed and not passing:
            self._thin_windows(lease, spec)

    def _fill_window(self, lease: PrefixLease, index: int, group: LayerGroup, source: KVSource) -> bool:
        """Store the blocks that a window sees at the end of a leased path, and tell whether all of them are stored."""
        visible = lease.nodes[len(lease.nodes) - group.visible(len(lease.nodes)) :]
        for first, last in _stretches([node for node in visible if node.extents[index] is None]):
            room = self._evictor.make_room(
                partition_of(lease.namespace), last - first, group.block_bytes, new_blocks=False
            )
            if room < last - first:
                return False
            self.trie.fill(lease, index, _packed(source, index, first, last))
        return True

    def _thin_windows(self, lease: PrefixLease, spec: PrefixSpec) -> None:
        """
        Drop windows that were stored only in passing, before the resume point at the end of a leased path.

        They go back to the previous resume point, or to a fork: behind a fork another prompt may need them.
        """
        *way, end = lease.nodes
        end.resumable = True
        passed: list[Node] = []
        for node in reversed(way):
            if node.resumable or node.degree > 1:
                break
            passed.append(node)
        for index, group in enumerate(spec.groups):
            if group.window is not None:
                self.trie.thin([node for node in passed if end.depth - node.depth >= group.visible(end.depth)], index)

    def _forget(self, tops: Sequence[Node], *, dry_run: bool) -> Dropped:
        """Forget blocks and everything below them, or with `dry_run` only count what that would free."""
        nodes = self.trie.subtree(tops)
        uses = _uses(nodes)
        # An extent is freed with its last user: the forgotten blocks, or blocks forgotten earlier that a lease holds.
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


def _packed(source: KVSource, group: int, start: int, stop: int) -> Extent:
    """
    Copy blocks out of a source.

    Raises:
        ValueError: If the source returned other blocks than it was asked for.
    """
    extent = source.pack(group, start, stop)
    if (extent.start, extent.stop) != (start, stop):
        raise ValueError(f"asked for blocks {start} to {stop}, got {extent.start} to {extent.stop}")
    return extent


def _stretches(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Yield the first block, and one past the last, of each stretch of consecutive nodes, an extent long at most."""
    first = 0
    for position in range(1, len(nodes) + 1):
        full = position - first == EXTENT_BLOCKS
        if position == len(nodes) or full or nodes[position].depth != nodes[position - 1].depth + 1:
            yield nodes[first].depth - 1, nodes[position - 1].depth
            first = position


def _uses(nodes: Iterable[Node]) -> Counter[Extent | Checkpoint]:
    """Return how many of `nodes` use each extent and checkpoint."""
    held = (each for node in nodes for each in (*node.extents, node.checkpoint))
    return Counter(each for each in held if each is not None)


def _users(held: Extent | Checkpoint) -> int:
    return held.live if isinstance(held, Extent) else 1
