"""Constraints: which tokens a request may sample next, as a mask on the device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import mlx.core as mx

from daemon.engine.structured_output.matcher import GrammarMatcher

_WORD = 32


@dataclass(frozen=True, slots=True)
class Thinking:
    """
    How a model reasons before its answer.

    Attributes:
        start, end: Ids of the marks around the reasoning.
        opened: Whether the prompt has opened it already; else the model may, with its first token.
        turn: Ids that have to follow it before the answer begins.
        barred: Ids that the reasoning cannot hold, because they would end it in another way.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    opened: bool
    turn: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()


class TokenMask:
    """
    Follows one completion. While it reasons, all that does not end the answer is allowed; then what keeps to the form.

    Args:
        form: The form of the answer.
        vocab: Width of the logits.
        eos_ids: Ids that end the sequence.
        thinking: How the model reasons first; None if it does not, or was told not to.
        header: Ids that the answer begins with, before its form.
    """

    def __init__(
        self,
        form: GrammarMatcher,
        vocab: int,
        eos_ids: Collection[int],
        thinking: Thinking | None = None,
        header: tuple[int, ...] = (),
    ) -> None:
        self._form = form
        self._vocab = vocab
        self._thinking = thinking
        self._header = header
        self._reasons = thinking is not None and thinking.opened
        self._may_open = thinking is not None and not thinking.opened
        self._due = list(header)
        """What has to come next: the rest of the opening mark, or the header of the answer."""
        self._then_reasons = False
        self._tail: tuple[int, ...] = ()
        self._thoughts = mx.ones((vocab,), mx.bool_)
        for token in (*eos_ids, *(thinking.barred if thinking is not None else ())):
            if token < vocab:  # some tokenizers name more than their model has
                self._thoughts[token] = False

    def mask(self, last: int | None) -> mx.array:
        """
        Return what may come after `last`, the token sampled before, None at the beginning: bool, shape [vocab].

        Raises:
            SidecarError: INVALID_ARGUMENT if the form takes too much work.
        """
        if last is not None:
            self._take(last)
        if self._reasons:
            return self._thoughts
        mask = mx.arange(self._vocab) == self._due[0] if self._due else self._expanded(self._form.allowed())
        if self._may_open and self._thinking is not None:
            mask[self._thinking.start[0]] = True
        return mask

    def _take(self, token: int) -> None:
        opens, self._may_open = self._may_open, False
        if self._reasons and self._thinking is not None:
            end = self._thinking.end
            self._tail = (*self._tail, token)[-len(end) :]
            self._reasons = self._tail != end
            self._due = [] if self._reasons else [*self._thinking.turn, *self._header]
            self._then_reasons = False
        elif opens and self._thinking is not None and token == self._thinking.start[0]:
            self._due = list(self._thinking.start[1:])
            self._then_reasons = True
            self._reasons = not self._due
        elif self._due:
            self._due.pop(0)
            self._reasons = self._then_reasons and not self._due
        else:
            self._form.take(token)

    def _expanded(self, bits: bytes) -> mx.array:
        """Copy a bit for each token to the device and spread them there; logits beyond the vocabulary are no tokens."""
        size = -(-self._vocab // _WORD) * _WORD // 8
        words = mx.array(memoryview(bits[:size].ljust(size, b"\0")).cast("I"))  # type: ignore[arg-type]
        spread = mx.bitwise_and(mx.right_shift(words[:, None], mx.arange(_WORD, dtype=mx.uint32)), 1)
        return spread.astype(mx.bool_).reshape(-1)[: self._vocab]
