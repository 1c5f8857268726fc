"""The prefix cache with empty KV, to measure its index alone."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.kv.evictor import PrefixLimits
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import LayerGroup, PrefixSpec, Resume

_BLOCK_BYTES = 1024
_PARTS = PrefixSpec((LayerGroup(_BLOCK_BYTES),))


class Index:
    """
    The index of a prefix cache, for a model with full attention only.

    Args:
        blocks: Most blocks.
    """

    def __init__(self, blocks: int) -> None:
        self._cache = PrefixCache(PrefixLimits(blocks, blocks * _BLOCK_BYTES), copy=_packed)

    @property
    def blocks(self) -> int:
        """Number of stored blocks."""
        return self._cache.trie.blocks

    def insert(self, tokens: Sequence[int]) -> None:
        """Store a prompt."""
        self._cache.store("n", tokens, _PARTS, _NoKV(), resume=Resume.YES)

    def lookup(self, tokens: Sequence[int]) -> int:
        """Return the number of stored tokens of a prompt."""
        with self._cache.lookup("n", tokens, _PARTS) as lease:
            return lease.tokens

    def evict(self, tokens: int) -> None:
        """Evict the number of blocks that a prompt of `tokens` tokens has."""
        self._cache.shed(tokens // BLOCK_TOKENS * _BLOCK_BYTES)


class _NoKV:
    """A source of empty extents."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks of one group."""
        return Extent((), (stop - start) * _BLOCK_BYTES, 1, start, stop - start)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Return the tail of one group."""
        return Extent((), (last - first) * _BLOCK_BYTES // BLOCK_TOKENS, 1, last // BLOCK_TOKENS, 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return None: full attention has no state beside its KV."""
        return None


def _packed(extent: Extent, first: int, last: int) -> Extent:
    return _NoKV().pack(0, extent.start + first, extent.start + last)
