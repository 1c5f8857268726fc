"""Turns the caches of a running sequence into those of one that reads a shared prefix, and back restores into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.mlx.adapters.cache_list import leaves, map_leaves
from daemon.kv.mlx.adapters.kv_cache import empty_room, joined
from daemon.kv.mlx.shared_kv import SharedKV
from daemon.kv.mlx.shared_prefix import Arrays, Memory, SharedPrefix

LEAST_SHARED = 512
"""Fewest tokens that are worth sharing: with fewer, attention in parts takes longer than it saves."""


def share(caches: Sequence[Any], tokens: int, room: int, *, copy: bool) -> tuple[list[Any], SharedPrefix]:
    """
    Let the first tokens of a sequence's cache be a shared prefix.

    Args:
        caches: One for each layer.
        tokens: How many; the caches hold as many at least, and more than the prefix that they may read already.
        room: Tokens that the tail shall have room for.
        copy: Whether the prefix shall be a copy rather than a view, which keeps all of the caches' arrays in memory.
            It is made layer by layer: the arrays of a layer are free before the next one is copied.

    Returns:
        The caches that take the place of these, and the prefix.
    """
    flat = list(leaves(caches))
    before = prefix_of(flat)
    start = 0 if before is None else before.stop
    fronts: dict[int, Arrays] = {}
    held = 0
    tails: dict[int, KVCache] = {}
    for index, cache in enumerate(flat):
        whole = cache.tail if isinstance(cache, SharedKV) else cache
        if isinstance(whole, KVCache):
            front = whole.keys[:, :, : tokens - start], whole.values[:, :, : tokens - start]
            fronts[index] = (mx.contiguous(front[0]), mx.contiguous(front[1])) if copy else front
            tail = tails[index] = _tail(whole, tokens - start, room)
            held += sum(array.nbytes for array in (front if copy else (whole.keys, whole.values)))
            if copy:
                mx.eval(*fronts[index], tail.keys, tail.values)
                # Not evaluated, unless a later layer fails and the sequence goes on with these caches.
                whole.keys = mx.concatenate([fronts[index][0], tail.keys], axis=2)
                whole.values = mx.concatenate([fronts[index][1], tail.values], axis=2)
    prefix = SharedPrefix(start, tokens, fronts, Memory(held), before)
    mx.eval(*fronts.values(), [(tail.keys, tail.values) for tail in tails.values()])
    return reading(caches, prefix, tails), prefix


def reading(caches: Sequence[Any], prefix: SharedPrefix, tails: dict[int, KVCache]) -> list[Any]:
    """Return caches in which those of `tails`, by their number, read a prefix; the others stay."""
    numbers = iter(range(sum(1 for _ in leaves(caches))))

    def read(cache: Any) -> Any:
        index = next(numbers)
        return SharedKV(prefix, index, tails[index]) if index in tails else cache

    return [map_leaves(read, cache) for cache in caches]


def prefix_of(caches: Sequence[Any]) -> SharedPrefix | None:
    """Return the shared prefix that a sequence's caches read; None if there is none."""
    return next((cache.prefix for cache in leaves(caches) if isinstance(cache, SharedKV)), None)


def behind(runs: Sequence[Run], tokens: int) -> list[Run]:
    """Return what is left of runs without their first tokens."""
    left, rest = tokens, []
    for run in runs:
        skipped = min(left, run.stop - run.start)
        left -= skipped
        if run.start + skipped < run.stop:
            rest.append(run._replace(start=run.start + skipped))
    return rest


def _tail(cache: KVCache, tokens: int, room: int) -> KVCache:
    """Return a cache of the tokens behind the first ones, copied, with room for more."""
    tail, held = KVCache(), cache.offset - tokens
    keys, values = cache.keys[:, :, tokens : cache.offset], cache.values[:, :, tokens : cache.offset]
    tail.keys = joined([keys], empty_room(keys, max(0, room - held)))
    tail.values = joined([values], empty_room(values, max(0, room - held)))
    tail.offset = held
    return tail
