"""What a source of guesses has brought, and the chance that its next guess is right. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_CHANCE = 0.6
_WEIGHT = 1 / 32
"""Least weight of a new measurement in the chance of a source."""


@dataclass(slots=True)
class Record:
    """
    What a source has brought.

    Attributes:
        guessed: Tokens guessed.
        accepted: Guesses that were right.
        seen: Guesses that were compared with decoded tokens, whether a pass checked them or not; 0 if none can be.
        chance: Chance that a guess is right if those before it were.
        seconds: Its seconds of passes with guesses: for each row its share of a usual pass, and of what guesses added.
        plain: Seconds that the tokens of these passes would have taken without guesses.
    """

    guessed: int = 0
    accepted: int = 0
    seen: int = 0
    chance: float = _FIRST_CHANCE
    seconds: float = 0.0
    plain: float = 0.0

    def count(self, guessed: int, accepted: int) -> None:
        """Count guesses of a pass, and how many of them were right."""
        self.guessed += guessed
        self.accepted += accepted
        if self.seen:  # they are among those
            return
        for right in [True] * accepted + [False] * (accepted < guessed):
            self._learn(right, self.guessed)

    def see(self, right: bool) -> None:
        """Count a guess that needed no pass, and whether it would have been right."""
        self.seen += 1
        self._learn(right, self.seen)

    def _learn(self, right: bool, known: int) -> None:
        self.chance += max(_WEIGHT, 1 / (known + 2)) * (right - self.chance)

    def brings(self, guesses: int) -> float:
        """Return how many of so many guesses are right, on average."""
        chance = self.chance
        return chance * (1 - chance**guesses) / (1 - chance) if chance < 1 else float(guesses)
