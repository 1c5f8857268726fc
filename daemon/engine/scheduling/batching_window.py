"""Gathering: the first of several requests that come at the same time waits a moment for the others. Pure."""

from __future__ import annotations

from collections.abc import Callable

LINGER_SECONDS = 0.004
"""Who comes with others comes this soon after the one before."""

MOST_SECONDS = 0.025
"""Nobody waits longer, however many come."""

SLOW_SHARE = 0.05
"""
The share of its model's decode step that one waits in addition, though nobody has followed yet, and twice that at most:
little, and if it were computed alone, those that follow would wait for whole steps.
"""


def most_seconds(step: float) -> float:
    """Return for how long anybody waits whose model takes so many seconds for a decode step."""
    return MOST_SECONDS + 2 * SLOW_SHARE * step


class BatchingWindow:
    """
    Decides how long requests that could start wait for others. One that nobody follows hardly waits.

    Several short prompts take little longer than one, but only if they are computed together. Without it the first is
    computed alone, and the others, beside its stream, a chunk at a time.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen = 0
        self._first = self._last = 0.0

    def left(self, waiting: int, coming: int, step: float = 0.0) -> float:
        """
        Return for how many more seconds nobody starts.

        Args:
            waiting: Requests that could start; none as long as anything of another one is being computed.
            coming: Requests that are being tokenised.
            step: Seconds that a decode step of their models usually takes; 0 if that is not known.
        """
        if not waiting:
            self._seen = 0
            return 0.0
        now, seen = self._clock(), waiting + coming
        if not self._seen:
            self._first = now
        if seen > self._seen:
            self._seen, self._last = seen, now
        end = self._first + most_seconds(step)
        if not coming:
            end = min(end, self._last + SLOW_SHARE * step + LINGER_SECONDS * (seen > 1))
        return max(0.0, end - now)
