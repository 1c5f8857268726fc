"""
Decides how long requests at an idle engine wait for others, so that they share the first pass. Pure.

Several short prompts take little longer than a single one, but only in one pass. Without a window the first prompt is
computed alone, and the others follow beside its stream, a chunk at a time.

    first arrival        second          last arrival
        |-- SLOW_SHARE ---->|--- LINGER + SLOW_SHARE --->|--- LINGER + SLOW_SHARE ---> start
        |<------------------------ at most most_seconds(step) ----------------------->|

A request waits 5 % of its model's decode step after it arrived. Once a second one has come, the window ends 4 ms + 5 %
after the last arrival. While a request is being tokenised, the window stays open. It never lasts longer than 25 ms +
10 % of a step.
"""

from __future__ import annotations

from collections.abc import Callable

LINGER_SECONDS = 0.004
"""Requests that come together are this far apart at most."""

MOST_SECONDS = 0.025
"""The longest window, whatever comes, without the share of a step."""

SLOW_SHARE = 0.05
"""
The share of its model's decode step that a request waits although no other has followed. It is little, and a slow
model's requests that come just behind it would wait for whole steps.
"""


def most_seconds(step: float) -> float:
    """Return the longest window, in seconds, of a model with a decode step of so many seconds."""
    return MOST_SECONDS + 2 * SLOW_SHARE * step


class BatchingWindow:
    """
    Decides how long requests that could start wait for others.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen = 0
        """The most requests that this window has seen at a time; 0 while no window is open."""
        self._first = self._last = 0.0
        """When the first and the last of them came."""

    def remaining(self, waiting: int, coming: int, step: float = 0.0) -> float:
        """
        Return for how many more seconds no request starts.

        Args:
            waiting: Requests that could start; 0 while another one is being computed, and that closes the window.
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
