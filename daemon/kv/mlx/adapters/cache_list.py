"""Walks through mlx-lm's `CacheList`, a layer with several caches, each of which has an adapter of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlx_lm.models.cache import CacheList


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """Yield the caches in order; the members of a list take the place of the list."""
    for cache in caches:
        if type(cache) is CacheList:
            yield from leaves(cache.caches)
        else:
            yield cache


def map_leaves(convert: Callable[[Any], Any], cache: Any) -> Any:
    """Return a cache converted: of a list, a list of its converted members."""
    if type(cache) is CacheList:
        return CacheList(*(map_leaves(convert, member) for member in cache.caches))
    return convert(cache)
