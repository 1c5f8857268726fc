"""Admission: how many requests may wait, and none while the daemon drains. Pure; runs on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.errors import Reason, SidecarError

MAX_WAITING_TOKENS = 2_000_000
RETRY_QUEUE_FULL = 2.0
RETRY_SHUTTING_DOWN = 2.0


@dataclass(slots=True, eq=False)
class Ticket:
    """
    One call's place, from its arrival to its end.

    Attributes:
        drop: Ends the call with an error, if the daemon ends before the call does.
        waiting: Whether it has not begun to run.
        tokens: Tokens of its prompt, once they are known.
    """

    drop: Callable[[SidecarError], None] = lambda _: None
    waiting: bool = True
    tokens: int = 0


class Admission:
    """
    Counts calls.

    Args:
        max_waiting: Most Generate calls that wait for their model or a slot.
        on_idle: Called whenever the last call has ended.
        on_busy: Called whenever a first call begins.
    """

    def __init__(
        self,
        max_waiting: int,
        on_idle: Callable[[], None] = lambda: None,
        on_busy: Callable[[], None] = lambda: None,
    ) -> None:
        self.rejected = 0
        self._max_waiting = max_waiting
        self._on_idle = on_idle
        self._on_busy = on_busy
        self._tickets: set[Ticket] = set()
        self._closed = False

    @property
    def active(self) -> int:
        """Calls that have not ended."""
        return len(self._tickets)

    @property
    def waiting(self) -> int:
        """Calls that have not begun to run."""
        return sum(ticket.waiting for ticket in self._tickets)

    @contextmanager
    def place(self) -> Iterator[Ticket]:
        """
        Give a call a place until the block ends.

        Raises:
            SidecarError: SHUTTING_DOWN or QUEUE_FULL, both with a time to try again.
        """
        if self._closed:
            self.rejected += 1
            raise shutting_down()
        if self.waiting >= self._max_waiting:
            self.rejected += 1
            raise _full(f"{self._max_waiting} requests wait already, the most that max_queue allows")
        ticket = Ticket()
        if not self._tickets:
            self._on_busy()
        self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            self._tickets.discard(ticket)
            if not self._tickets:
                self._on_idle()

    def tokenised(self, ticket: Ticket, tokens: int) -> None:
        """
        Note the size of a waiting prompt.

        Raises:
            SidecarError: QUEUE_FULL if too many tokens wait.
        """
        others = sum(other.tokens for other in self._tickets if other.waiting and other is not ticket)
        if others and others + tokens > MAX_WAITING_TOKENS:
            self.rejected += 1
            raise _full(f"prompts of {others} tokens wait already; {MAX_WAITING_TOKENS} is the most")
        ticket.tokens = tokens

    def began(self, ticket: Ticket) -> None:
        """Note that a call runs."""
        ticket.waiting = False

    def close(self) -> None:
        """Take nobody in any more, and drop those that wait."""
        self._closed = True
        for ticket in [ticket for ticket in self._tickets if ticket.waiting]:
            ticket.drop(shutting_down())

    def cut_off(self) -> None:
        """Drop also those that run, once their time is over."""
        for ticket in list(self._tickets):
            ticket.drop(shutting_down())


def shutting_down() -> SidecarError:
    """Return the error of calls that come, or wait, while the daemon drains."""
    return SidecarError(
        Reason.SHUTTING_DOWN,
        "the daemon is shutting down; try again shortly",
        retry_after=RETRY_SHUTTING_DOWN,
    )


def _full(why: str) -> SidecarError:
    return SidecarError(Reason.QUEUE_FULL, f"{why}; try again shortly", retry_after=RETRY_QUEUE_FULL)
