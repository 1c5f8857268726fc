"""The pace of log lines that a stranger can cause: a flood of them would push all else out of the log. Pure."""

from __future__ import annotations

from collections.abc import Callable

PACE_SECONDS = 60.0
"""Least time between two lines about the same."""


class LogPace:
    """
    Lets the first line about something be logged at once, and then one a minute at most, with a count.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def due(self, what: str) -> int:
        """
        Count one more of something, and return how many there were since its last line; 0 if no line is due.

        Args:
            what: What the line is about: one of a few words of ours, as each is kept.
        """
        self._since[what] = self._since.get(what, 0) + 1
        now = self._clock()
        if what in self._logged and now - self._logged[what] < PACE_SECONDS:
            return 0
        self._logged[what] = now
        return self._since.pop(what)
