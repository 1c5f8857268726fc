"""Adapters, one file for each mlx-lm cache class that the prefix cache can store, restore and batch."""

from __future__ import annotations

from typing import TypeVar

from daemon.kv.mlx.adapters.arrays import ArraysAdapter
from daemon.kv.mlx.adapters.base import BlockAdapter, CacheAdapter, MergingAdapter, StateAdapter
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter
from daemon.kv.mlx.adapters.rotating import RotatingAdapter
from daemon.kv.mlx.adapters.shared import SharedAdapter

A = TypeVar("A", bound=CacheAdapter)


def _by_cache_class(*adapters: A) -> dict[type, A]:
    return {adapter.cache_class: adapter for adapter in adapters}


MERGING_ADAPTERS: dict[type, MergingAdapter] = _by_cache_class(KVCacheAdapter(), SharedAdapter())
"""Adapters of classes that can become one batch before a prefill pass; by the class of one sequence's cache."""

BLOCK_ADAPTERS: dict[type, BlockAdapter] = {**MERGING_ADAPTERS, **_by_cache_class(RotatingAdapter())}
"""Adapters of classes with KV for each token, stored in blocks; by the class of one sequence's cache."""

STATE_ADAPTERS: dict[type, StateAdapter] = _by_cache_class(ArraysAdapter())
"""Adapters of classes with a state, stored in checkpoints; by the class of one sequence's cache."""

ADAPTERS: dict[type, CacheAdapter] = {**BLOCK_ADAPTERS, **STATE_ADAPTERS}
"""All of them, by the class of one sequence's cache."""

BATCH_ADAPTERS: dict[type, CacheAdapter] = {adapter.batch_class: adapter for adapter in ADAPTERS.values()}
"""All of them, by the class of a batch's cache."""
