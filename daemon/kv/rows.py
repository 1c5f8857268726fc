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

from daemon.kv.passes import in_pieces
from daemon.log_fields import Words
from daemon.machine import machine_fault
from daemon.pieces import Pieces

_NOISE_MARGIN = 4.0
"""Rows of different length may be so many times as far from exact as equal rows are."""

_MOST_NOISE = 0.05
"""A share of the range of a row's logits: whatever the noise, a row that is off by more is refused."""

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


def plain(caches: Sequence[Any]) -> bool:
    """Whether caches keep each token for itself, so that `joined` takes them."""
    return all(type(cache) is KVCache for cache in caches)


def joined(rows: Sequence[Sequence[Any]], tokens: Sequence[int], width: int, room: int) -> list[BatchKVCache]:
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


def proving(model: Any) -> Pieces[bool]:
    """
    Tell whether sequences of a model may share forward passes; a layer for each `next`.

    The classes of its caches must be known, and it is tried: two rows of different length must compute what they
    compute alone, prompts and single tokens, and so must the one that stays when the other leaves.
    """
    if not all(map(joinable, make_prompt_cache(model))):
        return False
    try:
        exact = yield from _rows_are_exact(model)
    except Exception as error:  # whatever a model's own code raises that reckons with one row only
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("this model cannot compute several rows; its requests do not share forward passes", error=said)
        return False
    if not exact:
        log.warning("rows of a batch compute something else; requests of this model do not share forward passes")
    return exact


def _rows_are_exact(model: Any) -> Pieces[bool]:
    prompts = [[1, 2], [2, 3, 4]]
    expected = []
    for prompt in prompts:
        expected += yield from _one_after_the_other(model, [prompt])
    rows = yield from (_prefilled_together if plain(make_prompt_cache(model)) else _prefilled_one_by_one)(
        model, prompts
    )
    together = yield from in_pieces(model, mx.array([[7], [7]]), rows)
    last = [unbatched(cache, 1) for cache in rows]
    after = yield from in_pieces(model, mx.array([[8]]), last)
    got = [together[0, -1], together[1, -1], after[0, -1]]
    pairs = list(zip(got, [expected[1], expected[4], expected[5]], strict=True))
    if all(_close(one, other, 0.0) for one, other in pairs):
        return True
    twice = yield from _one_after_the_other(model, [prompts[1], prompts[1]])
    noise = max(_apart(one, other) for one, other in zip(twice, expected[3:], strict=True))
    return all(_close(one, other, noise) for one, other in pairs)


def _one_after_the_other(model: Any, prompts: list[list[int]]) -> Pieces[list[mx.array]]:
    """Feed equally long prompts, then two single tokens, and return the last row's logits after each of the three."""
    caches, logits = make_prompt_cache(model), []
    for tokens in (prompts, [[7]] * len(prompts), [[8]] * len(prompts)):
        after = yield from in_pieces(model, mx.array(tokens), caches)
        logits.append(after[-1, -1])
    return logits


def _prefilled_one_by_one(model: Any, prompts: list[list[int]]) -> Pieces[list[Any]]:
    rows: list[Any] = []
    for prompt in prompts:
        caches = make_prompt_cache(model)
        yield from in_pieces(model, mx.array([prompt]), caches)
        more = list(map(batched, caches))
        for cache, other in zip(rows, more, strict=False):
            cache.extend(other)
        rows = rows or more
    return rows


def _prefilled_together(model: Any, prompts: list[list[int]]) -> Pieces[list[Any]]:
    """Prefill all but the last tokens in one pass, padded, and then those, each with the one before once more."""
    caches = [make_prompt_cache(model) for _ in prompts]
    lengths = [len(prompt) - 1 for prompt in prompts]
    rows = joined(caches, lengths, max(lengths), 1)
    fed = [[0] * (max(lengths) - len(prompt) + 1) + prompt[:-1] for prompt in prompts]
    yield from in_pieces(model, mx.array(fed), rows)
    caches = [[unbatched(cache, index) for cache in rows] for index in range(len(prompts))]
    rows = joined(caches, [length + 1 for length in lengths], 2, 2)
    yield from in_pieces(model, mx.array([prompt[-2:] for prompt in prompts]), rows)
    return rows


def _close(got: mx.array, expected: mx.array, noise: float) -> bool:
    """
    Tell whether logits are those expected, as far as the device's kernels can.

    On a GPU the kernels of a matrix product depend on its shape, and so do its last bits: `noise` is how far the logits
    of equal rows, which nothing can confuse, are from those of one row. A row that is confused with another, or that
    sees another's padding, is off by a good part of the range of its logits.
    """
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    spread = _number(mx.max(expected) - mx.min(expected))
    margin = min(_NOISE_MARGIN * noise, _MOST_NOISE * spread)
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3 + margin, equal_nan=True)
    choice = expected[mx.argmax(got)]
    return bool(close.item()) and bool((choice >= mx.max(expected) - 2 * margin).item())


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
