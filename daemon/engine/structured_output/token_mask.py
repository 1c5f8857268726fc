"""The mask of an answer in a form: free reasoning first, within its budget, then tokens that the form allows."""

from __future__ import annotations

import math
from collections.abc import Collection
from enum import Enum, auto

import mlx.core as mx

from daemon.engine.output.chat_markup import Thinking
from daemon.engine.structured_output.constraint import Drawn
from daemon.engine.structured_output.matcher import GrammarMatcher

# The phases of a completion
#
# A completion passes these phases from left to right and never goes back.
# It starts with MAY_OPEN if the model may reason, with REASONING if the prompt has opened it, else with HEADER.
#
#                start[0]             rest of start              end
#     MAY_OPEN ------------> OPENING ----------------> REASONING -------+
#         |                                                             |
#         | any other token: the first of the answer                    v   rest of turn and header
#         +---------------------------------------------------------> HEADER ---------------------> FORM
#
#   phase        the next token                                         leaves the phase
#   MAY_OPEN     start[0], or the first token of the answer             after one token
#   OPENING      the next token of `start`, and no other                with the last token of `start`
#   REASONING    any token but end of sequence and `barred`             when the last tokens are `end`, or at the budget
#   HEADER       the next token of `turn` and `header`, and no other    with the last token of `header`
#   FORM         a token that the grammar allows                        never: the grammar decides when it may end
#
# OPENING and HEADER write tokens that are known before. If there are none, the phase is skipped.
# `turn` is written after reasoning only; the prompt has written it for an answer without reasoning.
# At the budget of the reasoning, HEADER begins with `end`.
#
# A mark that is no token of its own can be written with other tokens than `end`: `>` and a line end may be one token.
# Then a grammar, `ending`, tells where the reasoning ends. It allows no token that goes on behind the mark.


class Phase(Enum):
    """What part of a completion the next token belongs to."""

    MAY_OPEN = auto()
    OPENING = auto()
    REASONING = auto()
    HEADER = auto()
    FORM = auto()


_WRITTEN = {Phase.OPENING: Phase.REASONING, Phase.HEADER: Phase.FORM}
"""The phase that follows when all known tokens of a phase are written."""

_WORD = 32
"""Bits in a word of the grammar's mask."""

_NO_THINKING = Thinking((), (), opened=False)
"""Stands for a model that does not reason; MAY_OPEN and REASONING are not entered then."""


class TokenMask:
    """
    Follows one completion and tells which tokens may come next. `Phase` has the states.

    Args:
        form: The form of the answer.
        vocab: Width of the logits.
        eos_ids: Ids that end the sequence.
        thinking: How the model reasons first; None if it does not, or was told not to.
        header: Ids that the answer begins with, before its form.
        budget: Most tokens of the reasoning, without its marks; None if it may take any number.
        ending: The reasoning up to its end mark, as a form; None if the ids of the mark are never others.
    """

    waits = True
    """Whether the next mask depends on the token that was sampled last."""

    def __init__(
        self,
        form: GrammarMatcher,
        vocab: int,
        eos_ids: Collection[int],
        thinking: Thinking | None = None,
        header: tuple[int, ...] = (),
        budget: int | None = None,
        ending: GrammarMatcher | None = None,
    ) -> None:
        self._form = form
        self._ending = ending
        self._vocab = vocab
        self._thinking = thinking or _NO_THINKING
        self._header = header
        self._left = math.inf if budget is None else budget
        """Tokens that the reasoning may still take."""
        self._known: tuple[int, ...] = ()
        """Tokens that OPENING or HEADER still has to write; empty in other phases."""
        self._tail: tuple[int, ...] = ()
        """The last tokens of the reasoning, at most as many as its end mark has."""
        self._reasoning_mask = mx.ones((vocab,), mx.bool_)
        for token in (*eos_ids, *self._thinking.barred):
            if token < vocab:  # some tokenizers name more than their model has
                self._reasoning_mask[token] = False
        if thinking is None:
            self._write(Phase.HEADER, header)
        else:
            self._phase = Phase.REASONING if thinking.opened else Phase.MAY_OPEN

    def mask(self, last: Drawn | None) -> mx.array:
        """
        Return the tokens that may follow. Waits for the device.

        Args:
            last: The token that was sampled last; None at the beginning.

        Returns:
            A bool for each token, shape [vocab].

        Raises:
            SidecarError: INVALID_ARGUMENT if the form takes too much work.
        """
        if last is not None:
            self._take(last.id)
        if self._phase is Phase.REASONING and self._left <= 0:
            self._write(Phase.HEADER, (*self._thinking.end, *self._thinking.turn, *self._header))
        if self._phase is Phase.REASONING:
            ending = self._ending
            mask = self._reasoning_mask
            return mask if ending is None else mx.logical_and(mask, expanded(ending.allowed(), self._vocab))
        known = self._header if self._phase is Phase.MAY_OPEN else self._known
        mask = mx.arange(self._vocab) == known[0] if known else expanded(self._form.allowed(), self._vocab)
        if self._phase is Phase.MAY_OPEN:
            mask[self._thinking.start[0]] = True
        return mask

    def late_mask(self) -> None:
        """Return None: each token was sampled with its mask."""

    def _take(self, token: int) -> None:
        """Go on to the phase that a sampled token leads to."""
        thinking = self._thinking
        if self._phase is Phase.MAY_OPEN:
            # The start mark wins where the answer could begin with the same token.
            if token == thinking.start[0]:
                self._write(Phase.OPENING, thinking.start[1:])
                return
            self._write(Phase.HEADER, self._header)
        if self._phase is Phase.REASONING:
            self._left -= 1
            if self._ends_with(token):
                self._write(Phase.HEADER, (*thinking.turn, *self._header))
        elif self._phase is Phase.FORM:
            self._form.take(token)
        else:
            self._write(self._phase, self._known[1:])

    def _ends_with(self, token: int) -> bool:
        """Return whether the reasoning ends with a token."""
        if self._ending is not None:
            self._ending.take(token)
            return self._ending.complete
        self._tail = (*self._tail, token)[-len(self._thinking.end) :]
        return self._tail == self._thinking.end

    def _write(self, phase: Phase, known: tuple[int, ...]) -> None:
        """Enter OPENING or HEADER with the tokens it has left to write, or the phase after it if it has none."""
        self._known = known
        self._phase = phase if known else _WRITTEN[phase]


def expanded(bits: bytes, vocab: int) -> mx.array:
    """
    Return a mask of a grammar as an array, shape [vocab].

    Only a bit for each token is copied to the device. Logits beyond the vocabulary are no tokens.
    """
    size = -(-vocab // _WORD) * _WORD // 8
    words = mx.array(memoryview(bits[:size].ljust(size, b"\0")).cast("I"))  # type: ignore[arg-type]
    spread = mx.bitwise_and(mx.right_shift(words[:, None], mx.arange(_WORD, dtype=mx.uint32)), 1)
    return spread.astype(mx.bool_).reshape(-1)[:vocab]
