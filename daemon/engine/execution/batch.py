"""
Decodes several sequences of one model in one forward pass, a row of the batch each.

Each row has one pending token (`row.py`): it is known to the device, and the model has not seen it. `advance` feeds all
pending tokens in one pass, samples the tokens that follow, and returns the fed ones. It waits for nothing: the device
computes token n + 1 while the host reads token n and sends it.

            advance()                        advance()
    device  | feed n, sample n + 1           | feed n + 1, sample n + 2
    host    |   read n, send n               |   read n + 1, send n + 1

KV. A batch of one row uses that sequence's own caches. Several rows share batch caches, [rows, heads, tokens, size],
padded on the left so that all rows end at the same position. Joining and leaving copy the KV of all rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mlx.core as mx

from daemon.engine.execution.row import Row
from daemon.engine.execution.sampling import Sampled, arrays, ids, sample
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.together import check, feed_again, forward, guess, worth
from daemon.engine.scheduling.governor import Governor
from daemon.engine.scheduling.padding import fits
from daemon.kv.mlx.batch_cache import to_batch, to_single
from daemon.shared.readings import about_to_wait

EVALUATE_STEPS = 256
"""Steps between evaluations of the caches. No token depends on some of their fields, so these stay lazy and grow."""

LEAST_COMPLETED = 16
"""Tokens of the shortest answer that is worth a pass for its last token alone; a next turn may go on behind that."""


class Batch:
    """
    One or more rows that share each forward pass, left-padded to the longest.

    The batch owns the KV of its rows (`SequenceKV.take`), and `leave` gives it back.

    Args:
        rows: The first rows.
        caches: Their KV, one cache for each layer: batch caches for several rows, the sequence's own for a single row.
    """

    def __init__(self, rows: list[Row], caches: list[Any]) -> None:
        self.rows = rows
        self._caches = caches
        self._steps = 0
        self._thinned = False

    @classmethod
    def of(cls, row: Row) -> Batch:
        """Return a batch of one row; its KV is in its sequence's cache, and takes no more than decode needs."""
        caches = row.sequence.kv.take()
        row.sequence.loaded.layout.shrink(caches)
        return cls([row], caches)

    def __len__(self) -> int:
        return len(self.rows)

    def has_room_for(self, other: Batch) -> bool:
        """Whether another batch of the model may join: its caches can be batched, and the padding stays small."""
        rows = (*self.rows, *other.rows)
        one_root = len({row.sequence.kv.root for row in rows}) == 1 and not any(row.apart for row in rows)
        return one_root and other.rows[0].sequence.loaded.joinable and fits([row.length for row in rows])

    def join(self, other: Batch) -> None:
        """Take the rows of another batch over. Copies the KV of all rows: they are padded to the same length."""
        self._feed_again()
        other._feed_again()
        caches, added = self._joinable_caches(), other._joinable_caches()
        # Layer by layer, and nothing else refers to the old arrays: so a copy of one layer exists beside them, not all.
        self._caches, other._caches = [], []
        for cache in caches:
            cache.extend(added.pop(0))
            mx.eval(cache.state)
        self._caches = caches
        self.rows += other.rows

    def leave(self, leaving: Collection[Row]) -> None:
        """
        Remove rows and give their KV back to their sequences; the caller drops an empty batch.

        Rows that end with the same step leave in one call: each call copies the KV of all rows that stay, in `settle`.
        """
        for row in leaving:
            row.sequence.kv.cache = self._row_cache(self.rows.index(row))
        keep = [index for index, row in enumerate(self.rows) if row not in leaving]
        if len(keep) > 1:
            for cache in self._caches:
                cache.filter(keep)
        elif keep:
            self._caches = self._row_cache(keep[0])
        self.rows = [self.rows[index] for index in keep]
        self._thinned = True

    def settle(self, left: Collection[Row] = ()) -> None:
        """
        Copy the KV of rows that stay, layer by layer, so that the KV of the batch before becomes free.

        Args:
            left: Rows that left and keep their KV. It is copied with that of the others: one layer twice at a time.
        """
        if self._thinned:
            self._thinned = False
            held = [row.sequence.kv.held for row in self.rows]
            room = max(row.reach for row in self.rows) - max(held)
            layout = self.rows[0].sequence.loaded.layout
            for layer, cache in enumerate(self._caches):
                layout.shrink([row.sequence.kv.cache[layer] for row in left if row.sequence.kv.cache is not None])
                layout.shrink([cache], room)

    def caches_of(self, row: Row) -> list[Any]:
        """Return one row's KV as single caches: views of the batch, until they are copied or written to."""
        return self._row_cache(self.rows.index(row))

    def firsts(self) -> list[tuple[Sequence, Sampled]]:
        """Return the first tokens of rows that are not reported yet; they are reported now."""
        firsts = [row for row in self.rows if not row.sequence.generated]
        return [(row.sequence, sampled) for row in firsts if (sampled := _reported(row)) is not None]

    def advance_by_guesses(self, governor: Governor) -> list[tuple[Sequence, Sampled]] | None:
        """
        Guess the next tokens of rows, check them in one pass, and return all that is known now.

        Waits for the device. None if nothing is guessed: call `advance` then.
        """
        if all(row.ends for row in self.rows) or not any(row.guesser for row in self.rows):
            return None
        if len(self.rows) == 1:
            return self._guess_alone(governor)
        guesses = guess(self.rows, governor)
        if guesses is None:
            return None
        firsts = [_reported(row) for row in self.rows]
        sampled = check(self.rows, guesses, self._caches)
        self._stepped()
        return [
            (row.sequence, token)
            for row, first, following in zip(self.rows, firsts, sampled, strict=True)
            for token in ([] if first is None else [first]) + following
        ]

    def _guess_alone(self, governor: Governor) -> list[tuple[Sequence, Sampled]] | None:
        row = self.rows[0]
        assert row.guesser is not None
        governor.set_rows(1)
        offers = [row.offer(row.guesser.most - len(row.unfed))]  # no wider than it is billed
        guesses = row.guess(offers[0]) if worth(self.rows, offers, governor) else []
        if not guesses:
            return None
        first = _reported(row)
        sampled, row.sampler = row.guesser.check(row.pending.id, guesses, row.sampler, self._caches)
        row.pending, row.reported = sampled[-1], True
        self._stepped()
        return [(row.sequence, token) for token in ([] if first is None else [first]) + sampled]

    def advance(self) -> list[tuple[Sequence, Sampled]]:
        """Begin to compute the next token of each row, and return the tokens before it; the device may be at them."""
        for row in self.rows:
            row.correct()
        alone = len(self.rows) == 1
        ended = all(row.ends and (alone or row.sequence.request.max_tokens < LEAST_COMPLETED) for row in self.rows)
        current = [(row.sequence, sampled) for row in self.rows if (sampled := _reported(row)) is not None]
        if ended:
            return current  # a pass would compute tokens that no row may have; `complete` feeds the last one
        again = self.rows[0].unfed if len(self.rows) == 1 else []
        about_to_wait()  # other ranks build the same graph meanwhile
        logits = self._forward_again(again) if again else self._forward()
        if any(row.sampler.constrained for row in self.rows):
            mx.async_eval(logits)  # the device computes while the host makes the token masks
        following = sample([row.sampler for row in self.rows], logits)
        for index, (row, sampled) in enumerate(zip(self.rows, following, strict=True)):
            row.sequence.kv.advanced(1 + len(again), self._caches, index if len(self.rows) > 1 else None)
            row.pending, row.reported = sampled, False
        again.clear()
        about_to_wait()  # MLX waits while it has a few operations to do, so for the other ranks as well
        mx.async_eval(arrays(following))
        self._stepped()
        return current

    def complete(self) -> None:
        """
        Feed the model what it lacks of the answer of the only row, so that a next turn goes on right behind it.

        It lacks the last token that a limit allowed, and tokens that were guessed right. Those of a short answer are
        left to its next turn.
        """
        sequence = self.rows[0].sequence
        kv, layout = sequence.kv, sequence.loaded.layout
        lacking = (sequence.prompt + sequence.generated)[kv.held :]
        if lacking and kv.writes and layout.reusable and len(sequence.generated) >= LEAST_COMPLETED:
            sequence.loaded.model(mx.array([lacking]), cache=list(self._caches))
            layout.compact(self._caches)
            kv.advanced(len(lacking), self._caches)

    def _stepped(self) -> None:
        self._steps += 1
        if self._steps % EVALUATE_STEPS == 0:
            mx.eval([cache.state for cache in self._caches])

    def _fed(self) -> mx.array:
        """Return the pending token of each row, shape [rows]."""
        pending = [row.pending for row in self.rows]
        sampled = [token for token in pending if isinstance(token, Sampled)]
        if len(sampled) == len(pending):
            return ids(sampled)
        return mx.concatenate([given.token for given in pending])

    def _forward(self) -> mx.array:
        """Run the pending token of each row through the model; return the logits after them, [rows, vocab]."""
        return forward(self.rows, self._fed()[:, None], self._caches, [1] * len(self.rows))[:, -1]

    def _forward_again(self, again: list[int]) -> mx.array:
        """Run the pending token of a single row through the model, and before it what the caches lack."""
        fed = mx.concatenate([mx.array(again), self._fed()])[None]
        sequence = self.rows[0].sequence
        logits: mx.array = sequence.module(sequence.kv)(fed, cache=list(self._caches))
        return logits[:, -1]

    def _feed_again(self) -> None:
        """Feed the rows what they lack but for their pending tokens: rows that join lack nothing else."""
        row = self.rows[0]
        if len(self.rows) > 1:
            feed_again(self.rows, self._caches)
        elif row.unfed:
            row.sequence.loaded.model(mx.array([row.unfed]), cache=list(self._caches))
            row.sequence.kv.advanced(len(row.unfed), self._caches)
            row.unfed.clear()

    def _joinable_caches(self) -> list[Any]:
        return self._caches if len(self.rows) > 1 else [to_batch(cache) for cache in self._caches]

    def _row_cache(self, index: int) -> list[Any]:
        """Return one row's KV as single caches."""
        if len(self.rows) == 1:
            return self._caches
        return [to_single(cache, index) for cache in self._caches]


def _reported(row: Row) -> Sampled | None:
    """Return a row's unreported token, which is reported from now on."""
    sampled, row.reported = row.unreported, True
    return sampled
