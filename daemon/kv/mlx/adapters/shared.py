"""The adapter of caches that read a shared prefix, `SharedKV` and `SharedBatchKV`."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters.base import MergingAdapter
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter, packed_parts
from daemon.kv.mlx.shared_kv import SharedBatchKV, SharedKV
from daemon.kv.nodes import Extent
from daemon.kv.spec import NotHeldError

_TAILS = KVCacheAdapter()


class SharedAdapter(MergingAdapter):
    """Moves tails; the prefixes stay where they are. No model makes such caches, so there is none to describe."""

    cache_class = SharedKV
    batch_class = SharedBatchKV

    def describe(self, cache: SharedKV) -> None:
        """Return None: the shape is that of the cache that it stands for."""

    def pretend(self, cache: SharedKV, shape: object, tokens: int) -> None:
        """Do nothing: no cache of a model is one of these."""

    def pack(self, caches: Sequence[SharedKV], start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of layers of equal shape into one extent.

        Raises:
            NotHeldError: If a layer does not hold these tokens.
        """
        return _packed(caches, start * BLOCK_TOKENS, stop * BLOCK_TOKENS, start, stop)

    def tail(self, caches: Sequence[SharedKV], first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last`, which end inside a block, into one extent of that block.

        Raises:
            NotHeldError: If a layer does not hold these tokens.
        """
        block = last // BLOCK_TOKENS
        return _packed(caches, first, last, block, block + 1)

    def restore(self, caches: Sequence[SharedKV], runs: Sequence[Run], tokens: int, capacity: int) -> None:
        """Raise ValueError: a prefix is there already. `Layout.restored_cache` restores the tails."""
        raise ValueError("the cache of a shared prefix is not empty")

    def shrink(self, cache: SharedKV) -> None:
        """Copy the tail if it is a view of a batch's."""
        if cache.tail.keys is not None:
            _TAILS.shrink(cache.tail)

    def fit(self, cache: SharedKV | SharedBatchKV, room: int) -> None:
        """Let the tails have room for so many more tokens."""
        _TAILS.fit(cache.tail, room)

    def to_batch(self, cache: SharedKV) -> SharedBatchKV:
        """Return a batch of one row, which shares the tail's arrays."""
        return SharedBatchKV([cache.prefix], cache.layer, _TAILS.to_batch(cache.tail))

    def to_single(self, batch: SharedBatchKV, row: int) -> SharedKV:
        """Return one row; its tail is a view."""
        return SharedKV(batch.prefixes[row], batch.layer, _TAILS.to_single(batch.tail, row))

    def mark(self, cache: SharedKV) -> None:
        """Return nothing: tokens of a pass are in the tail, and its length tells which there are."""

    def back(self, cache: SharedKV, mark: None, fed: int, kept: int) -> None:
        """Forget the last tokens of a pass."""
        cache.trim(fed - kept)

    def back_rows(self, batch: SharedBatchKV, mark: None, width: int, kept: Sequence[int]) -> None:
        """Let each tail end behind what stays of it."""
        _TAILS.back_rows(batch.tail, mark, width, kept)

    def merge(
        self, caches: Sequence[SharedKV], kept: Sequence[int], padding: Sequence[int], room: int
    ) -> SharedBatchKV:
        """Copy the first `kept` tokens of each tail into the rows of one batch, which end together."""
        tail = _TAILS.merge([cache.tail for cache in caches], kept, padding, room)
        return SharedBatchKV([cache.prefix for cache in caches], caches[0].layer, tail)


def _packed(caches: Sequence[SharedKV], first: int, last: int, start: int, stop: int) -> Extent:
    """Copy tokens `first` to `last` of layers of equal shape into one extent of blocks `start` to `stop`."""
    if any(cache.offset < last for cache in caches):
        raise NotHeldError(f"a layer holds fewer than {last} tokens")
    parts = [_between(cache, first, last) for cache in caches]
    return packed_parts([keys for keys, _ in parts], [values for _, values in parts], start, stop)


def _between(cache: SharedKV, first: int, last: int) -> tuple[list[mx.array], list[mx.array]]:
    """Return views of the keys and values of tokens `first` to `last`, in parts of [heads, tokens, width]."""
    parts = [(prefix.start, prefix.stop, *prefix.layers[cache.layer]) for prefix in cache.prefix.path]
    tail = cache.tail
    if tail.keys is not None:
        parts.append((cache.prefix.stop, cache.offset, tail.keys, tail.values))
    keys, values = [], []
    for start, stop, more_keys, more_values in parts:
        within = slice(max(first, start) - start, min(last, stop) - start)
        if within.start < within.stop:
            keys.append(more_keys[0, :, within])
            values.append(more_values[0, :, within])
    return keys, values
