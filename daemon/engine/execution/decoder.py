"""Decodes the running sequences of one model: each step gives each of them its next token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

import mlx.core as mx

from daemon.engine.execution.batch import Batch
from daemon.engine.execution.prompt_scores import scored_tokens
from daemon.engine.execution.row import Given, Row
from daemon.engine.execution.sampling import Sampled, Sampler, arrays
from daemon.engine.execution.sequence import Sequence, nan_logits
from daemon.engine.execution.speculation import guesser_of
from daemon.engine.output.detokenizer import Token
from daemon.engine.scheduling.governor import Check, Governor
from daemon.kv.mlx.batch_cache import to_batch
from daemon.shared.errors import SidecarError
from daemon.shared.readings import about_to_wait

Read = tuple[Sequence, Token | SidecarError, float]
"""The next token of a sequence, or the error that ends it, and when it was read."""


class Changes(Protocol):
    """Makes other caches of those of a sequence."""

    def __call__(self, caches: list[Any], *, copy: bool) -> list[Any]:
        """Return them; `copy` if they shall keep no room of the arrays, which are those of a batch with other rows."""


class Decoder:
    """
    The running sequences of one model.

    Sequences of similar length share a batch. A held sequence is in none, and a sequence with a draft model has a batch
    of its own. Each call returns tokens; the caller decides which sequences have ended.

    Tokens that are read together have the time at which the last of them was.

    Tokens are guessed for each of them, where that gains: see `speculation.py` and `together.py`.

    Args:
        governor: Decides how many tokens are guessed.
        clock: Seconds that never go back.
        own_clock: The same, for the times of tokens: they decide nothing, and ranks of a group wait for no reading.
    """

    def __init__(self, governor: Governor, clock: Callable[[], float], own_clock: Callable[[], float]) -> None:
        self._batches: list[Batch] = []
        self._held: list[Row] = []
        self._governor = governor
        self._clock = clock
        self._own_clock = own_clock

    def __len__(self) -> int:
        return len(self._rows()) + len(self._held)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([row.sequence for row in (*self._rows(), *self._held)])

    @property
    def active(self) -> int:
        """Sequences that the next step gives a token."""
        return len(self._rows())

    @property
    def groups(self) -> list[list[Sequence]]:
        """Its sequences by the batch that they share; those that are held are alone."""
        return [[row.sequence for row in batch.rows] for batch in self._batches] + [
            [row.sequence] for row in self._held
        ]

    def join(self, sequence: Sequence) -> None:
        """
        Start decoding a sequence that has its prompt in its own cache, with or without its last token.

        Further samples of it start as well, each as a row of its own.
        """
        if sequence.samples:
            self._join_samples(sequence)
        else:
            self._place(Batch.of(self._first_row(sequence)))

    def join_together(self, sequences: list[Sequence], caches: list[Any] | None) -> None:
        """
        Start decoding several sequences.

        Args:
            sequences: The sequences.
            caches: Batch caches, of which their prompts, without the last tokens, are rows; None if each has its own.
        """
        if caches is None:
            for sequence in sequences:
                self.join(sequence)
            return
        self._place(Batch([self._first_row(sequence) for sequence in sequences], caches))

    def complete(self, sequences: Collection[Sequence]) -> None:
        """Compute what the KV of ended answers lacks at their ends; see `Batch.complete`."""
        for batch in self._batches:
            if len(batch) == 1 and batch.rows[0].sequence in sequences:
                batch.complete()

    def leave(self, sequences: Collection[Sequence]) -> None:
        """Stop decoding sequences, which get their KV back; an unknown one is no error."""
        self._take_out(sequences)
        self._held = [row for row in self._held if row.sequence not in sequences]

    def settle(self) -> None:
        """Free what rows took that have left and were released; see `Batch.settle`."""
        for batch in self._batches:
            batch.settle()

    def hold(self, sequences: Collection[Sequence]) -> None:
        """Pause sequences: each keeps its KV and its pending token until `go_on`. Harmless twice."""
        rows = self._take_apart(sequences)
        for layer in zip(*(row.sequence.kv.cache or () for row in rows), strict=True):
            rows[0].sequence.loaded.layout.shrink(layer)  # of a batch in which no row has stayed
        self._held += rows

    def go_on(self, sequences: Collection[Sequence]) -> None:
        """Resume sequences that were held; any other is no error."""
        for row in [row for row in self._held if row.sequence in sequences]:
            self._held.remove(row)
            self._place(Batch.of(row))

    def replace(self, sequence: Sequence, change: Changes) -> None:
        """Let a sequence that is a row of a batch go on with other caches, which `change` makes of its own."""
        alone = any(len(batch) == 1 and batch.rows[0].sequence is sequence for batch in self._batches)
        (row,) = self._take_apart([sequence])
        assert sequence.kv.cache is not None
        try:
            sequence.kv.cache = change(sequence.kv.cache, copy=not alone)
        finally:  # a fault is the new reader's alone
            self._place(Batch.of(row))

    def caches_of(self, sequence: Sequence) -> list[Any]:
        """Return the KV of a sequence that is a row of a batch, as it is now."""
        return next(batch.caches_of(row) for batch in self._batches for row in batch.rows if row.sequence is sequence)

    def firsts(self) -> Iterator[Read]:
        """
        Iterate over the first tokens of sequences that have reported none.

        They are waited for. So it is called as soon as they are being computed: when prefill has left their logits, and
        behind the step that feeds the last tokens of prompts.
        """
        yield from self._read([first for batch in self._batches for first in batch.firsts()])

    def step(self) -> Iterator[Read]:
        """
        Iterate over the next token of each sequence, or the error that ends it; several in a row if they were guessed.

        The device computes the following tokens meanwhile.
        """
        began, rows = self._clock(), self._rows()
        current = [pair for batch in self._batches for pair in self._advance(batch)]
        yield from self._read(current)
        if rows:
            self._measured(rows, self._clock() - began, len(current))

    def _read(self, sampled: list[tuple[Sequence, Sampled]]) -> Iterator[Read]:
        """Wait for sampled tokens, and iterate over them."""
        if not sampled:
            return
        about_to_wait()
        tokens = [(sequence, _token(sequence, token)) for sequence, token in sampled]
        now = self._own_clock()
        for sequence, token in tokens:
            yield sequence, token, now

    def _advance(self, batch: Batch) -> list[tuple[Sequence, Sampled]]:
        guessed = batch.advance_by_guesses(self._governor)
        return batch.advance() if guessed is None else guessed

    def _measured(self, rows: list[Row], seconds: float, tokens: int) -> None:
        """Tell the governor how long a step took; only that of rows that shared one pass tells what a pass takes."""
        if len(self._batches) == 1:
            self._governor.stepped(seconds, len(rows), _checks(rows), tokens)
            return
        for batch in self._batches:
            self._governor.unmeasured(len(batch), _checks(batch.rows))

    def _join_samples(self, sequence: Sequence) -> None:
        if sequence.loaded.joinable:
            sequence.kv.share_prompt()
            caches = [to_batch(cache) for cache in sequence.kv.take()]
            rows = sequence.split(copy=False)
            for cache in caches:
                cache.filter([0] * len(rows))  # the first row, so many times
                mx.eval(cache.state)
            self.join_together(rows, caches)
            return
        for row in sequence.split(copy=True):
            self.join(row)

    def _first_row(self, sequence: Sequence) -> Row:
        """Return a row that samples its first token now if prefill left its logits, or else after its first step."""
        sampler, guesser = _sampler(sequence), guesser_of(sequence, self._governor)
        if sequence.logits is None:
            return Row(sequence, sampler, Given(mx.array(sequence.prompt[-1:])), guesser=guesser)
        first, sequence.logits = sampler(sequence.logits), None
        mx.async_eval(arrays([first]))
        return Row(sequence, sampler, first, guesser=guesser)

    def _rows(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.rows]

    def _place(self, batch: Batch) -> None:
        running = next((running for running in self._batches if running.has_room_for(batch)), None)
        if running is None:
            self._batches.append(batch)
        else:
            running.join(batch)

    def _take_apart(self, sequences: Collection[Sequence]) -> list[Row]:
        """Take sequences out of their batches. They and those that stay get arrays of their own, layer by layer."""
        taken: list[Row] = []
        for batch, rows in self._take_out(sequences):
            if len(batch):
                batch.settle(rows)
            taken += rows
        return taken

    def _take_out(self, sequences: Collection[Sequence]) -> list[tuple[Batch, list[Row]]]:
        """Take sequences out of their batches, and return these batches, each with the rows that left it."""
        taken: list[tuple[Batch, list[Row]]] = []
        for batch in self._batches:
            leaving = [row for row in batch.rows if row.sequence in sequences]
            if leaving:
                batch.leave(leaving)
                taken.append((batch, leaving))
        self._batches = [batch for batch in self._batches if len(batch)]
        return taken


def _checks(rows: Iterable[Row]) -> list[Check]:
    """Return what rows guessed with the last step; no token, if it was only waited for the one before it."""
    return [check for row in rows if row.guesser is not None and (check := row.guesser.taken()) is not None]


def _sampler(sequence: Sequence) -> Sampler:
    return Sampler(
        sequence.request.sampling,
        sequence.prompt,
        sequence.loaded.vocab_size,
        logprobs=sequence.request.top_logprobs is not None,
        constraint=sequence.constraint,
    )


def _token(sequence: Sequence, sampled: Sampled) -> Token | SidecarError:
    if sampled.refusal is not None:
        return sampled.refusal
    if not sampled.finite:
        return nan_logits(sequence)
    token = sampled.id
    if sampled.logprobs is None:
        return Token(token)
    count = sequence.request.top_logprobs or 0
    return scored_tokens(sampled.logprobs[None], [token], count, sequence.text)[0]
