"""The adapter of mlx-lm's plain `KVCache`: full attention, any head width, MLA latents included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent, Run

CACHE_CLASS = KVCache
"""Adapters match exact classes: a subclass may keep something that this one does not know."""


def signature(cache: KVCache) -> str:
    """Return the shape and dtype of a cache that holds at least one token: layers that agree can share an extent."""
    _, heads, _, key_width = cache.keys.shape
    return f"KVCache[{heads}x{key_width}+{cache.values.shape[-1]},{cache.keys.dtype},{cache.values.dtype}]"


def bytes_per_token(cache: KVCache) -> int:
    """Return the bytes that one token needs in this layer."""
    capacity = cache.keys.shape[2]
    return int((cache.keys.nbytes + cache.values.nbytes) // capacity)


def pack(caches: Sequence[KVCache], start: int, stop: int) -> Extent:
    """
    Copy blocks `start` to `stop` of layers with equal signature into one extent.

    The payload is one array [2 * layers, heads, tokens, width] with keys and values in turn, or, where keys and values
    differ in width or dtype, one array [layers, heads, tokens, width] for each. It is evaluated: a lazy slice would
    keep the whole live buffer alive and make its next write a copy.

    Raises:
        ValueError: If a layer does not hold these tokens.
    """
    first, last = start * BLOCK_TOKENS, stop * BLOCK_TOKENS
    if any(cache.offset < last for cache in caches):
        raise ValueError(f"a layer holds fewer than {last} tokens")
    keys = [cache.keys[0, :, first:last] for cache in caches]
    values = [cache.values[0, :, first:last] for cache in caches]
    if _alike(keys[0], values[0]):
        arrays = [mx.stack([array for pair in zip(keys, values, strict=True) for array in pair])]
    else:
        arrays = [mx.stack(keys), mx.stack(values)]
    mx.eval(arrays)
    return Extent(tuple(arrays), sum(a.nbytes for a in arrays), len(arrays), stop - start)


def restore(caches: Sequence[KVCache], runs: Sequence[Run], capacity: int) -> None:
    """
    Fill empty caches with the KV of `runs`, with room for `capacity` tokens in all. One copy; evaluated.

    Raises:
        ValueError: If a cache is not empty, or the runs do not fit.
    """
    tokens = sum(run.stop - run.start for run in runs) * BLOCK_TOKENS
    if tokens > capacity or any(not cache.empty() for cache in caches):
        raise ValueError("restore needs empty caches with room for the prefix")
    for layer, cache in enumerate(caches):
        cache.keys = _join([_layer(run, layer, 0) for run in runs], capacity - tokens)
        cache.values = _join([_layer(run, layer, 1) for run in runs], capacity - tokens)
        cache.offset = tokens
    mx.eval([(cache.keys, cache.values) for cache in caches])


def reserve(caches: Sequence[KVCache], template: Sequence[KVCache], capacity: int) -> None:
    """Give empty caches room for `capacity` tokens, in the shapes of `template`, so that prefill never regrows them."""
    for cache, like in zip(caches, template, strict=True):
        cache.keys = _zeros(like.keys, capacity)
        cache.values = _zeros(like.values, capacity)


def _alike(keys: mx.array, values: mx.array) -> bool:
    return bool(keys.shape == values.shape and keys.dtype == values.dtype)


def _layer(run: Run, layer: int, which: int) -> mx.array:
    arrays = cast("tuple[mx.array, ...]", run.payload)
    source = arrays[0][2 * layer + which] if len(arrays) == 1 else arrays[which][layer]
    return source[None, :, run.start * BLOCK_TOKENS : run.stop * BLOCK_TOKENS]


def _join(parts: list[mx.array], room: int) -> mx.array:
    heads, width = parts[0].shape[1], parts[0].shape[3]
    if room:
        parts = [*parts, mx.zeros((1, heads, room, width), parts[0].dtype)]
    return mx.concatenate(parts, axis=2)


def _zeros(like: mx.array, capacity: int) -> mx.array:
    _, heads, _, width = like.shape
    return mx.zeros((1, heads, capacity, width), like.dtype)
