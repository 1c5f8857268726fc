"""The log of a process that may die at each start: lines of such starts at once, then once an hour. Pure."""

from __future__ import annotations

from collections.abc import Callable

from daemon.shared.log_pace import LogPace

HOUR_SECONDS = 3600.0
"""Least time between two equal lines of starts that fail."""


class StartLog:
    """
    Decides which lines are logged about a process that is started again after each end.

    All lines are, once it serves. Until then, a line that an earlier start had in the same place is left out. A start
    has failed as well if the process hangs later on. Only an hour without that is the end of it.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pace = LogPace(clock, HOUR_SECONDS)
        self._lines = 0
        self._failed = 0
        self._serves = False
        self._hung: float | None = None

    def begin(self) -> None:
        """Note that a start begins."""
        self._lines, self._serves = 0, False

    def due(self, line: str) -> int:
        """Return how often a line came since it was logged, itself included; 0 if it is to be left out."""
        self._lines += 1
        return 1 if self._serves else self._pace.due(f"{self._lines} {line}")

    def hangs(self) -> int:
        """Note that the process hangs and is about to be killed, and return as `due` does of the line about it."""
        self._serves, self._hung = False, self._clock()
        return self._pace.due("hangs")

    def ended(self, how: int | str) -> int:
        """Note an end of the process, by its status or why it did not begin, and return as `due` does of that line."""
        if self._serves:
            return 1
        self._failed += 1
        return self._pace.due(f"ended {how}")

    def serves(self) -> int:
        """Note that the process serves, as often as that is seen, and return how many starts before it failed."""
        self._serves = True
        if self._hung is not None and self._clock() - self._hung < HOUR_SECONDS:
            return 0
        failed, self._failed, self._hung = self._failed, 0, None
        self._pace.forget()
        return failed
