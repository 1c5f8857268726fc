"""How results of work off the MLX thread reach it: at once, or when all ranks of a group have theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from daemon.shared.errors import SidecarError

Act = Callable[[], None]
"""Acts on a result; runs on the MLX thread."""
Fail = Callable[[SidecarError], None]
"""Takes the error that work ended with; runs on the MLX thread."""


class WorkTicket(NamedTuple):
    """
    Work that has begun.

    Attributes:
        number: Its number, in the order in which work begins.
        work: What it is, in words that are the same on each rank of a group.
    """

    number: int
    work: str


class Answers(Protocol):
    """Takes the end of each work."""

    def ticket(self, work: str, fail: Fail, over: Callable[[], bool]) -> WorkTicket:
        """Number work that begins now, on the MLX thread; `over` tells whether no call waits for it any more."""

    def done(self, ticket: WorkTicket, act: Act, result: object) -> None:
        """Note that work has a result, and what is to be done with it; any thread."""

    def failed(self, ticket: WorkTicket, fail: Fail, error: SidecarError) -> None:
        """Note that work has failed; any thread."""


class Posted(Answers):
    """
    Results reach the MLX thread at once.

    Args:
        post: Runs a function on the MLX thread; any thread may call it.
    """

    def __init__(self, post: Callable[[Act], None]) -> None:
        self._post = post

    def ticket(self, work: str, fail: Fail, over: Callable[[], bool]) -> WorkTicket:
        """Return number zero: none is needed."""
        return WorkTicket(0, work)

    def done(self, ticket: WorkTicket, act: Act, result: object) -> None:
        """Post what is to be done with a result."""
        self._post(act)

    def failed(self, ticket: WorkTicket, fail: Fail, error: SidecarError) -> None:
        """Post an error."""
        self._post(lambda: fail(error))
