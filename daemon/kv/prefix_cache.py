"""
The interface of the prefix cache: it finds the longest stored prefix of a prompt, stores new KV, and keeps its limits.

A prompt is cut into blocks of 16 tokens, and its end may be a tail of 1 to 15. The blocks and tails of all prompts of a
namespace form a trie, and each points to the KV of its tokens. What the cache promises:

Match (`lookup`)
    The match is the longest stored prefix after which the model can go on (`daemon/kv/place.py`). Tokens are compared,
    never hashes. At least one token of the prompt stays to be computed, since only a computed token has logits. A
    match below `min_prefix_len` counts as none.

Lease (`PrefixLease`)
    Until it is released, nothing that it holds is evicted, and its KV stays readable even if the prefix is forgotten
    meanwhile. A lease is released exactly once; a second release is an error.

Restore (`runs`, `restored`)
    For each layer group, `runs` says where the KV of a match lies. The caller copies it, so that stored KV is never
    written to, and counts the hit by `restored` after that.

Store (`store`)
    Blocks are stored front to back, so no stored prefix has a hole. Only missing blocks are copied. If the budget is
    used up, the first blocks are kept. An error of the source leaves the cache as it was before the failed copy.

Resume points (`Resume`, `daemon/kv/resumable.py`)
    With full attention a request can go on after any token. A window needs the last tokens before the position, and a
    recurrent layer needs a checkpoint of exactly that position: both are stored at chosen positions only.

Eviction (`Evictor`)
    Bytes, blocks and device buffers never exceed the limits once a call has returned, whatever is leased. The least
    recently used goes first. If more than one salt has blocks, none of them can push the others below half.

Keeping (`keep`, `Keeps`)
    Until its time is over, a kept prefix goes after all others, and never to store what is not kept. All of them take
    half of the limits at most.

Invalidation (`clear`, `forget_prefix`)
    Forgotten blocks are not found from the next lookup on, kept ones included. Their bytes are free at once, or with
    the last lease on them. A dry run reports the same numbers and changes nothing.

Payloads are opaque here: `KVSource` packs them, `Layout` (in `mlx/`) restores them. One thread owns the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from daemon.kv.dropped import Dropped, count_dropped
from daemon.kv.evictor import Copy, Evictor, PrefixLimits, Room
from daemon.kv.extent_ledger import Run
from daemon.kv.keeps import KEEP_SHARE, Keeps
from daemon.kv.keys import BLOCK_TOKENS, block_keys, pack, partition_of
from daemon.kv.lease import PrefixLease
from daemon.kv.miss import Lookup, Miss, MissReason, explain
from daemon.kv.nodes import Node
from daemon.kv.place import MOST_CHILDREN, furthest, packed_path
from daemon.kv.resumable import drop_covered, group_runs, make_resumable
from daemon.kv.seen_prompts import SeenPrompts
from daemon.kv.spec import Below, KVSource, PrefixSpec, Resume, packed
from daemon.kv.trie import PrefixTrie
from daemon.shared.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class PrefixCounters:
    """Totals since the start. Lookups and tokens count only requests that may use the cache."""

    lookups: int = 0
    hits: int = 0
    tokens_looked_up: int = 0
    tokens_reused: int = 0
    tail_tokens_reused: int = 0
    tokens_shared: int = 0
    inserts: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Fraction of lookups with a reused prefix; 0.0 before the first."""
        return self.hits / self.lookups if self.lookups else 0.0


class PrefixCache:
    """
    One trie with limits and counters; see the top of this module for its contract.

    Args:
        limits: What it may hold.
        min_prefix_len: Shortest match worth reusing, in tokens.
        copy: Copies the blocks from one position of an extent to another into a new extent.
        clock: Seconds that never go back.

    Attributes:
        trie: The index.
        keeps: The prefixes that are evicted last.
        misses: Prompts that were not reused further, by reason.
        below: The tier below this cache, if there is one.
        min_prefix_len: Shortest match worth reusing, in tokens.
    """

    def __init__(
        self,
        limits: PrefixLimits,
        min_prefix_len: int = BLOCK_TOKENS,
        *,
        copy: Copy,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.trie = PrefixTrie()
        self.keeps = Keeps(self.trie, int(limits.blocks * KEEP_SHARE), int(limits.nbytes * KEEP_SHARE), clock)
        self.misses: Counter[MissReason] = Counter()
        self.below: Below | None = None
        self._counters = PrefixCounters()
        self._evictor = Evictor(limits, self.trie, self.keeps, copy)
        self._enabled = min(limits.blocks, limits.nbytes, limits.buffers) > 0
        self._seen = SeenPrompts(clock)
        self._clock = clock
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
        """False if a budget of zero turned the cache off from the start."""
        return self._enabled

    def lookup(self, namespace: str, tokens: Sequence[int], spec: PrefixSpec, *, counted: bool = True) -> PrefixLease:
        """
        Lease the longest cached prefix of a prompt after which a request can go on.

        The lease may be empty, and has to be released even then.

        Args:
            namespace: Digest of the request's namespace.
            tokens: The prompt.
            spec: What a prefix of the model consists of.
            counted: Whether it is counted: not if the prompt will be looked up once more.
        """
        packed = pack(tokens[:-1])
        lease = self.trie.match(namespace, block_keys(tokens[:-1]), lambda path: furthest(path, packed, spec))
        if 0 < lease.tokens < self.min_prefix_len:
            lease.release()
            lease = self.trie.match(namespace, ())
        self._count(lookups=int(counted), tokens_looked_up=len(tokens) * counted)
        return lease

    def explain(self, lease: PrefixLease, tokens: Sequence[int], spec: PrefixSpec, lead: int = 0) -> Miss | None:
        """
        Return why a prompt was not reused further than its lease, and count it; None if it was as far as it can be.

        Args:
            lease: The result of its lookup.
            tokens: The prompt.
            spec: What a prefix of the model consists of.
            lead: Tokens that all prompts begin with; to have them in common says nothing.
        """
        last = len(tokens) - 1
        if last - (last % BLOCK_TOKENS if spec.resumes_anywhere else BLOCK_TOKENS - 1) <= lease.tokens > 0:
            return None
        path = self.trie.walk(lease.namespace, block_keys(tokens[:-1]))
        children = self.trie.after(lease.namespace, path, MOST_CHILDREN)
        resumable = furthest(path, pack(tokens[:-1]), spec).tokens
        lookup = Lookup(lease.namespace, tokens, path, children, resumable, self.min_prefix_len, lead)
        miss = explain(lookup, self._seen, self._clock())
        if miss is not None:
            self.misses[miss.reason] += 1
        return miss

    def keep(self, namespace: str, tokens: Sequence[int], spec: PrefixSpec, seconds: float) -> bool:
        """
        Keep the stored prefix of a prompt: for so long it is evicted after all that is not kept.

        Args:
            namespace: Digest of the request's namespace.
            tokens: The prompt.
            spec: What a prefix of the model consists of.
            seconds: How long.

        Returns:
            Whether it is kept: not if nothing of it is stored, or for want of room among kept prefixes.
        """
        path = self.trie.walk(namespace, block_keys(tokens[:-1]))
        place = furthest(path, pack(tokens[:-1]), spec, inside=False)
        if place.tokens < self.min_prefix_len:
            return False
        if self.below is not None:
            self.below.used(namespace, place.nodes, kept=True)
        return self.keeps.keep(namespace, place.nodes, spec, seconds)

    def restored(self, lease: PrefixLease, from_below: int = 0, shared: int = 0) -> None:
        """Count a match as reused, and those of its tokens that came from below, and those that were not copied."""
        tail = lease.tokens % BLOCK_TOKENS
        self._count(hits=1, tokens_reused=lease.tokens, tail_tokens_reused=tail, tokens_shared=shared)
        if lease.nodes:
            lease.nodes[0].counters.hits += 1
            lease.nodes[0].counters.tokens_reused += lease.tokens
            if self.below is not None:
                self.below.used(lease.namespace, lease.nodes)
                self.below.reused(from_below)

    def runs(self, lease: PrefixLease, spec: PrefixSpec) -> list[list[Run]]:
        """Return, for each layer group, where the KV of a match is, in order. A window needs only what it can see."""
        return [group_runs(lease, index, group) for index, group in enumerate(spec.groups)]

    def store(
        self,
        namespace: str,
        tokens: Sequence[int],
        spec: PrefixSpec,
        source: KVSource,
        *,
        resume: Resume,
        kept: bool = False,
    ) -> int:
        """
        Store every full block of `tokens` that is not stored yet, and their tail where requests shall go on.

        Nothing is stored if the blocks make less than `min_prefix_len`, unless more follow (`Resume.PART`).

        Args:
            namespace: Digest of the request's namespace.
            tokens: Exactly the tokens that the source holds KV of.
            spec: What a prefix consists of.
            source: Copies the KV that is missing. Its errors pass through, and the copy that failed is not stored.
            resume: Whether later requests shall be able to go on after these tokens.
            kept: Whether they will be kept: others that are kept make room for them.

        Returns:
            How many blocks and tails were stored: the first, as far as the limits and the leases of others allow.

        Raises:
            ValueError: If the source returned other blocks than it was asked for.
        """
        keys = block_keys(tokens)
        least = 0 if resume is Resume.PART else self.min_prefix_len
        if not self.enabled or len(keys) * BLOCK_TOKENS < least:
            return 0
        # Blocks that were ever in the trie: the store itself may evict some, its own among them.
        total_before = self.trie.blocks + self._evictor.evictions
        room, covered = Room(self._evictor, partition_of(namespace), kept), 0
        try:
            with self.trie.match(namespace, keys) as lease:
                known = len(lease.nodes)
                try:
                    while blocks := room.make_room(len(keys) - len(lease.nodes), spec.block_bytes):
                        self._append(lease, keys, blocks, spec, source)
                finally:
                    self._note(lease, tokens, known)
                if resume in (Resume.PASSING, Resume.YES) and len(lease.nodes) == len(keys):
                    make_resumable(room, lease, tokens, spec, source, passing=resume is Resume.PASSING)
                if spec.resumes_anywhere and 0 < known < len(lease.nodes):
                    covered = drop_covered(self.trie, *lease.nodes[known - 1 : known + 1])
        finally:
            self._evictor.enforce()
            if self.below is not None:
                self._evictor.thinning.offer(self.limits.nbytes, self.below)
            stored = self.trie.blocks + covered + self._evictor.evictions - total_before
            self._count(inserts=stored)
        return stored

    def memory_usage(self) -> int:
        """Return the exact bytes of all stored KV."""
        return self.trie.ledger.nbytes

    def evictable_bytes(self) -> int:
        """Return the bytes that could be evicted now: those that no running request holds, kept prefixes included."""
        return max(0, self.memory_usage() - self.trie.leased_bytes)

    def limit(self, nbytes: int) -> None:
        """Change the limit of bytes, and evict what is beyond it; the limit stays above what running requests hold."""
        self._evictor.limits = replace(self.limits, nbytes=nbytes)
        self._evictor.enforce()
        self._evictor.limits = replace(self.limits, nbytes=max(nbytes, self.memory_usage()))

    def shed(self, nbytes: int) -> int:
        """Evict until `nbytes` are free or all is leased, and return the bytes that became free."""
        return self._evictor.shed(nbytes)

    def clear(self, accept: Callable[[str], bool] = lambda _: True, *, dry_run: bool = False) -> Dropped:
        """Forget the namespaces that `accept` names; everything without an argument."""
        if not dry_run:
            self._seen.invalidated(lambda entry: accept(entry.namespace))
            if self.below is not None:
                self.below.forget(accept)
        return self._forget(self.trie.tops(accept), dry_run=dry_run)

    def forget_prefix(self, namespace: str, prefix: Sequence[int], *, dry_run: bool = False) -> Dropped:
        """
        Forget all prompts that begin with `prefix`; the empty prefix begins them all.

        Blocks of `prefix` that other prompts share stay.
        """
        keys, part = block_keys(prefix), pack(prefix[len(prefix) // BLOCK_TOKENS * BLOCK_TOKENS :])
        part = keys.pop() if keys and not part else part
        tops = self.trie.branches(namespace, keys, part)
        if not dry_run:
            if self.below is not None:
                self.below.forget_prefix(namespace, block_keys(prefix))
            beginnings = (pack(prefix), *(packed_path(top) for top in tops))
            self._seen.invalidated(lambda entry: entry.namespace == namespace and entry.packed.startswith(beginnings))
        return self._forget(tops, dry_run=dry_run)

    def check_integrity(self) -> None:
        """Recount everything and compare it with counters and limits; AssertionError if anything disagrees."""
        self.trie.check_integrity()
        self.keeps.check()
        assert self.trie.blocks <= self.limits.blocks, "more blocks than allowed"
        assert self.memory_usage() <= self.limits.nbytes, "more bytes than allowed"
        assert self.trie.ledger.buffers <= self.limits.buffers, "more buffers than allowed"

    def _append(
        self, lease: PrefixLease, keys: Sequence[bytes], blocks: int, spec: PrefixSpec, source: KVSource
    ) -> None:
        """Copy the next `blocks` blocks of full attention out of the source, and add them behind a leased path."""
        start, stop = len(lease.nodes), len(lease.nodes) + blocks
        extents = tuple(
            packed(source, index, start, stop) if group.window is None else None
            for index, group in enumerate(spec.groups)
        )
        failpoint("kv.publish")
        self.trie.insert(lease, keys[start:stop], extents)

    def _note(self, lease: PrefixLease, tokens: Sequence[int], known: int) -> None:
        """Note in the record of prompts what is stored of a prompt: with its tail, if all its blocks are."""
        blocks = len(lease.nodes)
        if blocks:
            tail = pack(tokens[blocks * BLOCK_TOKENS :]) if blocks == len(tokens) // BLOCK_TOKENS else b""
            self._seen.stored(lease.namespace, b"".join(node.key for node in lease.nodes) + tail, known)

    def _forget(self, tops: Sequence[Node], *, dry_run: bool) -> Dropped:
        """Forget blocks and everything below them, or with `dry_run` only count what that would free."""
        nodes = self.trie.subtree(tops)
        dropped = count_dropped(nodes, self.trie.orphans())
        if not dry_run:
            self.keeps.forget(nodes)
            self.trie.detach(tops)
        return dropped

    def _count(self, **deltas: int) -> None:
        totals = {name: getattr(self._counters, name) + delta for name, delta in deltas.items()}
        self._counters = replace(self._counters, **totals)
