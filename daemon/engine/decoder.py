"""Decode: one step gives each running sequence of a model its next token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from daemon.engine.output import Token
from daemon.engine.sampling import Sampled, Sampler
from daemon.engine.sequence import Sequence
from daemon.errors import Reason, SidecarError

EVALUATE_STEPS = 256
"""Cache fields that no token depends on would grow a lazy chain; evaluating them this often keeps it short."""


@dataclass(slots=True, eq=False)
class Row:
    """A running sequence: its sampler, and the token that the device computes now."""

    sequence: Sequence
    sampler: Sampler
    pending: Sampled
    steps: int = 0


class Decoder:
    """The running sequences of one model. While the host handles one token, the device computes the next."""

    def __init__(self) -> None:
        self._rows: dict[Sequence, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._rows))

    def join(self, sequence: Sequence) -> None:
        """Start decoding a sequence whose prompt is in its cache but for the last token."""
        loaded = sequence.loaded
        sampler = Sampler(
            sequence.params, sequence.prompt, loaded.vocab_size, logprobs=sequence.top_logprobs is not None
        )
        first = _forward(sequence, sampler, mx.array(sequence.prompt[-1:]))
        mx.async_eval(first.arrays())
        self._rows[sequence] = Row(sequence, sampler, first)

    def leave(self, sequence: Sequence) -> None:
        """Stop decoding a sequence; an unknown one is no error."""
        self._rows.pop(sequence, None)

    def step(self) -> list[tuple[Sequence, Token | SidecarError]]:
        """
        Return the next token of each sequence, or why it has none.
        """
        rows = list(self._rows.values())
        current = [row.pending for row in rows]
        for row in rows:
            self._schedule(row)
        return [(row.sequence, _read(row.sequence, sampled)) for row, sampled in zip(rows, current, strict=True)]

    def _schedule(self, row: Row) -> None:
        sequence = row.sequence
        if len(sequence.generated) + 1 >= sequence.max_tokens:
            return
        row.pending = _forward(sequence, row.sampler, row.pending.token)
        mx.async_eval(row.pending.arrays())
        row.steps += 1
        if row.steps % EVALUATE_STEPS == 0 and sequence.cache is not None:
            mx.eval([cache.state for cache in sequence.cache])


def _forward(sequence: Sequence, sampler: Sampler, token: mx.array) -> Sampled:
    logits = sequence.loaded.model(token[None], cache=sequence.cache)
    return sampler(logits[:, -1])


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
