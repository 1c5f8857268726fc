"""The adapter of mlx-lm's `ArraysCache`: recurrent layers, whose state sums up all tokens before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from daemon.kv.nodes import Checkpoint

CACHE_CLASS = ArraysCache

States = list[list[mx.array]]
"""The arrays of each layer, each with one row: [1, ...]."""


class Shape(NamedTuple):
    """Shape and type of each array of one layer's state."""

    arrays: tuple[tuple[tuple[int, ...], mx.Dtype], ...]

    @classmethod
    def of(cls, cache: ArraysCache) -> Shape:
        """Return that of a cache that has seen at least one token."""
        return cls(tuple((tuple(array.shape), array.dtype) for array in cache.cache))

    @property
    def nbytes(self) -> int:
        """Bytes of the state, whatever the number of tokens."""
        return sum(math.prod(shape) * dtype.size for shape, dtype in self.arrays)

    def __str__(self) -> str:
        return "ArraysCache[" + ",".join(f"{shape}{dtype}" for shape, dtype in self.arrays) + "]"


def understood(cache: ArraysCache) -> bool:
    """Whether the cache is one row's whole state: no array is missing, and nothing is padded."""
    whole = bool(cache.cache) and all(array is not None for array in cache.cache)
    return whole and cache.left_padding is None and cache.lengths is None


def states(caches: Sequence[ArraysCache], row: int | None = None) -> States:
    """
    Return the present state of each layer, of one row of a batch if so asked.

    No copy: a layer replaces its arrays and never writes to them.
    """
    if row is None:
        return [list(cache.cache) for cache in caches]
    return [[array[row : row + 1] for array in cache.cache] for cache in caches]


class _Packed(NamedTuple):
    """Arrays that hold many of a state's arrays each, and for each of those: which it is in, and at which index."""

    stacks: tuple[mx.array, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]


def pack(layers: States) -> Checkpoint:
    """
    Copy the state of all layers into a checkpoint: one evaluated array for each shape and dtype.

    Compact copies: an array of a state may be a view of a larger one.
    """
    kinds: dict[tuple[tuple[int, ...], mx.Dtype], list[mx.array]] = {}
    places = []
    for layer in layers:
        place = []
        for array in layer:
            kind = kinds.setdefault((tuple(array.shape), array.dtype), [])
            kind.append(array)
            place.append((list(kinds).index((tuple(array.shape), array.dtype)), len(kind) - 1))
        places.append(tuple(place))
    # A stack of one is a view of it: make it a copy.
    stacks = tuple(mx.contiguous(mx.stack(arrays)) for arrays in kinds.values())
    mx.eval(stacks)
    return Checkpoint(_Packed(stacks, tuple(places)), sum(stack.nbytes for stack in stacks), len(stacks))


def restore(caches: Sequence[ArraysCache], checkpoint: Checkpoint) -> None:
    """
    Give empty caches the state of a checkpoint. One copy; evaluated.

    Raises:
        ValueError: If a cache is not empty, or the checkpoint is of other layers.
    """
    stacks, places = cast("_Packed", checkpoint.payload)
    if len(places) != len(caches) or any(len(place) != len(c.cache) for place, c in zip(places, caches, strict=True)):
        raise ValueError("a checkpoint belongs to other layers")
    if any(not cache.empty() for cache in caches):
        raise ValueError("a checkpoint needs empty caches")
    for cache, place in zip(caches, places, strict=True):
        cache.cache = [mx.contiguous(stacks[stack][index]) for stack, index in place]
    mx.eval([cache.cache for cache in caches])
