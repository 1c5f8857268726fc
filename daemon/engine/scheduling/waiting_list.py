"""
Holds requests with a loaded model until they get a slot, and decides which of them starts next. Pure.

It also supplies the figures of the batching window: how many requests have just arrived, and which models they wait
for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from daemon.engine.scheduling.policy import Candidate, Turns


class Waiting(Candidate, Protocol):
    """A request that waits for a slot."""

    @property
    def arrived(self) -> float:
        """Its arrival, in seconds of the engine's clock."""

    @property
    def rows(self) -> int:
        """Slots that it takes."""


W = TypeVar("W", bound=Waiting)


class WaitingList(Generic[W]):
    """Requests in order of arrival."""

    def __init__(self) -> None:
        self._requests: list[W] = []
        self._turns: Turns[W] = Turns()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[W]:
        return iter(self._requests)

    @property
    def models(self) -> set[Hashable]:
        """The models that requests wait for."""
        return {request.model_key for request in self._requests}

    def add(self, request: W) -> None:
        """Append a request."""
        self._requests.append(request)

    def remove(self, request: W) -> None:
        """Remove a request; an unknown one is no error."""
        if request in self._requests:
            self._requests.remove(request)

    def arrived_since(self, moment: float) -> int:
        """Return the number of requests if all of them arrived since a moment; 0 if an older one waits."""
        return 0 if any(request.arrived < moment for request in self._requests) else len(self._requests)

    def start_next(self, running: Callable[[Hashable], int], max_batch: int, fits: Callable[[W], bool]) -> W | None:
        """Remove and return the request that gets a slot now; None if none can start. See `startable`."""
        request = startable(self._requests, running, max_batch, fits, self._turns)
        if request is not None:
            self._requests.remove(request)
        return request


def startable(
    waiting: Iterable[W], running: Callable[[Hashable], int], max_batch: int, fits: Callable[[W], bool], turns: Turns[W]
) -> W | None:
    """
    Return the waiting request that gets a slot, and note its turn; None if none can start.

    A request that does not fit in memory now blocks the requests behind it: smaller ones that pass would starve it. One
    that needs more slots than are free blocks those of its model alone.

    Args:
        waiting: Requests with a loaded model, oldest first.
        running: Returns how many requests of a model have a slot.
        max_batch: Most slots of a model.
        fits: Whether a request fits in memory now; may free memory.
        turns: The order of turns.
    """
    candidates = [request for request in waiting if running(request.model_key) < max_batch]
    first = turns.first(candidates)
    while first is not None and running(first.model_key) + first.rows > max_batch:
        candidates = [request for request in candidates if request.model_key != first.model_key]
        first = turns.first(candidates)
    if first is None or not fits(first):
        return None
    turns.took(first, candidates)
    return first
