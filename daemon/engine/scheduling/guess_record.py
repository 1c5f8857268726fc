"""What a source of guesses has brought, and the chance that its next guess is right. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_CHANCE = 0.6
_WEIGHT = 1 / 32
"""Least weight of a new measurement in the chance of a source."""
TRIED = 4
"""Guesses of a source before its gain is believed."""
_RAREST = 8
"""How many times rarer than its share allows a source is tried that failed again and again."""


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
        failed: Passes in a row that lost.
        until: When it may be tried again, in seconds of passes of the model.
    """

    guessed: int = 0
    accepted: int = 0
    seen: int = 0
    chance: float = _FIRST_CHANCE
    seconds: float = 0.0
    plain: float = 0.0
    failed: int = 0
    until: float = 0.0

    @property
    def compared(self) -> bool:
        """Whether enough guesses were compared with decoded tokens to know the chance without a pass."""
        return self.seen > TRIED

    @property
    def fits(self) -> float:
        """Chance that its guesses continue the pending token, if that is not known: those that need no pass may not."""
        return self.chance if self.seen else 1.0

    def gained(self) -> None:
        """Take a pass that gained, or guesses that were right without one: the next try is like the first."""
        self.failed, self.until = 0, 0.0

    def failed_at(self, now: float) -> None:
        """Take a pass that lost."""
        self.failed, self.until = self.failed + 1, now

    def pays(self, seconds: float) -> None:
        """Put off the next try for what the last one lost: for longer the more of them failed in a row."""
        self.until += max(0.0, seconds) * float(min(1 << max(0, self.failed - 1), _RAREST))

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
