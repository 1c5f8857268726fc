"""The pace of log lines that come again and again: a flood of them would push all else out of the log. Pure."""

from __future__ import annotations

from collections.abc import Callable

PACE_SECONDS = 60.0
"""Least time between two lines about the same, unless it is chosen."""
MOST_KEPT = 256
"""Subjects that are remembered; with more, all are forgotten and told anew."""


class LogPace:
    """
    Lets the first line about something be logged at once, and then one a minute at most, with a count.

    Args:
        clock: Seconds that never go back.
        seconds: Least time between two lines about the same.
    """

    def __init__(self, clock: Callable[[], float], seconds: float = PACE_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._logged: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def due(self, what: str) -> int:
        """
        Count one more of something, and return how many there were since its last line; 0 if no line is due.

        Args:
            what: What the line is about; MOST_KEPT of them are kept.
        """
        if what not in self._logged and len(self._logged) >= MOST_KEPT:
            self.forget()
        self._since[what] = self._since.get(what, 0) + 1
        now = self._clock()
        if what in self._logged and now - self._logged[what] < self._seconds:
            return 0
        self._logged[what] = now
        return self._since.pop(what)

    def forget(self) -> None:
        """Forget all lines, so that each is logged at once when it comes again."""
        self._logged.clear()
        self._since.clear()
