"""
Admission control: limits how many requests wait, and refuses all while the daemon drains. Pure, on the event loop.

A call takes a place when it arrives. It counts as waiting until its first event comes from the engine: `began`. The
limit is on waiting calls; how many run at a time is the engine's matter.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.server.callers import UNKNOWN, Caller
from daemon.shared.errors import RETRY_SECONDS, Reason, SidecarError

MAX_WAITING_TOKENS = 2_000_000
"""Prompt tokens of all waiting calls. A prompt alone may have more."""

LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 60.0
"""Bounds of the time to retry that is computed from the speed of the queue."""
_RECENT = 32
"""Calls that began to run last, from which that speed is computed."""


@dataclass(slots=True, eq=False)
class Place:
    """
    The place of one call, from its arrival to its end.

    Attributes:
        drop: Ends the call with an error, if the daemon ends before the call does.
        waiting: Whether it has not begun to run.
        tokens: Tokens of its prompt; 0 before the engine has counted them.
        caller: The process that it came from.
    """

    drop: Callable[[SidecarError], None] = lambda _: None
    waiting: bool = True
    tokens: int = 0
    caller: Caller = UNKNOWN


class Admission:
    """
    Gives places to calls.

    Args:
        max_waiting: Most calls that wait: for their model, their prompt's tokens or a slot.
        on_idle: Called when the last open call has ended.
        on_busy: Called when a call arrives while none is open.
        clock: Seconds that never go back.
        most_of_program: Most calls of one program that wait; None for no limit of its own. Processes that are not
            known count as one program.
    """

    def __init__(
        self,
        max_waiting: int,
        on_idle: Callable[[], None] = lambda: None,
        on_busy: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        most_of_program: int | None = None,
    ) -> None:
        self.rejected = 0
        self._most_of_program = max_waiting if most_of_program is None else most_of_program
        self._clock = clock
        self._recent_starts: deque[float] = deque(maxlen=_RECENT)
        """When waiting calls began to run, the last few, oldest first."""
        self._max_waiting = max_waiting
        self._on_idle = on_idle
        self._on_busy = on_busy
        self._places: set[Place] = set()
        self._closed = False

    @property
    def active(self) -> int:
        """Calls that have not ended."""
        return len(self._places)

    @property
    def waiting(self) -> int:
        """Calls that have not begun to run."""
        return sum(place.waiting for place in self._places)

    @property
    def calls(self) -> list[tuple[Caller, bool]]:
        """The process of each call that has not ended, and whether the call waits."""
        return [(place.caller, place.waiting) for place in self._places]

    def refused(self) -> None:
        """Count a call that was refused before it could ask for a place."""
        self.rejected += 1

    @contextmanager
    def admit(self, caller: Caller = UNKNOWN) -> Iterator[Place]:
        """
        Give a call a place until the block ends.

        Args:
            caller: The process that it came from.

        Raises:
            SidecarError: SHUTTING_DOWN or QUEUE_FULL, both with a time to try again.
        """
        if self._closed:
            self.rejected += 1
            raise shutting_down()
        if self.waiting >= self._max_waiting:
            self.rejected += 1
            raise self._full(f"{self._max_waiting} requests wait already, the most that max_queue allows")
        self._check_share(caller.program)
        place = Place(caller=caller)
        if not self._places:
            self._on_busy()
        self._places.add(place)
        try:
            yield place
        finally:
            self.leave(place)

    def _check_share(self, program: str) -> None:
        waiting = sum(place.waiting and place.caller.program == program for place in self._places)
        if waiting >= self._most_of_program:
            self.rejected += 1
            name = program or "programs that are not known"
            raise self._full(f"{waiting} requests of {name} wait already, the most that max_queue_share allows")

    def leave(self, place: Place) -> None:
        """Give a place back before its block ends. Harmless twice."""
        if place in self._places:
            self.began(place)
            self._places.discard(place)
            if not self._places:
                self._on_idle()

    def tokenised(self, place: Place, tokens: int) -> None:
        """
        Note the size of a waiting prompt.

        Raises:
            SidecarError: QUEUE_FULL if too many tokens wait.
        """
        others = sum(other.tokens for other in self._places if other.waiting and other is not place)
        if others and others + tokens > MAX_WAITING_TOKENS:
            self.rejected += 1
            raise self._full(f"prompts of {others} tokens wait already; {MAX_WAITING_TOKENS} is the most")
        place.tokens = tokens

    def began(self, place: Place) -> None:
        """Note that a call runs. Harmless twice."""
        if place.waiting and place.tokens:  # calls without a prompt do not tell the queue's speed
            self._recent_starts.append(self._clock())
        place.waiting = False

    def _full(self, why: str) -> SidecarError:
        return SidecarError(Reason.QUEUE_FULL, f"{why}; try again shortly", retry_after=self._until_a_place())

    def _until_a_place(self) -> float:
        """Estimate the seconds until a place becomes free, from the mean time between the last few."""
        if len(self._recent_starts) < 2:
            return RETRY_SECONDS
        each = (self._clock() - self._recent_starts[0]) / len(self._recent_starts)
        return min(MOST_RETRY_SECONDS, max(LEAST_RETRY_SECONDS, each))

    def close(self) -> None:
        """Refuse calls from now on, and end those that wait."""
        self._closed = True
        for place in [place for place in self._places if place.waiting]:
            place.drop(shutting_down())

    def cut_off(self) -> None:
        """End also the calls that run, when the time of the drain is over."""
        for place in list(self._places):
            place.drop(shutting_down())


def shutting_down() -> SidecarError:
    """Return the error for calls that arrive or wait while the daemon drains."""
    return SidecarError(
        Reason.SHUTTING_DOWN,
        "the daemon is shutting down; try again shortly",
        retry_after=RETRY_SECONDS,
    )
