"""Scheduling decisions: who may start, and how much of a prompt to compute at a time. Pure; times are passed in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

CHUNK_SECONDS = 0.25
"""A chunk of prefill should take no longer, because running streams wait for it."""

MIN_CHUNK = 16
MAX_CHUNK = 2048
_FIRST_CHUNK = 256


@dataclass(slots=True)
class ChunkSizer:
    """
    Finds, for each model, the number of prompt tokens that take about `CHUNK_SECONDS`.

    It moves by at most a factor of two at a time, so that one slow chunk (a first use of a kernel, a busy machine)
    does not throw it off.
    """

    _sizes: dict[Hashable, float] = field(default_factory=dict)

    def size(self, model: Hashable) -> int:
        """Return how many tokens the next chunk should have."""
        return int(self._sizes.get(model, _FIRST_CHUNK))

    def measured(self, model: Hashable, tokens: int, seconds: float) -> None:
        """Learn from a chunk. Chunks that were cut short by the end of the prompt say little and are left out."""
        size = self._sizes.get(model, float(_FIRST_CHUNK))
        if tokens < int(size):
            return
        factor = min(2.0, max(0.5, CHUNK_SECONDS / max(seconds, 1e-9)))
        self._sizes[model] = min(MAX_CHUNK, max(MIN_CHUNK, size * factor))


class Waiting(Protocol):
    """A request that waits for a slot."""

    @property
    def model_key(self) -> Hashable:
        """The model that it waits for."""


W = TypeVar("W", bound=Waiting)


def startable(
    waiting: Iterable[W], running: Callable[[Hashable], int], max_batch: int, fits: Callable[[W], bool]
) -> W | None:
    """
    Return the request to start next: the first whose model has a free slot, in order of arrival.

    A request that does not fit in memory now holds up those behind it: letting smaller ones pass would starve it.

    Args:
        waiting: Requests whose model is loaded, oldest first.
        running: Returns how many requests of a model run.
        max_batch: Most that may.
        fits: Whether a request fits in memory now; may make room.
    """
    for request in waiting:
        if running(request.model_key) < max_batch:
            return request if fits(request) else None
    return None
