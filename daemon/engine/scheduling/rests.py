"""Spares a sequence the question whether it may guess, where the answer will be no for some steps. Pure."""

from __future__ import annotations

from daemon.engine.scheduling.governor import Governor, Source


class Rests:
    """
    Asks a governor for a sequence, and spares it sources that would be allowed no guess.

    Args:
        governor: The governor.
        sources: The sources.
    """

    def __init__(self, governor: Governor, *sources: Source) -> None:
        self._governor = governor
        self._sources = sources
        self._steps = 0
        self._until: dict[Source, int] = {}

    def step(self) -> bool:
        """Count a step of the sequence, and return whether all sources rest."""
        self._steps += 1
        return all(map(self._rests, self._sources))

    def see(self, source: Source, right: bool) -> None:
        """Tell the governor of a guess that needed no pass."""
        self._governor.see(source, right)

    def wake(self, source: Source) -> None:
        """End the rest of a source if the governor may allow a guess now."""
        if self._rests(source) and not self._governor.rest(source):
            del self._until[source]

    def count(self, source: Source, most: int) -> int:
        """Return how many tokens a source may guess now; one that may not guess rests. See `Governor.count`."""
        if self._rests(source):
            return 0
        count = self._governor.count(source, most)
        for each in [] if count else self._sources:
            if not self._rests(each):
                self._until[each] = self._steps + self._governor.rest(each)
        return count

    def _rests(self, source: Source) -> bool:
        return self._steps < self._until.get(source, 0)
