"""Decode: one step gives each running sequence of a model its next token."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import mlx.core as mx

from daemon.engine.execution.batch import Batch, Given, Row
from daemon.engine.execution.sampling import Sampled, Sampler, arrays
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.speculation import Speculation
from daemon.engine.output.detokenizer import Token
from daemon.shared.errors import Reason, SidecarError


class Decoder:
    """
    The running sequences of one model, in batches of similar length.

    While the host handles one token, the device computes the next.
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._held: list[Row] = []
        self._speculations: list[Speculation] = []

    def __len__(self) -> int:
        return len(self._rows()) + len(self._held) + len(self._speculations)

    def __iter__(self) -> Iterator[Sequence]:
        batched = [row.sequence for row in (*self._rows(), *self._held)]
        return iter([*batched, *(one.sequence for one in self._speculations)])

    @property
    def active(self) -> int:
        """Sequences that the next step gives a token."""
        return len(self._rows()) + sum(not one.held for one in self._speculations)

    def join(self, sequence: Sequence) -> None:
        """Start decoding a sequence whose prompt is in its cache, or all of it but the last token."""
        if sequence.draft is not None:
            self._speculations.append(Speculation(sequence, _sampler(sequence)))
        else:
            self._place(Batch.of(_first_row(sequence)))

    def join_together(self, sequences: list[Sequence], caches: list[Any]) -> None:
        """Start decoding several sequences whose prompts, but for their last tokens, are in one batch's caches."""
        self._place(Batch([_first_row(sequence) for sequence in sequences], caches))

    def leave(self, sequences: Collection[Sequence]) -> None:
        """Stop decoding sequences, which get their KV back; an unknown one is no error."""
        self._take_out(sequences)
        self._held = [row for row in self._held if row.sequence not in sequences]
        self._speculations = [one for one in self._speculations if one.sequence not in sequences]

    def hold(self, sequence: Sequence) -> None:
        """Let a sequence wait: it keeps its KV and its next token, and gets none until `go_on`. Harmless twice."""
        self._held += self._take_out([sequence])
        for one in self._speculations:
            one.held |= one.sequence is sequence

    def go_on(self, sequence: Sequence) -> None:
        """Let a sequence that was held go on; any other is no error."""
        for row in [row for row in self._held if row.sequence is sequence]:
            self._held.remove(row)
            self._place(Batch.of(row))
        for one in self._speculations:
            one.held &= one.sequence is not sequence

    def caches_of(self, sequence: Sequence) -> list[Any]:
        """Return the KV of a sequence that runs, as it is now."""
        return next(batch.caches_of(row) for batch in self._batches for row in batch.rows if row.sequence is sequence)

    def firsts(self) -> Iterator[tuple[Sequence, Token | SidecarError]]:
        """
        Iterate over the first tokens of sequences that have not had theirs.

        They come before a step is begun: handing one to a device that is busy can take as long as the step, and
        somebody is waiting.
        """
        for sequence, sampled in [first for batch in self._batches for first in batch.firsts()]:
            yield sequence, _read(sequence, sampled)

    def step(self) -> Iterator[tuple[Sequence, Token | SidecarError]]:
        """
        Iterate over the next token of each sequence, or why it has none; of one that speculates, several in a row.

        They come while the device computes those after them.
        """
        current = [pair for batch in self._batches for pair in batch.advance()]
        guessing = [one for one in self._speculations if not one.held]
        current += [(one.sequence, sampled) for one in guessing for sampled in one.step()]
        for sequence, sampled in current:
            yield sequence, _read(sequence, sampled)

    def _rows(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.rows]

    def _place(self, batch: Batch) -> None:
        running = next((running for running in self._batches if running.has_room_for(batch)), None)
        if running is None:
            self._batches.append(batch)
        else:
            running.join(batch)

    def _take_out(self, sequences: Collection[Sequence]) -> list[Row]:
        taken: list[Row] = []
        for batch in self._batches:
            leaving = [row for row in batch.rows if row.sequence in sequences]
            if leaving:
                batch.leave(leaving)
                taken += leaving
        self._batches = [batch for batch in self._batches if len(batch)]
        return taken


def _sampler(sequence: Sequence) -> Sampler:
    return Sampler(
        sequence.params,
        sequence.prompt,
        sequence.loaded.vocab_size,
        logprobs=sequence.top_logprobs is not None,
        constraint=sequence.constraint,
    )


def _first_row(sequence: Sequence) -> Row:
    """Return a row that samples its first token now, if the logits are there, or after its first step."""
    sampler = _sampler(sequence)
    if sequence.logits is None:
        return Row(sequence, sampler, Given(mx.array(sequence.prompt[-1:])))
    first, sequence.logits = sampler(sequence.logits), None
    mx.async_eval(arrays([first]))
    return Row(sequence, sampler, first)


def _read(sequence: Sequence, sampled: Sampled) -> Token | SidecarError:
    if sampled.refusal is not None:
        return sampled.refusal
    if not sampled.finite:
        return SidecarError(
            Reason.NAN_LOGITS,
            f"{sequence.loaded.source.name} computed logits that are no numbers; its weights may be bad",
        )
    token = sampled.id
    if sampled.logprobs is None:
        return Token(token)
    logprob = float(sampled.logprobs[token].item())  # type: ignore[arg-type]
    return Token(token, logprob, _top(sampled.logprobs, sequence.top_logprobs or 0))


def _top(logprobs: mx.array, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    count = min(count, logprobs.shape[0])
    ids = mx.argsort(-logprobs)[:count]
    values = logprobs[ids]
    return tuple(zip((int(i) for i in ids.tolist()), (float(v) for v in values.tolist()), strict=True))  # type: ignore[union-attr,arg-type]
