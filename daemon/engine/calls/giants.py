"""Limits the searches that occupy a thread for minutes, so that one thread stays free for the others. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

GIANT_BYTES = 4 << 30
"""A search that reads more bytes than this is a giant: it takes some ten seconds or more. Downloads always are."""

MOST_GIANTS = 3
"""Giants that run at the same time, on the four threads for long work."""


class Giants:
    """
    Lets a number of giants run at the same time; the others wait, the oldest first. Used by one thread.

    Args:
        most: Giants that run at the same time.
    """

    def __init__(self, most: int = MOST_GIANTS) -> None:
        self._free = most
        self._waiting: deque[Callable[[], None]] = deque()

    def begin(self, nbytes: int | None, start: Callable[[], None]) -> Callable[[], None]:
        """
        Start a search: a giant when there is a place for it, any other at once.

        Args:
            nbytes: Bytes that it reads; None if it downloads them.
            start: Starts it.

        Returns:
            A function to call at the end of the search, which gives its place back; harmless twice.
        """
        if nbytes is not None and nbytes <= GIANT_BYTES:
            start()
            return _nothing
        self._waiting.append(start)
        self._next()
        return self._ending()

    def _ending(self) -> Callable[[], None]:
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._free += 1
                self._next()

        return end

    def _next(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft()()


def _nothing() -> None:
    """Do nothing: a search that is no giant has no place to give back."""
