"""Remembers for how many steps the governor will allow a sequence no guess, so that it is not asked in vain. Pure."""

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
        self._steps = 0
        self._until = dict.fromkeys(sources, 0)
        self._all_until = 0

    def step(self) -> bool:
        """Count a step of the sequence, and return whether all sources rest."""
        self._steps += 1
        return self._steps < self._all_until

    def rests(self, source: Source) -> bool:
        """Whether a source rests."""
        return self._steps < self._until[source]

    def see(self, source: Source, right: bool) -> None:
        """Tell the governor of a guess that needed no pass."""
        self._governor.see(source, right)

    def wake(self, source: Source) -> None:
        """Take guesses that would have been right: its rest ends if the governor may allow a guess now."""
        self._governor.right(source)
        if self.rests(source) and not self._governor.rest(source):
            self._until[source] = self._all_until = 0

    def count(self, source: Source, most: int) -> int:
        """Return how many tokens a source may guess now; one that may not guess rests. See `Governor.count`."""
        if self.rests(source):
            return 0
        count = self._governor.count(source, most)
        if not count:
            for each in self._until:
                if not self.rests(each):
                    self._until[each] = self._steps + self._governor.rest(each)
            self._all_until = min(self._until.values())
        return count
