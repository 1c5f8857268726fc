"""Batches: sequences of one model that decode in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from daemon.engine.execution.sampling import Sampled, Sampler, arrays, ids, sample
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.padding import fits
from daemon.kv.mlx.batch_cache import to_batch, to_single

EVALUATE_STEPS = 256
"""Cache fields that no token depends on would grow a lazy chain; evaluating them this often keeps it short."""


@dataclass(frozen=True, slots=True)
class Given:
    """
    The last token of a prompt: it is fed like a sampled one, and told to nobody.

    Attributes:
        token: Its id, shape [1].
    """

    token: mx.array


@dataclass(slots=True, eq=False)
class Row:
    """
    A running sequence.

    Attributes:
        sequence: The request.
        sampler: That of the request.
        pending: The token that is fed next; the device may still compute it.
        told: Whether somebody has been told what it is.
    """

    sequence: Sequence
    sampler: Sampler
    pending: Sampled | Given
    told: bool = False

    @property
    def length(self) -> int:
        """Tokens of the sequence so far."""
        return len(self.sequence.prompt) + len(self.sequence.generated)

    @property
    def ends(self) -> bool:
        """Whether the pending token is the last that the sequence may have."""
        untold = self.untold is not None
        return isinstance(self.pending, Sampled) and len(self.sequence.generated) + untold >= self.sequence.max_tokens

    @property
    def untold(self) -> Sampled | None:
        """The pending token, if it was sampled and nobody has been told."""
        return self.pending if isinstance(self.pending, Sampled) and not self.told else None


class Batch:
    """
    One or more rows that share each forward pass, left-padded to the longest.

    While several rows are in it, their KV is joined in one cache for each layer, and a sequence's own `cache` is None;
    `leave` gives it back. A single row keeps its own cache, of whatever class.

    Args:
        rows: The first rows.
        caches: Their KV: for several rows in batches of caches, for one in plain ones.
    """

    def __init__(self, rows: list[Row], caches: list[Any]) -> None:
        self.rows = rows
        self._caches = caches
        self._steps = 0

    @classmethod
    def of(cls, row: Row) -> Batch:
        """Return a batch of one row, whose KV is in its sequence's cache."""
        caches, row.sequence.cache = row.sequence.cache, None
        assert caches is not None, "a row without KV cannot decode"
        return cls([row], caches)

    def __len__(self) -> int:
        return len(self.rows)

    def has_room_for(self, other: Batch) -> bool:
        """Whether another may join without too much padding, and whether rows of the model can share a pass at all."""
        lengths = [row.length for row in (*self.rows, *other.rows)]
        return other.rows[0].sequence.loaded.joinable and fits(lengths)

    def join(self, other: Batch) -> None:
        """Take all rows of another in. Copies the KV of all rows: they are padded to the same length."""
        ours, theirs = self._joinable_caches(), other._joinable_caches()
        for cache, more in zip(ours, theirs, strict=True):
            cache.extend(more)
        self._caches = ours
        self.rows += other.rows

    def leave(self, leaving: Collection[Row]) -> None:
        """
        Let rows go and give their KV back to their sequences; the caller drops an empty batch.

        Those that end with the same token go at once: each time, the KV of all that stay is copied.
        """
        for row in leaving:
            row.sequence.cache = self._row_cache(self.rows.index(row))
        keep = [index for index, row in enumerate(self.rows) if row not in leaving]
        if len(keep) > 1:
            for cache in self._caches:
                cache.filter(keep)
        elif keep:
            self._caches = self._row_cache(keep[0])
        self.rows = [self.rows[index] for index in keep]

    def caches_of(self, row: Row) -> list[Any]:
        """Return one row's KV as plain caches: views, until they are copied or written to."""
        return self._row_cache(self.rows.index(row))

    def firsts(self) -> list[tuple[Sequence, Sampled]]:
        """Return the first tokens of rows that are not told yet; they count as told now."""
        firsts = [row for row in self.rows if not row.sequence.generated]
        return [(row.sequence, sampled) for row in firsts if (sampled := _told(row)) is not None]

    def advance(self) -> list[tuple[Sequence, Sampled]]:
        """Begin to compute the next token of each row, and return those before it, which may still be computed."""
        ended = all(row.ends for row in self.rows)
        current = [(row.sequence, sampled) for row in self.rows if (sampled := _told(row)) is not None]
        if ended:
            return current
        logits = forward(self.rows[0].sequence, self._fed(), self._caches)
        if any(row.sampler.constrained for row in self.rows):
            mx.async_eval(logits)  # the device computes while the host finds out which tokens may follow
        following = sample([row.sampler for row in self.rows], logits)
        for index, (row, sampled) in enumerate(zip(self.rows, following, strict=True)):
            row.sequence.advanced(1, self._caches, index)
            row.pending, row.told = sampled, False
        mx.async_eval(arrays(following))
        self._steps += 1
        if self._steps % EVALUATE_STEPS == 0:
            mx.eval([cache.state for cache in self._caches])
        return current

    def _fed(self) -> mx.array:
        """Return the token of each row that the model has not seen, shape [rows]."""
        pending = [row.pending for row in self.rows]
        sampled = [one for one in pending if isinstance(one, Sampled)]
        if len(sampled) == len(pending):
            return ids(sampled)
        return mx.concatenate([one.token for one in pending])

    def _joinable_caches(self) -> list[Any]:
        return self._caches if len(self.rows) > 1 else [to_batch(cache) for cache in self._caches]

    def _row_cache(self, index: int) -> list[Any]:
        """Return one row's KV as caches of its own."""
        if len(self.rows) == 1:
            return self._caches
        return [to_single(cache, index) for cache in self._caches]


def _told(row: Row) -> Sampled | None:
    """Return a row's untold token, told from now on."""
    sampled, row.told = row.untold, True
    return sampled


def forward(sequence: Sequence, tokens: mx.array, caches: Iterable[Any]) -> mx.array:
    """Run one token of each row through the sequence's model; logits of shape [rows, vocab]."""
    logits: mx.array = sequence.loaded.model(tokens[:, None], cache=list(caches))
    return logits[:, -1]
