"""Batches: sequences of one model that decode in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from daemon.engine.sampling import Sampled, Sampler
from daemon.engine.sequence import Sequence
from daemon.kv.rows import batched, unbatched

EVALUATE_STEPS = 256
"""Cache fields that no token depends on would grow a lazy chain; evaluating them this often keeps it short."""

MOST_PADDING = 1.25
"""Rows are padded to the longest of their batch: the padded KV may be this many times the sum of the rows."""

FREE_PADDING = 64
"""And it may be so many tokens a row more: a cache grows by 256 at a time anyway, and short rows would seldom agree."""


@dataclass(slots=True, eq=False)
class Row:
    """A running sequence: its sampler, and the token that the device computes now."""

    sequence: Sequence
    sampler: Sampler
    pending: Sampled

    @property
    def length(self) -> int:
        """Tokens of the sequence so far."""
        return len(self.sequence.prompt) + len(self.sequence.generated)

    @property
    def ends(self) -> bool:
        """Whether the pending token is the last that the sequence may have."""
        return len(self.sequence.generated) + 1 >= self.sequence.max_tokens


class Batch:
    """
    One or more rows that share each forward pass, left-padded to the longest.

    While several rows are in it, their KV is joined in one cache for each layer, and a sequence's own `cache` is None;
    `leave` gives it back. A single row keeps its own cache, of whatever class.

    Args:
        row: The first row, with its KV in its sequence's cache.
    """

    def __init__(self, row: Row) -> None:
        self.rows = [row]
        self._caches: list[Any] = _take_cache(row)
        self._steps = 0

    def __len__(self) -> int:
        return len(self.rows)

    def has_room_for(self, row: Row) -> bool:
        """Whether a row may join without too much padding, and whether rows of the model can share a pass at all."""
        lengths = [other.length for other in (*self.rows, row)]
        return row.sequence.loaded.joinable and fits(lengths)

    def join(self, row: Row) -> None:
        """Take a row in. Copies the KV of all rows: they are padded to the same length."""
        if len(self.rows) == 1:
            self._caches = [batched(cache) for cache in self._caches]
        for cache, other in zip(self._caches, _take_cache(row), strict=True):
            cache.extend(batched(other))
        self.rows.append(row)

    def leave(self, row: Row) -> None:
        """Let a row go and give its KV back to its sequence; the caller drops an empty batch."""
        index = self.rows.index(row)
        row.sequence.cache = self._row_cache(index)
        keep = [position for position in range(len(self.rows)) if position != index]
        if len(keep) > 1:
            for cache in self._caches:
                cache.filter(keep)
        elif keep:
            self._caches = self._row_cache(keep[0])
        del self.rows[index]

    def caches_of(self, row: Row) -> list[Any]:
        """Return one row's KV as plain caches: views, until they are copied or written to."""
        return self._row_cache(self.rows.index(row))

    def advance(self) -> list[Sampled]:
        """Begin to compute the next token of each row, and return the tokens before it, which may still be computed."""
        current = [row.pending for row in self.rows]
        if all(row.ends for row in self.rows):
            return current
        tokens = mx.concatenate([sampled.token for sampled in current])
        logits = forward(self.rows[0].sequence, tokens, self._caches)
        if any(row.sampler.constrained for row in self.rows):
            mx.async_eval(logits)  # the device computes while the host finds out which tokens may follow
        for index, row in enumerate(self.rows):
            row.sequence.advanced(1, self._caches, index)
            row.pending = row.sampler(logits[index : index + 1])
        mx.async_eval([array for row in self.rows for array in row.pending.arrays()])
        self._steps += 1
        if self._steps % EVALUATE_STEPS == 0:
            mx.eval([cache.state for cache in self._caches])
        return current

    def _row_cache(self, index: int) -> list[Any]:
        """Return one row's KV as caches of its own."""
        if len(self.rows) == 1:
            return self._caches
        return [unbatched(cache, index) for cache in self._caches]


def fits(lengths: Collection[int]) -> bool:
    """Whether rows of such lengths may share a batch."""
    return max(lengths) * len(lengths) <= MOST_PADDING * sum(lengths) + FREE_PADDING * len(lengths)


def forward(sequence: Sequence, tokens: mx.array, caches: Iterable[Any]) -> mx.array:
    """Run one token of each row through the sequence's model; logits of shape [rows, vocab]."""
    logits: mx.array = sequence.loaded.model(tokens[:, None], cache=list(caches))
    return logits[:, -1]


def _take_cache(row: Row) -> list[Any]:
    caches, row.sequence.cache = row.sequence.cache, None
    assert caches is not None, "a row without KV cannot decode"
    return caches
