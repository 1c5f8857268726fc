"""Decode: one step gives each running sequence of a model its next token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from daemon.engine.batch import Batch, Row, forward
from daemon.engine.output import Token
from daemon.engine.sampling import Sampled, Sampler
from daemon.engine.sequence import Sequence
from daemon.errors import Reason, SidecarError


class Decoder:
    """
    The running sequences of one model, in batches of similar length.

    While the host handles one token, the device computes the next.
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([row.sequence for batch in self._batches for row in batch.rows])

    def join(self, sequence: Sequence) -> None:
        """Start decoding a sequence whose prompt is in its cache but for the last token."""
        loaded = sequence.loaded
        sampler = Sampler(
            sequence.params, sequence.prompt, loaded.vocab_size, logprobs=sequence.top_logprobs is not None
        )
        assert sequence.cache is not None
        first = sampler(forward(sequence, mx.array(sequence.prompt[-1:]), sequence.cache))
        sequence.advanced(1, sequence.cache)
        mx.async_eval(first.arrays())
        row = Row(sequence, sampler, first)
        batch = next((batch for batch in self._batches if batch.has_room_for(row)), None)
        if batch is None:
            self._batches.append(Batch(row))
        else:
            batch.join(row)

    def leave(self, sequence: Sequence) -> None:
        """Stop decoding a sequence, which gets its KV back; an unknown one is no error."""
        for batch in self._batches:
            for row in batch.rows:
                if row.sequence is sequence:
                    batch.leave(row)
                    self._batches = [batch for batch in self._batches if len(batch)]
                    return

    def caches_of(self, sequence: Sequence) -> list[Any]:
        """Return the KV of a sequence that runs, as it is now."""
        return next(batch.caches_of(row) for batch in self._batches for row in batch.rows if row.sequence is sequence)

    def step(self) -> list[tuple[Sequence, Token | SidecarError]]:
        """Return the next token of each sequence, or why it has none."""
        current = [
            (row.sequence, sampled)
            for batch in self._batches
            for row, sampled in zip(batch.rows, batch.advance(), strict=True)
        ]
        return [(sequence, _read(sequence, sampled)) for sequence, sampled in current]


def _read(sequence: Sequence, sampled: Sampled) -> Token | SidecarError:
    mx.eval(sampled.arrays())
    if not sampled.finite.item():
        return SidecarError(
            Reason.NAN_LOGITS,
            f"{sequence.loaded.source.name} computed logits that are no numbers; its weights may be bad",
        )
    token = int(_scalar(sampled.token))
    if sampled.logprobs is None:
        return Token(token)
    return Token(token, _scalar(sampled.logprobs[token]), _top(sampled.logprobs, sequence.top_logprobs or 0))


def _scalar(array: mx.array) -> float:
    return float(array.item())  # type: ignore[arg-type]


def _top(logprobs: mx.array, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    count = min(count, logprobs.shape[0])
    ids = mx.argsort(-logprobs)[:count]
    values = logprobs[ids]
    return tuple(zip((int(i) for i in ids.tolist()), (float(v) for v in values.tolist()), strict=True))  # type: ignore[union-attr,arg-type]
