"""An index of the n-grams of a sequence: it guesses that the sequence goes on as it did before. Pure."""

from __future__ import annotations

from array import array

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


class NgramIndex:
    """
    The tokens of a sequence, and where each n-gram of them ended before.

    A token takes about 130 bytes. Each call takes a bounded time, whatever the length of the sequence.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._latest: dict[int, int] = {}
        self._before = array("i")
        self._key = 0
        """The last tokens as one number, once there are enough."""

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        """Append a token."""
        place = len(self._tokens)
        self._tokens.append(token)
        self._key = ((self._key << _BITS) | token) & ((1 << (_BITS * LEAST)) - 1)
        if place + 1 < LEAST:
            self._before.append(-1)
            return
        self._before.append(self._latest.get(self._key, -1))
        self._latest[self._key] = place

    def match(self) -> tuple[int, int]:
        """
        Find the last tokens at an earlier place.

        Returns:
            How many tokens are equal, up to `MOST`, and the place after them; (0, 0) without a match. Of the last
            `DEPTH` places with the same `LEAST` tokens it is the one with the longest match; the later one of two.
        """
        length = after = 0
        place = self._before[-1] if self._before else -1
        for _ in range(DEPTH):
            if place < 0 or length == MOST:
                break
            common = self._common(place)
            if common > length:
                length, after = common, place + 1
            place = self._before[place]
        return length, after

    def following(self, after: int, count: int) -> list[int]:
        """Return what followed a match. A match that reaches to the end repeats: its guess goes on with itself."""
        found = self._tokens[after : after + count].tolist()
        period = len(self._tokens) - after
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def _common(self, place: int) -> int:
        """Count the tokens that end at a place and are equal to the last ones."""
        tokens, last = self._tokens, len(self._tokens) - 1
        length = 0
        while length < MOST and place - length >= 0 and tokens[place - length] == tokens[last - length]:
            length += 1
        return length
