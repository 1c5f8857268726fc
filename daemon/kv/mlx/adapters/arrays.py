"""The adapter of mlx-lm's `ArraysCache`: the state of recurrent layers, which sums up all tokens before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from daemon.kv.mlx.adapters.base import StateAdapter


class StateShape(NamedTuple):
    """Shape and type of each array of one layer's state."""

    arrays: tuple[tuple[tuple[int, ...], mx.Dtype], ...]

    @classmethod
    def of(cls, cache: ArraysCache) -> StateShape:
        """Return the shape of a cache that has seen at least one token."""
        return cls(tuple((tuple(array.shape), array.dtype) for array in cache.cache))

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, independent of the number of tokens."""
        return sum(math.prod(shape) * dtype.size for shape, dtype in self.arrays)

    @property
    def bytes_per_token(self) -> int:
        """A state keeps nothing for a single token."""
        return 0

    @property
    def window(self) -> int | None:
        """A state is as long as its sequence."""
        return None

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """Bytes of the state; capacity and chunk do not change them."""
        return self.state_bytes

    def __str__(self) -> str:
        return "ArraysCache[" + ",".join(f"{shape}{dtype}" for shape, dtype in self.arrays) + "]"


class ArraysAdapter(StateAdapter):
    """Reads and writes the state of `ArraysCache`. A layer replaces its arrays and never writes into them."""

    cache_class = ArraysCache
    batch_class = ArraysCache

    def describe(self, cache: ArraysCache) -> StateShape | None:
        """Return the shape of a cache; None if an array is missing or a row is padded."""
        return StateShape.of(cache) if understood(cache) else None

    def pretend(self, cache: ArraysCache, shape: StateShape, tokens: int) -> None:
        """Give an empty cache a state of zeros."""
        cache.cache = [mx.zeros(size, dtype) for size, dtype in shape.arrays]

    def compact(self, cache: ArraysCache) -> None:
        """
        Copy arrays that are views. Not evaluated.

        Many models of mlx-lm 0.32 keep the last inputs of a convolution as a slice of the whole chunk's, which stays in
        memory as long as the slice does. `mx.contiguous` copies a view of a buffer that is more than 16 KiB larger.
        """
        cache.cache = [None if array is None else mx.contiguous(array) for array in cache.cache]

    def to_batch(self, cache: ArraysCache) -> ArraysCache:
        """Return the same cache: its arrays are rows already."""
        return cache

    def mark(self, cache: ArraysCache) -> list[mx.array]:
        """Return the arrays of a cache. A pass replaces them."""
        return list(cache.cache)

    def back(self, cache: ArraysCache, mark: list[mx.array], fed: int, kept: int) -> None:
        """Put the state before the pass in its place again."""
        cache.cache = list(mark)

    def begin_rows(self, batch: ArraysCache, lengths: Sequence[int], width: int) -> None:
        """Tell the layer which tokens are padding; without any, it is a pass like others."""
        if min(lengths) < width:
            batch.prepare(lengths=list(lengths))

    def back_rows(self, batch: ArraysCache, mark: list[mx.array], width: int, kept: Sequence[int]) -> None:
        """Put the state before the pass into each row of which nothing stays."""
        batch.lengths = None
        stays = mx.array([bool(count) for count in kept])
        if not all(kept):
            batch.cache = [_chosen(stays, new, old) for new, old in zip(batch.cache, mark, strict=True)]

    def state(self, cache: ArraysCache, row: int | None = None) -> list[mx.array]:
        """Return the arrays of a cache, [1, ...] each. No copy."""
        return list(cache.cache) if row is None else [array[row : row + 1] for array in cache.cache]

    def slots(self, cache: ArraysCache) -> int:
        """Return how many arrays a cache has."""
        return len(cache.cache)

    def load(self, cache: ArraysCache, arrays: list[mx.array]) -> None:
        """Give an empty cache its arrays."""
        cache.cache = arrays


def _chosen(rows: mx.array, array: mx.array, other: mx.array) -> mx.array:
    """Return the rows of one array where `rows` is true, and of another where it is not."""
    return mx.where(rows.reshape(-1, *[1] * (array.ndim - 1)), array, other)


def understood(cache: Any) -> bool:
    """Whether an `ArraysCache` is the whole state of one row: no array is missing, and nothing is padded."""
    whole = bool(cache.cache) and all(array is not None for array in cache.cache)
    return whole and cache.left_padding is None and cache.lengths is None
