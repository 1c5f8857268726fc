"""A load as the model cache sees it: a generator of slices, its progress and result, and tickets that wait for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from daemon.cache.entry import ModelLease

M = TypeVar("M")


class Loadable(Protocol):
    """A model that can be loaded. Equal keys are the same model, whatever its name."""

    @property
    def key(self) -> Hashable:
        """Identity of the content."""

    @property
    def name(self) -> str:
        """The name that a caller gave it, for messages and logs."""

    @property
    def size_bytes(self) -> int:
        """Bytes that it is expected to take: those of its files."""


class Stage(Enum):
    """A phase of a load, in order."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming_up"


@dataclass(frozen=True, slots=True)
class Progress:
    """
    The progress of a load.

    Attributes:
        stage: The phase that it is in.
        bytes_done: Bytes done in its stage.
        bytes_total: Bytes to do in its stage; 0 if unknown.
        evicting: Names of models that make room for it.
        needs: Bytes that the model takes. Set in a single report: when they are known, and before any of them is taken.
    """

    stage: Stage
    bytes_done: int = 0
    bytes_total: int = 0
    evicting: tuple[str, ...] = ()
    needs: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """The result of a load: the model and the bytes that it really takes."""

    model: M
    nbytes: int


Load = Generator[Progress, None, Loaded[M]]
"""
A load in slices. It yields after each slice, may be closed at any yield, and returns the model.

The report with `needs` comes before the first slice that takes memory. The load is resumed once there is room.
"""


class LoadOutcome(Enum):
    """How a call got its model: from memory, by a load, or by a load for this call alone (there is no budget)."""

    HIT = "hit"
    LOADED = "loaded"
    UNCACHED = "uncached"


@dataclass(slots=True, eq=False)
class Ticket(Generic[M]):
    """
    A call's wait for a model. It ends with a lease or an error; `cancel` ends it early.

    Attributes:
        name: The name that the call gave the model.
        pin: Pins or unpins the model once it is loaded; None leaves that as it is.
        ttl: Idle time that the model may have, in seconds; None leaves that as it is.
        progress: The latest progress of the load that it waits for.
        lease: The model, once it is loaded.
        error: Why there will be no model.
        outcome: How the model was got, once it is loaded.
        evicted: Names of models that made room for it.
    """

    name: str
    pin: bool | None = None
    ttl: float | None = None
    progress: Progress = Progress(Stage.QUEUED)
    lease: ModelLease[M] | None = None
    error: Exception | None = None
    outcome: LoadOutcome | None = None
    evicted: tuple[str, ...] = ()
    _abandon: Callable[[Ticket[M]], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.lease is not None or self.error is not None

    def wait_for(self, abandon: Callable[[Ticket[M]], None]) -> None:
        """Begin to wait; `abandon` is called if the call is cancelled first."""
        self._abandon = abandon

    def succeed(self, lease: ModelLease[M], outcome: LoadOutcome) -> None:
        """End with a model."""
        self.lease, self.outcome, self._abandon = lease, outcome, None

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.error, self._abandon = error, None

    def cancel(self) -> None:
        """Stop waiting, or give the lease back. The last ticket of a load abandons it. A second call does nothing."""
        if self.lease is not None:
            lease, self.lease = self.lease, None
            lease.release()
        elif self._abandon is not None:
            abandon, self._abandon = self._abandon, None
            abandon(self)
