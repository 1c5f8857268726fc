"""The adapter of mlx-lm's `CacheList`: a layer with several caches, each of which has an adapter of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mlx_lm.models.cache import CacheList

CACHE_CLASS = CacheList


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """Yield the caches in order, those of a list in place of the list."""
    for cache in caches:
        if type(cache) is CACHE_CLASS:
            yield from leaves(cache.caches)
        else:
            yield cache
