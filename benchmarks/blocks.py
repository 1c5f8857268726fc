"""The prefix cache without KV: what is left is its index."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.kv.evictor import PrefixLimits
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.source import Resume
from daemon.kv.spec import LayerGroup, PrefixSpec

_BLOCK_BYTES = 1024
_PARTS = PrefixSpec((LayerGroup(_BLOCK_BYTES),))


class Index:
    """
    An index for at most so many blocks of a model of plain attention.

    Args:
        blocks: Most blocks.
    """

    def __init__(self, blocks: int) -> None:
        self._cache = PrefixCache(PrefixLimits(blocks, blocks * _BLOCK_BYTES), copy=_packed)

    @property
    def blocks(self) -> int:
        """Blocks that it has."""
        return self._cache.trie.blocks

    def insert(self, tokens: Sequence[int]) -> None:
        """Store a prompt."""
        self._cache.store("n", tokens, _PARTS, _NoKV(), resume=Resume.YES)

    def lookup(self, tokens: Sequence[int]) -> int:
        """Look a prompt up and return how many of its tokens are stored."""
        with self._cache.lookup("n", tokens, _PARTS) as lease:
            return lease.tokens

    def evict(self, tokens: int) -> None:
        """Evict as many blocks as a prompt of so many tokens has."""
        self._cache.shed(tokens // BLOCK_TOKENS * _BLOCK_BYTES)


class _NoKV:
    """A source of empty extents."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks of one group."""
        return Extent((), (stop - start) * _BLOCK_BYTES, 1, start, stop - start)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Plain attention has no state."""
        return None


def _packed(extent: Extent, first: int, last: int) -> Extent:
    return _NoKV().pack(0, extent.start + first, extent.start + last)
