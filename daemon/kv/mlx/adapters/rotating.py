"""The adapter of mlx-lm's `RotatingKVCache`: sliding windows that keep only the last tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters import kv_cache
from daemon.kv.nodes import Extent
from daemon.kv.source import NotHeldError

CACHE_CLASS = RotatingKVCache


class Shape(NamedTuple):
    """Shape and type of one layer's KV, and the tokens of its window. Layers that agree in it can share an extent."""

    kv: kv_cache.Shape
    window: int

    @classmethod
    def of(cls, cache: RotatingKVCache) -> Shape:
        """Return that of a cache that holds at least one token."""
        return cls(kv_cache.Shape.of(cache), cache.max_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token within the window needs in this layer."""
        return self.kv.bytes_per_token

    def __str__(self) -> str:
        return f"Rotating{self.kv}/{self.window}"


def understood(cache: RotatingKVCache) -> bool:
    """Whether the cache is a plain window: tokens that are kept for ever (`keep`) are not understood."""
    return bool(cache.keep == 0)


def pack(caches: Sequence[RotatingKVCache], start: int, stop: int) -> Extent:
    """
    Copy blocks `start` to `stop` of layers with equal shape into one extent, in temporal order; see `kv_cache.pack`.

    Raises:
        NotHeldError: If a block has left the window.
    """
    first, last = start * BLOCK_TOKENS, stop * BLOCK_TOKENS
    parts = [_between(cache, first, last) for cache in caches]
    return kv_cache.packed([keys for keys, _ in parts], [values for _, values in parts], start, stop)


def restore(caches: Sequence[RotatingKVCache], runs: Sequence[Run], tokens: int) -> None:
    """
    Fill empty caches with the KV of `runs`: the blocks that the window can see after `tokens` tokens. One copy;
    evaluated.

    mlx-lm wants exactly the tokens in sight: with fewer it fails, and padding would be attended to.

    Raises:
        ValueError: If a cache is not empty, or there are no runs, or they do not reach back far enough.
    """
    held = sum(run.stop - run.start for run in runs) * BLOCK_TOKENS
    if not held or any(not cache.empty() for cache in caches):
        raise ValueError("restore needs a prefix, and empty caches")
    for layer, cache in enumerate(caches):
        visible = min(tokens, cache.max_size)
        if held < visible:
            raise ValueError(f"a window of {visible} tokens cannot be restored from {held}")
        cache.keys = _last(kv_cache.layer_parts(runs, layer, 0), visible)
        cache.values = _last(kv_cache.layer_parts(runs, layer, 1), visible)
        cache.offset, cache._idx = tokens, visible
    mx.eval([(cache.keys, cache.values) for cache in caches])


def _between(cache: RotatingKVCache, first: int, last: int) -> tuple[mx.array, mx.array]:
    keys, values = cache._temporal_order(cache.keys), cache._temporal_order(cache.values)
    oldest = cache.offset - keys.shape[2]
    if first < oldest or cache.offset < last:
        raise NotHeldError(f"a window holds tokens {oldest} to {cache.offset}, not {first} to {last}")
    return keys[0, :, first - oldest : last - oldest], values[0, :, first - oldest : last - oldest]


def _last(parts: list[mx.array], tokens: int) -> mx.array:
    """Copy the last tokens of parts, which hold that many at least, into one array."""
    surplus = sum(part.shape[2] for part in parts) - tokens
    visible = []
    for part in parts:
        skipped = min(surplus, part.shape[2])
        surplus -= skipped
        visible.append(part[:, :, skipped:])
    return kv_cache.joined(visible, kv_cache.room(parts[0], 0))
