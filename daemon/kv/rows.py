"""Rows: caches of one sequence become rows of a batch's cache, and rows become caches again."""

from __future__ import annotations

from collections.abc import Generator, Sequence
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

from daemon.kv.passes import in_pieces

log = structlog.get_logger()


def joinable(cache: Any) -> bool:
    """Whether mlx-lm can batch a cache, by its exact class: a subclass may keep something that is lost in a batch."""
    if type(cache) is CacheList:
        return all(map(joinable, cache.caches))
    if type(cache) is RotatingKVCache:
        return bool(cache.keep == 0)
    return type(cache) in (KVCache, ArraysCache)


def batched(cache: Any) -> Any:
    """Return a cache of one sequence as a batch of one, which can be extended by others and filtered."""
    if type(cache) is CacheList:
        return CacheList(*map(batched, cache.caches))
    if type(cache) is RotatingKVCache:
        return BatchRotatingKVCache.merge([cache])
    return _batched_kv(cache) if type(cache) is KVCache else cache


def unbatched(batch: Any, row: int) -> Any:
    """Return a row as a cache of its own: views where the class allows it, until they are copied or written to."""
    if type(batch) is CacheList:
        return CacheList(*(unbatched(part, row) for part in batch.caches))
    return _unbatched_kv(batch, row) if type(batch) is BatchKVCache else batch.extract(row)


def proving(model: Any) -> Generator[None, None, bool]:
    """
    Tell whether sequences of a model may share forward passes; a layer for each `next`.

    The classes of its caches must be known, and it is tried: two rows of different length must compute what they
    compute alone, and so must the one that stays when the other leaves.
    """
    if not all(map(joinable, make_prompt_cache(model))):
        return False
    try:
        exact = yield from _rows_are_exact(model)
    except Exception:  # whatever a model's own code raises that reckons with one row only
        log.exception("this model cannot compute several rows; its requests do not share forward passes")
        return False
    if not exact:
        log.warning("rows of a batch compute something else; requests of this model do not share forward passes")
    return exact


def _rows_are_exact(model: Any) -> Generator[None, None, bool]:
    prompts = [[1, 2], [2, 3, 4]]
    alone = [make_prompt_cache(model) for _ in prompts]
    joined: list[Any] = []
    for prompt, caches in zip(prompts, alone, strict=True):
        rows = make_prompt_cache(model)
        for one in (caches, rows):
            yield from in_pieces(model, mx.array([prompt]), one)
        rows = list(map(batched, rows))
        for cache, other in zip(joined, rows, strict=False):
            cache.extend(other)
        joined = joined or rows
    expected = []
    for token in (7, 8):
        for caches in alone:
            logits = yield from in_pieces(model, mx.array([[token]]), caches)
            expected.append(logits[0, -1])
    together = yield from in_pieces(model, mx.array([[7], [7]]), joined)
    last = [unbatched(cache, 1) for cache in joined]
    after = yield from in_pieces(model, mx.array([[8]]), last)
    return all(map(_close, [together[0, -1], together[1, -1], after[0, -1]], [*expected[:2], expected[3]]))


def _close(got: mx.array, expected: mx.array) -> bool:
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    return bool(close.item()) and bool((mx.argmax(got) == mx.argmax(expected)).item())


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
