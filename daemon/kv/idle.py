"""
Evicts what was not used for a time, so that an idle cache is small. A tier below is offered it before.

The trie orders its items by a counter of uses, not by time. So now and then a mark notes which count belongs to which
time: what was last used before the latest mark that is old enough has been idle for as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from daemon.kv.nodes import Node
from daemon.kv.spec import Below
from daemon.kv.tree import path_to
from daemon.kv.trie import PrefixTrie

MARKS = 16
"""Marks in the time after which an item is idle: it goes at most so much later, as a part of that time."""

LEAVING_MARKS = 2
"""So many marks before an item goes, it is offered to the tier below, which writes it meanwhile."""

MOST_AT_ONCE = 512
"""Items that one call evicts, which takes a few milliseconds; the next call goes on."""


class IdleRelease:
    """
    Evicts idle items, the oldest first. Leased and kept ones stay.

    Args:
        trie: Holds them.
        clock: Seconds that never go back.
        seconds: Time without a use after which an item goes.
        below: The tier below, if there is one.
    """

    def __init__(
        self, trie: PrefixTrie, clock: Callable[[], float], seconds: float, below: Below | None = None
    ) -> None:
        self._trie = trie
        self._clock = clock
        self._seconds = seconds
        self._marks: deque[tuple[float, int]] = deque()
        self._idle_before = 0
        """Items with a smaller tick are idle."""
        self._below = below
        self._offered_before = 0
        """Items with a smaller tick were offered to the tier below."""
        self._leaving: deque[Node] = deque()

    def release(self) -> int:
        """Evict what is idle now, and return the bytes that became free; to be called about once a second."""
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= self._seconds / MARKS:
            self._marks.append((now, self._trie.mark()))
        if self._below is not None:
            self._offer(self._below, now)
        while self._marks and now - self._marks[0][0] >= self._seconds:
            self._idle_before = self._marks.popleft()[1]
        before = self._trie.ledger.nbytes
        for _ in range(MOST_AT_ONCE):
            oldest = self._trie.oldest()
            if oldest is None or oldest >= self._idle_before:
                break
            self._trie.drop_oldest(checkpoints=True)
        return before - self._trie.ledger.nbytes

    def _offer(self, below: Below, now: float) -> None:
        """Offer the tier below what goes soon, as far as it takes it now."""
        early = self._seconds * (1 - LEAVING_MARKS / MARKS)
        before = max((tick for time, tick in self._marks if now - time >= early), default=0)
        if before > self._offered_before:
            self._leaving.extend(self._trie.leaves(self._offered_before, before))
            self._offered_before = before
        while self._leaving:
            leaf = self._leaving[0]
            if leaf.evictable and leaf.tick < before and not below.idle(*path_to(leaf), early):
                break
            self._leaving.popleft()
