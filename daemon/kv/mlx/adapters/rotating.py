"""The adapter of mlx-lm's `RotatingKVCache`: sliding windows that keep only the last tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import BatchRotatingKVCache, RotatingKVCache, dynamic_roll

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters import kv_cache
from daemon.kv.mlx.adapters.base import BlockAdapter
from daemon.kv.nodes import Extent
from daemon.kv.spec import NotHeldError


class WindowShape(NamedTuple):
    """Shape and type of one layer's KV, and the tokens of its window. Layers of equal shape can share an extent."""

    kv: kv_cache.KVShape
    window: int

    @classmethod
    def of(cls, cache: RotatingKVCache) -> WindowShape:
        """Return the shape of a cache that holds at least one token."""
        return cls(kv_cache.KVShape.of(cache), cache.max_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token within the window needs in this layer."""
        return self.kv.bytes_per_token

    @property
    def state_bytes(self) -> int:
        """There is no state beside the KV."""
        return 0

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """Bytes of the window and of the chunk that is computed behind it."""
        return min(capacity, self.window + chunk) * self.bytes_per_token

    def __str__(self) -> str:
        return f"Rotating{self.kv}/{self.window}"


class RotatingAdapter(BlockAdapter):
    """Copies the tokens that a window still holds out of live caches and back into empty ones."""

    cache_class = RotatingKVCache
    batch_class = BatchRotatingKVCache

    def describe(self, cache: RotatingKVCache) -> WindowShape | None:
        """Return the shape of a cache that holds one token; None for one that keeps its first tokens."""
        return WindowShape.of(cache) if cache.offset == 1 and understood(cache) else None

    def pretend(self, cache: RotatingKVCache, shape: WindowShape, tokens: int) -> None:
        """Let an empty cache stand as if it had seen so many tokens: it holds those in sight."""
        visible, kv = min(tokens, cache.max_size), shape.kv
        cache.keys = mx.zeros((1, kv.heads, visible, kv.key_width), kv.key_dtype)
        cache.values = mx.zeros((1, kv.heads, visible, kv.value_width), kv.value_dtype)
        cache.offset, cache._idx = tokens, visible

    def pack(self, caches: Sequence[RotatingKVCache], start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of layers of equal shape into one extent, in temporal order.

        Raises:
            NotHeldError: If a block has left the window.
        """
        return _packed(caches, start * BLOCK_TOKENS, stop * BLOCK_TOKENS, start, stop)

    def tail(self, caches: Sequence[RotatingKVCache], first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last` of layers of equal shape into one extent, in temporal order.

        Raises:
            NotHeldError: If a token has left the window.
        """
        block = last // BLOCK_TOKENS
        return _packed(caches, first, last, block, block + 1)

    def restore(self, caches: Sequence[RotatingKVCache], runs: Sequence[Run], tokens: int, capacity: int) -> None:
        """
        Fill empty caches with the tokens of `runs` that the window sees after `tokens` tokens. One copy; evaluated.

        mlx-lm wants exactly the tokens in sight: with fewer it fails, and padding would be attended to. A window
        grows by itself, so there is no room to leave for `capacity`.

        Raises:
            ValueError: If a cache is not empty, or there are no runs, or they do not reach back far enough.
        """
        held = sum(run.stop - run.start for run in runs)
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

    def mark(self, cache: RotatingKVCache) -> tuple[Any, ...]:
        """Return the arrays and counts of a cache; a pass of one token writes into the arrays that the cache has."""
        return cache.keys[...], cache.values[...], cache.offset, cache._idx

    def back(self, cache: RotatingKVCache, mark: tuple[Any, ...], fed: int, kept: int) -> None:
        """Forget the last tokens of a pass. It kept those that a window of its first token sees, in temporal order."""
        if kept:
            held = cache.keys.shape[2] - (fed - kept)
            cache.keys, cache.values = cache.keys[..., :held, :], cache.values[..., :held, :]
            cache.offset, cache._idx = cache.offset - (fed - kept), held
        else:
            cache.keys, cache.values, cache.offset, cache._idx = mark

    def begin_rows(self, batch: BatchRotatingKVCache, lengths: Sequence[int], width: int) -> None:
        """Put the tokens into temporal order: the mask of a pass over several counts padding from the oldest place."""
        batch._temporal_order()

    def back_rows(self, batch: BatchRotatingKVCache, mark: Any, width: int, kept: Sequence[int]) -> None:
        """
        Move each row to the right by what is forgotten of it: windows are short, and all rows of them turn together.

        A pass over several tokens leaves them in temporal order, with more of them than a window has. What a row moves
        away from counts as padding. The pass has dropped one token that its first token does not see. A row of which
        nothing stays gets it back: a window that is stored has it.
        """
        dropped = -1 if mark is None else mark[3] - batch.max_size
        if dropped >= 0 and not all(kept):
            oldest = slice(dropped, dropped + 1)
            batch.keys = mx.concatenate([mark[0][..., oldest, :], batch.keys], axis=2)
            batch.values = mx.concatenate([mark[1][..., oldest, :], batch.values], axis=2)
            batch.left_padding = batch.left_padding + 1
        surplus = [width - count for count in kept]
        shift = mx.array(surplus) - min(surplus)
        held = batch.keys.shape[2] - min(surplus)
        unseen = max(0, held - batch.max_size)
        batch.keys = dynamic_roll(batch.keys[..., :held, :], shift[:, None], axis=2)[..., unseen:, :]
        batch.values = dynamic_roll(batch.values[..., :held, :], shift[:, None], axis=2)[..., unseen:, :]
        batch.left_padding = mx.maximum(batch.left_padding, 0) + shift - unseen
        batch.offset = batch.offset - mx.array(surplus)
        batch._idx = batch._offset = held - unseen

    def shrink(self, cache: RotatingKVCache) -> None:
        """Drop the beginning of the last chunk, which no later token sees, as mlx-lm does next; copy views."""
        unseen = max(0, cache.keys.shape[2] - cache.max_size)
        cache.keys = mx.contiguous(cache.keys[..., unseen:, :])
        cache.values = mx.contiguous(cache.values[..., unseen:, :])
        if unseen:
            cache._idx = cache.max_size

    def fit(self, cache: RotatingKVCache | BatchRotatingKVCache, room: int) -> None:
        """
        Take out what pads all rows: a longer one has left. mlx-lm keeps it until the window turns. Evaluated.

        A window grows by itself, so there is no room to give for the tokens that follow.
        """
        padding = min(cache.left_padding.tolist()) if isinstance(cache, BatchRotatingKVCache) else 0
        if padding <= 0:
            return
        mx.eval(cache.keys, cache.values)  # they may be a choice of rows: what they were chosen from becomes free
        cache._temporal_order()
        cache.keys = mx.contiguous(cache.keys[..., padding:, :])
        mx.eval(cache.keys)  # first, so that one of both exists twice at a time
        cache.values = mx.contiguous(cache.values[..., padding:, :])
        cache.left_padding = cache.left_padding - padding
        cache._idx -= padding
        cache._offset = cache._idx

    def can_batch(self, cache: RotatingKVCache) -> bool:
        """Whether mlx-lm can batch this cache: not if it keeps its first tokens."""
        return understood(cache)

    def to_batch(self, cache: RotatingKVCache) -> BatchRotatingKVCache:
        """Return a batch of one row, copied."""
        return BatchRotatingKVCache.merge([cache])

    def to_single(self, batch: BatchRotatingKVCache, row: int) -> RotatingKVCache:
        """
        Return one row as a cache of views: a ring stays one, unless padding is left in it. Then the tokens are copied.

        mlx-lm copies in any case: the windows of all layers would be there twice when the end of an answer is stored.
        """
        cache, padding = RotatingKVCache(batch.max_size), max(0, batch.left_padding.tolist()[row])
        rows = batch.keys[row : row + 1], batch.values[row : row + 1]
        cache.keys, cache.values = (_row(array, batch._idx, padding, rotated=batch.rotated) for array in rows)
        cache.offset = batch.offset.tolist()[row]
        cache._idx = batch._idx if batch.rotated and not padding else cache.keys.shape[2]
        return cache


def understood(cache: Any) -> bool:
    """Whether a `RotatingKVCache` is a plain window: the adapter cannot handle tokens kept for ever (`keep`)."""
    return bool(cache.keep == 0)


def _row(array: mx.array, end: int, padding: int, *, rotated: bool) -> mx.array:
    """Return the tokens of a row that ends at a place, [1, heads, tokens, width]: as a ring, or in their order."""
    if not rotated:
        return array[:, :, padding:end]
    return array if not padding else mx.concatenate([array[:, :, end + padding :], array[:, :, :end]], axis=2)


def _packed(caches: Sequence[RotatingKVCache], first: int, last: int, start: int, stop: int) -> Extent:
    """
    Copy tokens `first` to `last` of each layer, in temporal order, into an extent of blocks `start` to `stop`.

    Tokens on both sides of a ring's end are two parts.
    """
    places = [_places(cache, first, last) for cache in caches]
    keys = [_parts(cache.keys, at) for cache, at in zip(caches, places, strict=True)]
    values = [_parts(cache.values, at) for cache, at in zip(caches, places, strict=True)]
    return kv_cache.packed_parts(keys, values, start, stop)


def _places(cache: RotatingKVCache, first: int, last: int) -> list[slice]:
    """Return where a ring has tokens `first` to `last`, in temporal order: in one place, or around its end in two."""
    size = cache.keys.shape[2]
    rotated = cache._idx < min(size, cache.offset)
    oldest = cache.offset - (size if rotated else cache._idx)
    if first < oldest or cache.offset < last:
        raise NotHeldError(f"a window holds tokens {oldest} to {cache.offset}, not {first} to {last}")
    start = first - oldest + (cache._idx if rotated else 0)
    stop = start + last - first
    if start >= size:
        return [slice(start - size, stop - size)]
    return [slice(start, stop)] if stop <= size else [slice(start, size), slice(0, stop - size)]


def _parts(array: mx.array, places: list[slice]) -> list[mx.array]:
    """Return views of the places of a ring, [1, heads, size, width], without its first axis."""
    return [array[0, :, place] for place in places]


def _last(parts: list[mx.array], tokens: int) -> mx.array:
    """Copy the last tokens of parts, which hold that many at least, into one array."""
    surplus = sum(part.shape[2] for part in parts) - tokens
    visible = []
    for part in parts:
        skipped = min(surplus, part.shape[2])
        surplus -= skipped
        visible.append(part[:, :, skipped:])
    return kv_cache.joined(visible, kv_cache.empty_room(parts[0], 0))
