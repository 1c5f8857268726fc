"""
What latent attention (DeepSeek V3 and its kin) needs of a cache of sequences that read a shared prefix.

Such a layer keeps latents where others keep keys, and the keys of its rotary positions where others keep values. The
model scores the positions itself, and hands these scores over in place of a mask:

    one token        scores = query @ position keys;  attend(query, latents, latents, mask=scores)
    several tokens   scores = queries @ position keys;  attend(queries, expanded keys, expanded values, mask=scores)

For one token, the query of the positions is what the attention lacks to score those of the prefix: `PositionKeys` take
it down. For several tokens the model expands all latents that it gets. So it gets prefix and tails as one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from daemon.kv.mlx.shared_prefix import Arrays, SharedPrefix


class PositionKeys(mx.array):
    """
    Position keys that take down what they are asked.

    Attributes:
        asked: The queries, [rows, heads, 1, width], once the model has scored the positions.
    """

    asked: mx.array | None = None

    def swapaxes(self, axis1: int, axis2: int, *, stream: Any = None) -> mx.array:
        """Return the keys as columns, for the model's product."""
        return _Columns(self, super().swapaxes(axis1, axis2, stream=stream))


class _Columns(mx.array):
    """Transposed position keys; Python asks the right side of a product first if its class is the narrower one."""

    def __init__(self, keys: PositionKeys, columns: mx.array) -> None:
        super().__init__(columns)
        self._keys = keys

    def __rmatmul__(self, queries: mx.array) -> mx.array:
        """Return the scores of the tails."""
        self._keys.asked = queries
        return mx.matmul(queries, self)


def are_latents(arrays: Arrays) -> bool:
    """
    Tell whether a layer's arrays are latents and position keys: of one head, and the latents are the wider ones.

    One head of plain attention may look the same. It computes the same in either way.
    """
    keys, values = arrays
    return keys.shape[1] == values.shape[1] == 1 and keys.shape[-1] > values.shape[-1]


def whole(prefixes: Sequence[SharedPrefix], layer: int, tails: Arrays) -> Arrays:
    """Return prefixes and tails of each row as one array, in which the shorter prefixes are padded on the left."""
    longest = max(prefix.stop for prefix in prefixes)
    both: list[mx.array] = []
    for which, tail in enumerate(tails):
        rows = []
        for row, last in enumerate(prefixes):
            parts = [prefix.layers[layer][which] for prefix in last.path]
            padding = mx.zeros((1, 1, longest - last.stop, tail.shape[-1]), tail.dtype)
            rows.append(mx.concatenate([padding, *parts, tail[row : row + 1]], axis=2))
        both.append(mx.concatenate(rows))
    return both[0], both[1]


def whole_mask(prefixes: Sequence[SharedPrefix], tails: mx.array) -> mx.array:
    """Return the mask of `whole`, from that of the tails: [rows, 1, tokens, keys], or [tokens, keys] for all rows."""
    longest = max(prefix.stop for prefix in prefixes)
    padding = mx.array([longest - prefix.stop for prefix in prefixes])
    seen = padding[:, None, None, None] <= mx.arange(longest)
    own = tails if tails.ndim == 4 else tails[None, None]
    rows, tokens = len(prefixes), own.shape[2]
    seen = mx.broadcast_to(seen, (rows, 1, tokens, longest))
    return mx.concatenate([seen, mx.broadcast_to(own, (rows, *own.shape[1:]))], axis=-1)
