"""An index of the n-grams of a sequence: it guesses that the sequence goes on as it did before. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

# An answer that edits a file, or fills a list of JSON objects, has long parts that came before. The index finds the
# last tokens at an earlier place, and what followed there is the guess.
#
#   tokens     a b c d e . . . x b c d        the last three, b c d, ended at position 3 as well
#   guess            e . .  <----- after       what followed there
#
# `_latest` has the last place of each n-gram of LEAST tokens, and `_before` the place before each place. Of the last
# DEPTH places the one with the longest common past is used: a longer past makes a better guess.

LEAST = 3
"""Tokens of the shortest match."""
DEPTH = 8
"""Earlier places that are compared."""
MOST = 32
"""Tokens to which the length of a match is counted."""

LONG = "long"
"""The quality of guesses from a long match."""

_BITS = 21
"""Bits of a token id in the key of an n-gram: no vocabulary has two million tokens."""
_NOTHING = (1 << (_BITS * LEAST)) - 1
"""The key before the first token: no n-gram has it, nor what it leaves in the next keys."""


class NgramIndex:
    """
    The tokens of a sequence, and where each n-gram of them ended before.

    A token takes about 130 bytes. A search takes a bounded time, whatever the length of the sequence.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._latest: dict[int, int] = {}
        self._before = array("i")
        self._key = _NOTHING
        """The last tokens as one number."""
        self._found: tuple[int, int] | None = 0, 0
        """The match of the last tokens; None if it was not searched."""

    def __getitem__(self, place: int) -> int:
        """Return the token at a place."""
        return self._tokens[place]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        key, latest, before = self._key, self._latest, self._before
        for place, token in enumerate(tokens, len(self._tokens)):
            key = (key << _BITS | token) & _NOTHING
            before.append(latest.get(key, -1))
            latest[key] = place
        self._tokens.extend(tokens)
        self._key, self._found = key, None

    def match(self) -> tuple[int, int]:
        """
        Find the last tokens at an earlier place. They are searched once, however often it is asked.

        Returns:
            How many tokens are equal, up to `MOST`, and the place after them; (0, 0) without a match. Of the last
            `DEPTH` places with the same `LEAST` tokens it is the one with the longest match; the later one of two.
        """
        if self._found is None:
            self._found = self._search()
        return self._found

    def following(self, after: int, count: int) -> list[int]:
        """Return what followed a match. A match that reaches to the end repeats: its guess goes on with itself."""
        found = self._tokens[after : after + count].tolist()
        period = len(self._tokens) - after
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def _search(self) -> tuple[int, int]:
        tokens, last = self._tokens, len(self._tokens) - 1
        length = after = 0
        place = self._before[last] if self._before else -1
        for _ in range(DEPTH):
            if place < 0 or length == MOST:
                break
            most = min(MOST, place + 1)
            if length < most and tokens[place - length] == tokens[last - length]:  # else it is no longer
                common = LEAST  # as their key says
                while common < most and tokens[place - common] == tokens[last - common]:
                    common += 1
                if common > length:
                    length, after = common, place + 1
            place = self._before[place]
        return length, after
