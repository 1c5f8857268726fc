"""
KV caches of sequences that read a shared prefix: each has only the tail of its own tokens.

They stand where mlx-lm's `KVCache` and `BatchKVCache` stand. A model that asks them for keys and values gets those of
the tails. What the tails lack, `shared_attention.py` adds: it is called with the cache, and finds the prefix there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from daemon.kv.mlx import latents
from daemon.kv.mlx.rows_kv import RowsKV
from daemon.kv.mlx.shared_prefix import SharedPrefix

Readers = tuple[SharedPrefix, list[int]]
"""A prefix, and the rows of a pass that read it."""


class _Shared:
    """
    What caches of one sequence and of several have in common: the methods of mlx-lm's caches that concern tails.

    Attributes:
        prefixes: The last prefix of each row.
        layer: Number of the layer's cache.
        tail: KV of the tokens behind the prefixes.
        latent: Whether the layer keeps latents.
        positions: The position keys of the tails that a latent layer fetched last.
        attended: Whether its prefix was read.
    """

    def __init__(self, prefixes: Sequence[SharedPrefix], layer: int, tail: Any) -> None:
        self.prefixes = list(prefixes)
        self.layer = layer
        self.tail = tail
        self.latent = latents.are_latents(self.prefixes[0].layers[layer])
        self.positions: latents.PositionKeys | None = None
        self.attended = False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add tokens to the tails, and return the whole tails; several tokens of latents also get the prefixes."""
        fetched: tuple[mx.array, mx.array] = self.tail.update_and_fetch(keys, values)
        if not self.latent:
            return fetched
        if keys.shape[2] > 1:
            return latents.whole(self.prefixes, self.layer, fetched)
        self.positions = latents.PositionKeys(fetched[1])
        return fetched[0], self.positions

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:  # noqa: N803
        """
        Return the mask of what is fetched; all tokens see the whole prefix.

        Raises:
            ValueError: If a window is asked for: it may end within the prefix.
        """
        if window_size is not None:
            raise ValueError("a window cannot be cut out of a shared prefix")
        whole = self.latent and N > 1
        mask = self.tail.make_mask(N, return_array=return_array or whole, window_size=None)
        return latents.whole_mask(self.prefixes, mask) if whole else mask

    @property
    def state(self) -> Any:
        """The arrays of the tails, to evaluate."""
        return self.tail.state

    @property
    def keys(self) -> Any:
        """The keys of the tails. A model that is cut between layers lets them depend on what it sent."""
        return self.tail.keys

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self.tail.keys = keys

    @property
    def nbytes(self) -> int:
        """Bytes of the tails."""
        return 0 if self.tail.keys is None else int(self.tail.keys.nbytes + self.tail.values.nbytes)

    def is_trimmable(self) -> bool:
        """Tokens can be taken out of the tails."""
        return True

    def trim(self, n: int) -> int:
        """Take the last tokens of the tails out again."""
        return int(self.tail.trim(n))

    def empty(self) -> bool:
        """Whether there is nothing in it: never, there is a prefix."""
        return False


class SharedKV(_Shared):
    """
    The cache of one layer of one sequence.

    Args:
        prefix: The last prefix that it reads.
        layer: Number of the layer's cache.
        tail: KV of the tokens behind the prefix.
    """

    def __init__(self, prefix: SharedPrefix, layer: int, tail: KVCache) -> None:
        super().__init__([prefix], layer, tail)

    @property
    def prefix(self) -> SharedPrefix:
        """The last prefix that it reads."""
        return self.prefixes[0]

    @property
    def offset(self) -> int:
        """Tokens of the sequence."""
        return int(self.prefix.stop + self.tail.offset)

    def size(self) -> int:
        """Return the tokens of the sequence."""
        return self.offset

    @property
    def readers(self) -> list[Readers]:
        """Each prefix with its rows."""
        return [(prefix, [0]) for prefix in self.prefix.path]


class SharedBatchKV(_Shared):
    """
    The cache of one layer of several sequences, whose tails are padded on the left.

    Args:
        prefixes: The last prefix that each row reads.
        layer: Number of the layer's cache.
        tail: KV of the tokens behind the prefixes.
    """

    def __init__(self, prefixes: Sequence[SharedPrefix], layer: int, tail: RowsKV) -> None:
        super().__init__(prefixes, layer, tail)
        self._stops = mx.array([prefix.stop for prefix in prefixes])

    @property
    def offset(self) -> mx.array:
        """Tokens of each sequence."""
        offsets: mx.array = self._stops + self.tail.offset
        return offsets

    @property
    def readers(self) -> list[Readers]:
        """Each prefix with its rows, those of the first tokens first."""
        rows: dict[SharedPrefix, list[int]] = {}
        for row, last in enumerate(self.prefixes):
            for prefix in last.path:
                rows.setdefault(prefix, []).append(row)
        return list(rows.items())

    def extend(self, other: SharedBatchKV) -> None:
        """Add the rows of another batch; the tails are copied."""
        self.tail.extend(other.tail)
        self._read([*self.prefixes, *other.prefixes])

    def filter(self, rows: list[int]) -> None:
        """Keep these rows, in this order; the tails are copied."""
        self.tail.filter(rows)
        self._read([self.prefixes[row] for row in rows])

    def _read(self, prefixes: list[SharedPrefix]) -> None:
        self.prefixes = prefixes
        self._stops = mx.array([prefix.stop for prefix in prefixes])
