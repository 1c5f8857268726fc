"""Bytes of caches without an adapter: how they grow is measured at two lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.shared.slices import Sliced

ROOM_STEP = 256
"""Tokens by which mlx-lm grows a KV cache; capacities are multiples of it."""

_FED = ((63, 64, 64, 64), (64, 64, 64, 64))
"""Chunks that a cache without an adapter is fed before its two measurements; it holds one token before."""


class Growth(Protocol):
    """The bytes of one cache, or of several that are measured together."""

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """Return the bytes with room for so many tokens, of which at most `chunk` are computed at a time."""


class Measured(NamedTuple):
    """
    A cache without an adapter, measured at two lengths.

    Attributes:
        fixed: Bytes that do not depend on the length.
        per_token: Bytes of each token.
    """

    fixed: int
    per_token: int

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """Bytes of the capacity: it counts as if it never forgot a token, where it did not before the second length."""
        return self.fixed + capacity * self.per_token


def measuring(model: Any, caches: Sequence[Any]) -> Sliced[tuple[Measured, ...]]:
    """
    Feed more tokens to caches that hold one, and return what each of them takes.

    The two lengths are whole growth steps of mlx-lm's caches: a cache that grows in steps is full at both. One
    that has more than a token's bytes after one token grows in steps. It counts a step more: it may be anywhere.
    """
    sizes = [[_held_bytes(cache) for cache in caches]]
    for lengths in _FED:
        for tokens in lengths:
            yield from forward_layerwise(model, mx.array([[1] * tokens]), caches)
        sizes.append([_held_bytes(cache) for cache in caches])
    measured = []
    for one, full, more in zip(*sizes, strict=True):
        token = max(0, -(-(more - full) // ROOM_STEP))
        fixed = max(0, full - ROOM_STEP * token)
        measured.append(Measured(fixed + (ROOM_STEP * token if one - fixed > token else 0), token))
    return tuple(measured)


def _held_bytes(cache: Any) -> int:
    """Return the bytes of a cache of any class: what it says, or its arrays if they are more."""
    arrays = [array for _, array in tree_flatten(cache.state) if isinstance(array, mx.array)]
    return max(int(getattr(cache, "nbytes", 0)), sum(array.nbytes for array in arrays))
