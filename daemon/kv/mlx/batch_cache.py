"""Rows: caches of one sequence become rows of a batch's cache, and rows become caches again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.shared.slices import Sliced

log = structlog.get_logger()

_NOISE_MARGIN = 4.0
"""Rows of different length may be so many times as far from exact as equal rows are."""

_MOST_NOISE = 0.05
"""A share of the range of a row's logits: whatever the noise, a row that is off by more is refused."""


def joinable(cache: Any) -> bool:
    """Whether mlx-lm can batch a cache, by its exact class: a subclass may keep something that is lost in a batch."""
    if type(cache) is CacheList:
        return all(map(joinable, cache.caches))
    if type(cache) is RotatingKVCache:
        return bool(cache.keep == 0)
    return type(cache) in (KVCache, ArraysCache)


def to_batch(cache: Any) -> Any:
    """Return a cache of one sequence as a batch of one, which can be extended by others and filtered."""
    if type(cache) is CacheList:
        return CacheList(*map(to_batch, cache.caches))
    if type(cache) is RotatingKVCache:
        return BatchRotatingKVCache.merge([cache])
    return _batched_kv(cache) if type(cache) is KVCache else cache


def to_single(batch: Any, row: int) -> Any:
    """Return a row as a cache of its own: views where the class allows it, until they are copied or written to."""
    if type(batch) is CacheList:
        return CacheList(*(to_single(part, row) for part in batch.caches))
    return _unbatched_kv(batch, row) if type(batch) is BatchKVCache else batch.extract(row)


def plain(caches: Sequence[Any]) -> bool:
    """Whether caches keep each token for itself, so that `joined` takes them."""
    return all(type(cache) is KVCache for cache in caches)


def merge_caches(rows: Sequence[Sequence[Any]], tokens: Sequence[int], width: int, room: int) -> list[BatchKVCache]:
    """
    Return the caches of several sequences as those of one batch, for a pass over the last `width` tokens of each.

    All rows are fed as many tokens, so that none is padded behind: one that lacks fewer computes some of those again
    that it holds, and one that has fewer in all is padded before.

    Args:
        rows: The caches of each sequence, which are `plain`; copied.
        tokens: How many each sequence will hold after the pass.
        width: How many are fed; no row lacks more.
        room: Tokens to leave room for.
    """
    kept = [max(0, count - width) for count in tokens]
    longest = max(kept)
    padding = [longest + width - count for count in tokens]
    return [_joined(layer, kept, longest, padding, room) for layer in zip(*rows, strict=True)]


def _joined(layer: Sequence[KVCache], kept: Sequence[int], longest: int, padding: list[int], room: int) -> BatchKVCache:
    batch = BatchKVCache(padding)
    if longest:
        batch.keys = _right_justified([cache.keys for cache in layer], kept, longest, room)
        batch.values = _right_justified([cache.values for cache in layer], kept, longest, room)
        batch.offset = batch.offset + longest
        batch._idx = longest
    return batch


def _right_justified(arrays: Sequence[mx.array | None], kept: Sequence[int], longest: int, room: int) -> mx.array:
    """Return the first tokens of arrays of shape [1, heads, tokens, width] as rows of one array that end together."""
    like = next(array for array in arrays if array is not None)
    rows = mx.zeros((len(arrays), like.shape[1], longest + room, like.shape[3]), like.dtype)
    for index, (array, count) in enumerate(zip(arrays, kept, strict=True)):
        if array is not None and count:
            rows[index : index + 1, :, longest - count : longest] = array[..., :count, :]
    return rows


def _one_after_the_other(model: Any, prompts: list[list[int]]) -> Sliced[list[mx.array]]:
    """Feed equally long prompts, then two single tokens, and return the last row's logits after each of the three."""
    caches, logits = make_prompt_cache(model), []
    for tokens in (prompts, [[7]] * len(prompts), [[8]] * len(prompts)):
        after = yield from forward_layerwise(model, mx.array(tokens), caches)
        logits.append(after[-1, -1])
    return logits


def _apart(one: mx.array, other: mx.array) -> float:
    return _number(mx.max(mx.abs(one.astype(mx.float32) - other.astype(mx.float32))))


def _number(scalar: mx.array) -> float:
    return float(scalar.item())  # type: ignore[arg-type]


def _batched_kv(cache: KVCache) -> BatchKVCache:
    batch = BatchKVCache([0])
    batch.keys, batch.values = cache.keys, cache.values
    batch.offset = mx.array([cache.offset])
    batch._idx = cache.offset
    return batch


def _unbatched_kv(batch: BatchKVCache, row: int) -> KVCache:
    padding = _ints(batch.left_padding)[row]
    cache = KVCache()
    cache.keys = batch.keys[row : row + 1, :, padding:]
    cache.values = batch.values[row : row + 1, :, padding:]
    cache.offset = batch._idx - padding
    return cache


def _ints(array: mx.array) -> Sequence[int]:
    return [int(value) for value in array.tolist()]  # type: ignore[union-attr,arg-type]
