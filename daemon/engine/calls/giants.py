"""Giants: searches that keep a thread for minutes. One thread is always left for the others. Pure, on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

GIANT_BYTES = 4 << 30
"""Weights to read beyond which a search is a giant: some ten seconds. Downloads are giants, whatever their size."""

MOST_GIANTS = 3
"""Of the four threads for what takes long."""


class Giants:
    """
    Lets so many giants run at the same time; the others wait, the oldest first.

    Args:
        most: How many.
    """

    def __init__(self, most: int = MOST_GIANTS) -> None:
        self._free = most
        self._waiting: deque[Callable[[], None]] = deque()

    def begin(self, nbytes: int | None, start: Callable[[], None]) -> Callable[[], None]:
        """
        Start a search, at once or when a giant ends.

        Args:
            nbytes: Bytes that it reads; None if it downloads them.
            start: Starts it.

        Returns:
            A function to be called at its end; harmless twice.
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
    """A small one has no place to give back."""
