"""
Prefixes that a caller asked to keep: they are evicted after everything else, for a time, within a share of the cache.

A keep holds the path to a resume point, and what a request needs to go on there. Its blocks, and the checkpoint at its
end, are in no eviction queue as long as a keep holds them:

    keep() ---> kept ---> ended: its time is over
                  |  ---> ended: all kept prefixes together exceed their share, and its time would have been over first
                  |  ---> ended: all else that is not leased is evicted, and there is still no room
                  +----> ended: it was invalidated

After its end a prefix is cached as any other. A lease and a keep are independent: what both hold stays until both end.

Shared blocks are counted once. What only the end of a keep needs, its windows and its checkpoint, is counted for each
keep, so that the share is never exceeded. Pure policy; the clock is injected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Node
from daemon.kv.spec import PrefixSpec
from daemon.kv.trie import PrefixTrie

KEEP_SHARE = 0.5
"""The part of the cache's bytes and blocks that kept prefixes may take: the rest is left to all other prompts."""

MOST_KEPT = 256
"""Most prefixes that are kept at a time."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Keep:
    """
    A prefix that is kept.

    Attributes:
        namespace: Digest of its namespace.
        end: Its last block, or its tail.
        expires: When its time is over, in seconds of the clock.
        block_bytes: Bytes of one of its blocks, of the layers with full attention.
        end_bytes: Bytes that a request needs at its end besides: windows and the checkpoint.
    """

    namespace: str
    end: Node
    expires: float
    block_bytes: int
    end_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens of the prefix."""
        return self.end.end

    @property
    def nbytes(self) -> int:
        """Bytes of all that a request needs to go on at its end, blocks that others share included."""
        return self.end.end * self.block_bytes // BLOCK_TOKENS + self.end_bytes

    def bytes_of(self, node: Node) -> int:
        """Return the bytes of a block or the tail of it, of the layers with full attention."""
        return node.tokens * self.block_bytes // BLOCK_TOKENS

    def path(self) -> Iterator[Node]:
        """Yield its blocks, the last first."""
        node: Node | None = self.end
        while node is not None and node.depth:
            yield node
            node = node.parent


class Keeps:
    """
    The prefixes that are kept.

    Args:
        trie: Holds them.
        most_blocks: Most blocks of all of them together.
        most_bytes: Most bytes of all of them together.
        clock: Seconds that never go back.

    Attributes:
        nbytes: Bytes of all of them together.
        blocks: Blocks of all of them together.
        yielded: How many ended before their time, for want of room.
    """

    def __init__(self, trie: PrefixTrie, most_blocks: int, most_bytes: int, clock: Callable[[], float]) -> None:
        self.nbytes = 0
        self.blocks = 0
        self.yielded = 0
        self.most_bytes = most_bytes
        self._most_blocks = most_blocks
        self._trie = trie
        self._clock = clock
        self._keeps: dict[Node, Keep] = {}

    def __iter__(self) -> Iterator[Keep]:
        return iter(self._keeps.values())

    def __len__(self) -> int:
        return len(self._keeps)

    @property
    def free_bytes(self) -> int:
        """Bytes of those that have time left and no lease, at most: what they share counts for each."""
        now = self._clock()
        return min(self.nbytes, sum(keep.nbytes for keep in self if keep.expires > now and not keep.end.locks))

    def keep(self, namespace: str, path: Sequence[Node], spec: PrefixSpec, seconds: float) -> bool:
        """
        Keep a stored path after which a request can go on; a longer time that it has already stays.

        Args:
            namespace: Digest of its namespace.
            path: Its blocks, at least one.
            spec: What a prefix of the model consists of.
            seconds: How long.

        Returns:
            Whether it is kept. It is not if it alone exceeds the share, or if its time would be over first and
            there is no room for all.
        """
        end, expires = path[-1], self._clock() + seconds
        self.expire()
        if (known := self._keeps.get(end)) is not None:
            known.expires = max(known.expires, expires)
            return True
        keep = Keep(namespace, end, expires, spec.block_bytes, _end_bytes(spec, end))
        if keep.nbytes > self.most_bytes or len(path) > self._most_blocks:
            self._note_yield(keep, over_cap=True)
            return False
        end.resumable = True  # no later store may thin its windows out
        self._begin(keep)
        while self.nbytes > self.most_bytes or self.blocks > self._most_blocks or len(self._keeps) > MOST_KEPT:
            first = min(self, key=lambda each: each.expires)
            self._end(first)
            self._note_yield(first, over_cap=True)
        return end in self._keeps

    def expire(self) -> None:
        """End the keeps that have no time left."""
        if self._keeps:
            now = self._clock()
            for keep in [keep for keep in self if keep.expires <= now]:
                self._end(keep)

    def yield_one(self, partition: str | None) -> bool:
        """
        End the keep with the least time left, because all else was evicted; and tell whether there was one.

        Args:
            partition: The partition in which room is needed; None for any.
        """
        # A leased one would leave no block to evict.
        free = [keep for keep in self if not keep.end.locks and partition in (None, keep.end.partition)]
        first = min(free, key=lambda keep: keep.expires, default=None)
        if first is None:
            return False
        self._end(first)
        self._note_yield(first, over_cap=False)
        return True

    def forget(self, nodes: Sequence[Node]) -> None:
        """End the keeps of blocks that are about to leave the trie, with all below them."""
        if self._keeps:
            for node in nodes:
                if (keep := self._keeps.get(node)) is not None:
                    self._end(keep)

    def expires_in(self, keep: Keep) -> float:
        """Return the seconds until the time of a keep is over."""
        return max(0.0, keep.expires - self._clock())

    def check(self) -> None:
        """
        Recount.

        Raises:
            AssertionError: If blocks, bytes or the marks of blocks disagree, or the share is exceeded.
        """
        held = Counter(node for keep in self for node in keep.path())
        stored = self._trie.subtree(self._trie.tops(lambda _: True))
        assert all(node.kept == held[node] for node in stored), "marks of kept blocks drifted"
        assert held.keys() <= set(stored), "a block is kept that is not stored"
        sizes = {node: keep.bytes_of(node) for keep in self for node in keep.path()}
        assert self.blocks == len(sizes), "kept blocks drifted"
        assert self.nbytes == sum(sizes.values()) + sum(keep.end_bytes for keep in self), "kept bytes drifted"
        assert self.nbytes <= self.most_bytes, "more bytes are kept than allowed"
        assert self.blocks <= self._most_blocks, "more blocks are kept than allowed"

    def _begin(self, keep: Keep) -> None:
        self._keeps[keep.end] = keep
        for node in keep.path():
            node.kept += 1
            if node.kept == 1:
                self._count(1, keep.bytes_of(node))
        self._count(0, keep.end_bytes)
        if keep.end.checkpoint is not None:
            keep.end.checkpoint.kept = True

    def _end(self, keep: Keep) -> None:
        del self._keeps[keep.end]
        for node in keep.path():
            node.kept -= 1
            if not node.kept:
                self._count(-1, -keep.bytes_of(node))
        self._count(0, -keep.end_bytes)
        if keep.end.checkpoint is not None:
            keep.end.checkpoint.kept = False
        self._trie.offer(keep.end)

    def _count(self, blocks: int, nbytes: int) -> None:
        self.blocks += blocks
        self.nbytes += nbytes

    def _note_yield(self, keep: Keep, *, over_cap: bool) -> None:
        self.yielded += 1
        facts = {"blocks": keep.end.depth, "prefix_bytes": keep.nbytes}
        if over_cap:
            log.info("kept_prefix_over_cap", **facts)
        else:
            log.info("kept_prefix_evicted", **facts)


def _end_bytes(spec: PrefixSpec, end: Node) -> int:
    """Return the bytes of windows and state that a request needs to go on after a block or a tail."""
    if not end.is_tail:
        return spec.resume_bytes(end.depth)
    windows = [group for group in spec.groups if group.window is not None]
    return spec.state_bytes + sum(group.seen(end.end) * group.block_bytes // BLOCK_TOKENS for group in windows)
