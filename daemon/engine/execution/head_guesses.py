"""Guesses of a model's own MTP head, with those of n-grams beside them."""

from __future__ import annotations

from collections.abc import Callable

from daemon.engine.execution.ngram_guesses import NgramGuesses
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.governor import Governor, Source
from daemon.engine.scheduling.ngrams import LONG
from daemon.engine.scheduling.rests import Rests

_OWN = Source(Speculation.MTP)
MOST_OF_HEAD = 4
"""Tokens that a head guesses at most: it was trained for one, and goes on from its own states."""


class HeadGuesses:
    """
    Guesses of the model's own MTP head; where it has none to make, or n-grams have a long match, those of n-grams.

    Args:
        sequence: The request, with a view of the head.
        governor: Decides how many tokens to guess, unless the request asks for the head's.
        ngrams: Guesses from n-grams; None if the request asks for the head's.
    """

    def __init__(self, sequence: Sequence, governor: Governor, ngrams: NgramGuesses | None) -> None:
        self._sequence = sequence
        self._rests = Rests(governor, _OWN)
        self._ngrams = ngrams
        self._matched = False
        """Whether n-grams may guess with the next pass."""
        self._offered = Source(Speculation.NGRAM), 0
        """What n-grams may guess with the next pass, and how many tokens."""
        self._own = 0
        """Tokens that the head may guess with the next pass."""

    def ready(self) -> bool:
        """Whether n-grams have a match, or the governor may allow guesses of the head."""
        self._matched = self._ngrams is not None and self._ngrams.ready()
        return not self._rests.step() or self._matched or self._ngrams is None

    def offer(self, most: int) -> tuple[Source, int]:
        """Return what n-grams offer of a long match; else what the head may guess, or what else n-grams offer."""
        ngrams, most_own = self._ngrams, min(most, MOST_OF_HEAD)
        self._offered = ngrams.offer(most) if ngrams is not None and self._matched else (Source(Speculation.NGRAM), 0)
        self._own = self._rests.count(_OWN, most_own) or (most_own if ngrams is None else 0)
        source, count = self._offered
        return (_OWN, self._own) if self._own and not (count and source.quality == LONG) else self._offered

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """Guess from a long match; else let the head guess, as far as it has seen all tokens but the pending one."""
        (label, count), guesses = self._offered, list[int]()
        if self._ngrams is not None and count:
            label, guesses = self._ngrams.guess(pending, min(most, count), known=known)
        if guesses and label.quality == LONG:
            return label, guesses
        found = self._of_head(pending, min(most, self._own), known=known)
        return (_OWN, found) if found else (label, guesses)

    def checked(self, right: int) -> None:
        """Nothing has to be taken back: the head has done so, and gets the states of accepted tokens."""

    def _of_head(self, pending: Callable[[], int], count: int, *, known: bool) -> list[int]:
        sequence, head = self._sequence, self._sequence.head
        if head is None or not count or not head.ready(len(sequence.prompt) + len(sequence.generated) - known):
            return []
        token = pending()
        return [] if token in sequence.request.stop_ids else head.guess(token, count, sequence.loaded.vocab_size)
