"""The adapter of mlx-lm's plain `KVCache`: full attention, any head width, MLA latents included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Extent
from daemon.kv.source import NotHeldError

CACHE_CLASS = KVCache
"""Adapters match exact classes: a subclass may keep something that this one does not know."""


class Shape(NamedTuple):
    """Shape and type of one layer's KV. Layers that agree in it can share an extent."""

    heads: int
    key_width: int
    value_width: int
    key_dtype: mx.Dtype
    value_dtype: mx.Dtype

    @classmethod
    def of(cls, cache: KVCache) -> Shape:
        """Return that of a cache that holds at least one token."""
        keys, values = cache.keys, cache.values
        return cls(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, values.dtype)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token needs in this layer."""
        return self.heads * (self.key_width * self.key_dtype.size + self.value_width * self.value_dtype.size)

    def __str__(self) -> str:
        return f"KVCache[{self.heads}x{self.key_width}+{self.value_width},{self.key_dtype},{self.value_dtype}]"


def pack(caches: Sequence[KVCache], start: int, stop: int) -> Extent:
    """
    Copy blocks `start` to `stop` of layers with equal signature into one extent.

    The payload is one array [2 * layers, heads, tokens, width] with keys and values in turn, or, where keys and values
    differ in width or dtype, one array [layers, heads, tokens, width] for each. It is evaluated: a lazy slice would
    keep the whole live buffer alive and make its next write a copy.

    Raises:
        NotHeldError: If a layer does not hold these tokens.
    """
    first, last = start * BLOCK_TOKENS, stop * BLOCK_TOKENS
    if any(cache.offset < last for cache in caches):
        raise NotHeldError(f"a layer holds fewer than {last} tokens")
    keys = [cache.keys[0, :, first:last] for cache in caches]
    values = [cache.values[0, :, first:last] for cache in caches]
    return packed(keys, values, start, stop)


def packed(keys: list[mx.array], values: list[mx.array], start: int, stop: int) -> Extent:
    """Copy each layer's keys and values, [heads, tokens, width], into one extent of blocks `start` to `stop`."""
    if _alike(keys[0], values[0]):
        arrays = [mx.stack([array for pair in zip(keys, values, strict=True) for array in pair])]
    else:
        # A stack of one is a view of it: make it a copy, so that it does not keep the live buffer alive.
        arrays = [mx.contiguous(mx.stack(keys)), mx.contiguous(mx.stack(values))]
    return _extent(arrays, start, stop)


def copied(extent: Extent, first: int, last: int) -> Extent:
    """Copy the blocks from one position of an extent to another into an extent of their own."""
    tokens = slice(first * BLOCK_TOKENS, last * BLOCK_TOKENS)
    arrays = [mx.contiguous(array[:, :, tokens]) for array in cast("tuple[mx.array, ...]", extent.payload)]
    return _extent(arrays, extent.start + first, extent.start + last)


def restore(caches: Sequence[KVCache], runs: Sequence[Run], capacity: int) -> None:
    """
    Fill empty caches with the KV of `runs`, with room for `capacity` tokens in all. One copy; evaluated.

    Raises:
        ValueError: If a cache is not empty, or there are no runs, or they do not fit.
    """
    tokens = sum(run.stop - run.start for run in runs) * BLOCK_TOKENS
    if not 0 < tokens <= capacity or any(not cache.empty() for cache in caches):
        raise ValueError("restore needs a prefix, and empty caches with room for it")
    rooms = [room(layer_parts(runs, 0, which)[0], capacity - tokens) for which in (0, 1)]
    for layer, cache in enumerate(caches):
        cache.keys, cache.values = (joined(layer_parts(runs, layer, which), rooms[which]) for which in (0, 1))
        cache.offset = tokens
    mx.eval([(cache.keys, cache.values) for cache in caches])


def reserve(cache: KVCache, shape: Shape, capacity: int) -> None:
    """Give an empty cache room for `capacity` tokens, so that prefill never regrows it."""
    cache.keys = mx.zeros((1, shape.heads, capacity, shape.key_width), shape.key_dtype)
    cache.values = mx.zeros((1, shape.heads, capacity, shape.value_width), shape.value_dtype)


def layer_parts(runs: Sequence[Run], layer: int, which: int) -> list[mx.array]:
    """Return views of the keys (`which` 0) or values (1) of one layer of a group, [1, heads, tokens, width] each."""
    return [_layer(run, layer, which) for run in runs]


def room(like: mx.array, tokens: int) -> mx.array:
    """Return zeros for so many tokens, [1, heads, tokens, width] as in `like`: a view of a single one."""
    _, heads, _, width = like.shape
    return mx.broadcast_to(mx.zeros((), like.dtype), (1, heads, tokens, width))


def joined(parts: Sequence[mx.array], behind: mx.array) -> mx.array:
    """Copy parts and the room behind them into one array. Even no room is a part: a concatenation of one is a view."""
    return mx.concatenate([*parts, behind], axis=2)


def _extent(arrays: list[mx.array], start: int, stop: int) -> Extent:
    mx.eval(arrays)
    return Extent(tuple(arrays), sum(a.nbytes for a in arrays), len(arrays), start, stop - start)


def _alike(keys: mx.array, values: mx.array) -> bool:
    return bool(keys.shape == values.shape and keys.dtype == values.dtype)


def _layer(run: Run, layer: int, which: int) -> mx.array:
    arrays = cast("tuple[mx.array, ...]", run.payload)
    source, index = (arrays[0], 2 * layer + which) if len(arrays) == 1 else (arrays[which], layer)
    # A slice of one is a view; an index would copy the layer out of the whole extent first.
    return source[index : index + 1, :, run.start * BLOCK_TOKENS : run.stop * BLOCK_TOKENS]
