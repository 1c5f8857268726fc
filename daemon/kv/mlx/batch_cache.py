"""Conversion between the caches of single sequences and the rows of a batch's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daemon.kv.mlx.adapters import ADAPTERS, BATCH_ADAPTERS, MERGING_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves, map_leaves
from daemon.kv.mlx.sharing import prefix_of


def joinable(cache: Any) -> bool:
    """Whether a cache can be batched, by its exact class: a batch may lose what a subclass keeps."""
    return all(type(leaf) in ADAPTERS and ADAPTERS[type(leaf)].can_batch(leaf) for leaf in leaves([cache]))


def to_batch(cache: Any) -> Any:
    """Return a cache of one sequence as a batch of one, which can be extended by others and filtered."""
    return map_leaves(lambda leaf: ADAPTERS[type(leaf)].to_batch(leaf), cache)


def to_single(batch: Any, row: int) -> Any:
    """Return a row as a cache of its own: views where the class allows it, until they are copied or written to."""
    return map_leaves(lambda leaf: BATCH_ADAPTERS[type(leaf)].to_single(leaf, row), batch)


def plain(caches: Sequence[Any]) -> bool:
    """Whether caches keep each token for itself, so that `merge_caches` takes them."""
    return all(type(cache) in MERGING_ADAPTERS for cache in caches)


def merge_caches(rows: Sequence[Sequence[Any]], tokens: Sequence[int], width: int, room: int) -> list[Any]:
    """
    Return the caches of several sequences as those of one batch, for a pass over the last `width` tokens of each.

    Each row is fed `width` tokens. A row with fewer new tokens recomputes some cached ones, so no row needs padding
    behind its tokens. A row with fewer than `width` tokens in all is padded before them.

    Args:
        rows: The caches of each sequence, which are `plain`; they are copied.
        tokens: How many tokens each sequence will hold after the pass.
        width: How many tokens are fed to each row; no row lacks more.
        room: Tokens to leave room for.
    """
    prefixes = [prefix_of(row) for row in rows]
    own = [count - (0 if prefix is None else prefix.stop) for count, prefix in zip(tokens, prefixes, strict=True)]
    kept = [max(0, count - width) for count in own]
    longest = max(kept)
    padding = [longest + width - count for count in own]
    return [MERGING_ADAPTERS[type(layer[0])].merge(layer, kept, padding, room) for layer in zip(*rows, strict=True)]
