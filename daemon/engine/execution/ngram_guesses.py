"""Guesses from n-grams of the prompt and the answer."""

from __future__ import annotations

from collections.abc import Callable

from daemon.engine.execution.request import Speculation
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.governor import MOST_GUESSES, Governor, Source
from daemon.engine.scheduling.ngrams import LONG, NgramIndex
from daemon.engine.scheduling.rests import Rests

_LONG_MATCH = 8
"""Tokens of a match from which it counts as a source of its own, `LONG`: its guesses are better."""
_OF_LONG, _OF_SHORT = (Source(Speculation.NGRAM, quality) for quality in (LONG, "short"))
_ON_REQUEST = 4
"""Tokens guessed where the request asks for guesses and nothing is known of their gain."""
_INDEXED = 1 << 16
"""Tokens of a prompt, its last ones, that are indexed."""
_INDEXED_AT_ONCE = 1024
"""Tokens indexed in a step: a third of a millisecond."""
_WAKES = 4
"""Guesses in a row that would have been right, after which the governor is asked again."""


class NgramGuesses:
    """
    Guesses that a sequence goes on as it did before, after the same tokens.

    While no guess of it would be allowed, it guesses for itself, and tells the governor which of these were right: that
    takes two microseconds a token, and no pass.

    Args:
        sequence: The request.
        governor: Decides how many tokens to guess, unless the request asks for guesses in any case.
    """

    def __init__(self, sequence: Sequence, governor: Governor) -> None:
        self._sequence = sequence
        self._rests = Rests(governor, _OF_LONG, _OF_SHORT)
        self._index = NgramIndex()
        self._read = max(0, len(sequence.prompt) - _INDEXED)
        """Tokens of the sequence that are in the index, or are left out of it."""
        self._match = 0, 0
        """Tokens of the last match, and the place after them."""
        self._seen, self._place = _OF_SHORT, 0
        """The source of the guess that is compared with the tokens that follow, and the place of its next token."""
        self._compared = MOST_GUESSES
        """Tokens of it that were compared; all if it was wrong."""
        self._always = sequence.request.speculation is Speculation.NGRAM

    def ready(self) -> bool:
        """Look for the last tokens at an earlier place."""
        rests, follows = self._rests.step(), self._follow()
        if not follows or (rests and not self._always):
            return False
        self._match = self._index.match()
        return self._match[0] > 0 and (self._always or not self._rests.rests(_source(self._match[0])))

    def offer(self, most: int) -> tuple[Source, int]:
        """Return the kind of the match, and how many of the tokens behind it the governor allows."""
        label = _source(self._match[0])
        return label, self._count(label, min(most, MOST_GUESSES))

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """
        Guess what followed the last match.

        A token that the device still computes is waited for only if a match before it tells which one it may be.
        """
        length, after = self._match
        label = _source(length)
        if known:
            return label, self._index.following(after, most)
        first, *guesses = self._index.following(after, most + 1)
        stops = first in self._sequence.request.stop_ids  # what is fed behind it could not be resumed after it
        return label, guesses if pending() == first and not stops else []

    def checked(self, right: int) -> None:
        """Nothing has to be taken back: the index follows the tokens of the sequence."""

    def _count(self, label: Source, most: int) -> int:
        return self._rests.count(label, most) or (min(most, _ON_REQUEST) if self._always else 0)

    def _follow(self) -> bool:
        """Index tokens, and return whether all are."""
        prompt, generated = self._sequence.prompt, self._sequence.generated
        if self._read < len(prompt):
            part = prompt[self._read : self._read + _INDEXED_AT_ONCE]
            self._index.extend(part)
            self._read += len(part)
            if self._read < len(prompt):
                return False
        for token in generated[self._read - len(prompt) :]:
            self._compare(token)
        self._read = len(prompt) + len(generated)
        return True

    def _compare(self, token: int) -> None:
        """Index a token of the answer, and compare it with a guess that is made as those of passes are."""
        if self._compared == MOST_GUESSES:
            length, self._place = self._index.match()
            self._seen, self._compared = _source(length), 0 if length else MOST_GUESSES
        if self._compared < MOST_GUESSES:
            right = self._index[self._place] == token
            self._place += 1
            self._compared = self._compared + 1 if right else MOST_GUESSES
            self._rests.see(self._seen, right)
            if right and self._compared % _WAKES == 0:
                self._rests.wake(self._seen)
        self._index.extend((token,))


def _source(length: int) -> Source:
    return _OF_LONG if length >= _LONG_MATCH else _OF_SHORT
