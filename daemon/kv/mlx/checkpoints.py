"""Packing and restoring of checkpoints: the states of all recurrent layers in a few arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx

from daemon.kv.mlx.adapters import STATE_ADAPTERS
from daemon.kv.nodes import Checkpoint

States = list[list[mx.array]]
"""The arrays of each layer, each with one row: [1, ...]."""


class _Packed(NamedTuple):
    """
    The payload of a checkpoint.

    Attributes:
        stacks: One array for each shape and dtype, [arrays of that kind, 1, ...].
        places: For each array of each layer, its stack and its index in that stack.
    """

    stacks: tuple[mx.array, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]


def states(caches: Sequence[Any], row: int | None = None) -> States:
    """
    Return the present state of each recurrent layer.

    Of one row of a batch if `row` is given: copied, because a view would keep the states of all rows in memory. The
    device begins to compute the copies. A single sequence's arrays are returned as they are.
    """
    present = [STATE_ADAPTERS[type(cache)].state(cache, row) for cache in caches]
    if row is None:
        return present
    copies = [[mx.contiguous(array) for array in layer] for layer in present]
    mx.async_eval(copies)
    return copies


def pack(layers: States) -> Checkpoint:
    """
    Copy the states of all layers into a checkpoint: one evaluated array for each shape and dtype.

    The copies are compact: an array of a state may be a view of a larger one.
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


def unpacked(checkpoint: Checkpoint) -> tuple[tuple[mx.array, ...], tuple[tuple[tuple[int, int], ...], ...]]:
    """Return the stacks of a checkpoint, and the places of each layer's arrays in them; see `of`."""
    stacks, places = cast("_Packed", checkpoint.payload)
    return stacks, places


def of(stacks: Sequence[mx.array], places: Sequence[Sequence[Sequence[int]]]) -> Checkpoint:
    """
    Return the checkpoint that `unpacked` took apart.

    Args:
        stacks: One array for each shape and dtype, compact.
        places: For each array of each layer, its stack and its index in that stack.
    """
    mx.eval(list(stacks))
    told = tuple(tuple((int(stack), int(index)) for stack, index in layer) for layer in places)
    return Checkpoint(_Packed(tuple(stacks), told), sum(stack.nbytes for stack in stacks), len(stacks))


def restore(caches: Sequence[Any], checkpoint: Checkpoint) -> None:
    """
    Give empty caches of recurrent layers the state of a checkpoint. One copy; evaluated.

    Raises:
        ValueError: If a cache is not empty, or the checkpoint is of other layers.
    """
    stacks, places = cast("_Packed", checkpoint.payload)
    adapters = [STATE_ADAPTERS[type(cache)] for cache in caches]
    slots = [adapter.slots(cache) for adapter, cache in zip(adapters, caches, strict=True)]
    if slots != list(map(len, places)):
        raise ValueError("a checkpoint belongs to other layers")
    if any(not cache.empty() for cache in caches):
        raise ValueError("a checkpoint needs empty caches")
    restored = [[mx.contiguous(stacks[stack][index]) for stack, index in place] for place in places]
    for adapter, cache, arrays in zip(adapters, caches, restored, strict=True):
        adapter.load(cache, arrays)
    mx.eval(restored)
