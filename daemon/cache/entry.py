"""What the model cache hands out: leases on loaded models, and tickets for models that are being loaded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar, cast

M = TypeVar("M")

MOST_NAMES = 16
"""Names of a model in memory that are remembered and shown: the first, and those that were used last."""


class Stage(Enum):
    """A phase of a load, in order."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming_up"


class Outcome(Enum):
    """How a caller got its model."""

    HIT = "hit"
    LOADED = "loaded"
    UNCACHED = "uncached"


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far a load is.

    Attributes:
        bytes_done: Bytes done in its stage.
        bytes_total: Bytes to do in its stage; 0 if unknown.
        evicting: Models that make room for it.
        needs: Bytes that the model takes, told once, when that is known and before any of them is taken.
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
A load in slices: it yields after each, may be closed at any yield, and returns the model. The yield that tells what the
model needs comes before the first that takes memory: it goes on when there is room.
"""


class Source(Protocol):
    """Where a model comes from. Equal keys are the same model, whatever its name."""

    @property
    def key(self) -> Hashable:
        """Identity of the content."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def size_bytes(self) -> int:
        """Bytes that it is expected to take."""


@dataclass(slots=True, eq=False)
class Entry(Generic[M]):
    """
    A model in memory. Times are those of the injected clock, in seconds.

    Attributes:
        names: The names that it was asked for by, in order, MOST_NAMES at most: several may stand for one content.
        leases: Requests that use it now.
        draining: Whether it was dropped while in use.
    """

    key: Hashable
    names: list[str]
    model: M
    nbytes: int
    ttl: float
    loaded_at: float
    last_used: float
    load_time: float
    use_count: int = 0
    leases: int = 0
    pinned: bool = False
    draining: bool = False
    _asked: dict[str, int] = field(default_factory=dict, repr=False)
    """By name, which use of the model was the last one under it."""

    @property
    def name(self) -> str:
        """The name that it was loaded by."""
        return self.names[0]

    def used_as(self, name: str) -> None:
        """Count a use of it under a name. Beyond MOST_NAMES, the one that was not used for longest is forgotten."""
        self.use_count += 1
        self._asked[name] = self.use_count
        if name not in self.names:
            self.names.append(name)
        if len(self.names) > MOST_NAMES:
            oldest = min(self.names[1:], key=lambda one: self._asked.get(one, 0))
            self.names.remove(oldest)
            self._asked.pop(oldest, None)

    def forget_model(self) -> None:
        """Let go of the model, so that its memory returns although somebody still looks at the entry."""
        self.model = cast("M", None)

    @property
    def evictable(self) -> bool:
        """Whether it may be dropped to make room."""
        return not (self.leases or self.pinned)

    def is_stale(self, now: float) -> bool:
        """Whether it was idle for its time to live. A zero time to live makes every idle entry stale."""
        return self.evictable and now - self.last_used >= self.ttl

    def expires_in(self, now: float) -> float | None:
        """Return the seconds until it is stale; None while it is in use or pinned."""
        return max(0.0, self.ttl - (now - self.last_used)) if self.evictable else None


class ModelLease(Generic[M]):
    """
    Keeps a model usable, also after its eviction, invalidation or expiry. Release it exactly once.

    Attributes:
        entry: The model in memory.
    """

    __slots__ = ("_on_release", "_released", "entry")

    def __init__(self, entry: Entry[M], on_release: Callable[[Entry[M]], None]) -> None:
        self.entry = entry
        self._on_release = on_release
        self._released = False

    @property
    def model(self) -> M:
        """The model; usable until release."""
        return self.entry.model

    def release(self) -> None:
        """
        End the use; the last release of a dropped model frees its memory.

        Raises:
            RuntimeError: If it was released before.
        """
        if self._released:
            raise RuntimeError(f"a lease on {self.entry.name} was released twice")
        self._released = True
        self._on_release(self.entry)


@dataclass(slots=True, eq=False)
class Ticket(Generic[M]):
    """
    One caller's wait for a model. It ends with a lease or an error; `cancel` ends it early.

    Attributes:
        progress: The latest of the load that it waits for.
        lease: The model, once it is ready.
        error: Why there will be none.
        outcome: How the model was got, once it is ready.
        evicted: Models that made room for it.
        pin: Pins or unpins the entry once ready; None leaves it.
        ttl: Time to live that the entry gets once ready, in seconds; None leaves it.
    """

    name: str
    pin: bool | None = None
    ttl: float | None = None
    progress: Progress = Progress(Stage.QUEUED)
    lease: ModelLease[M] | None = None
    error: Exception | None = None
    outcome: Outcome | None = None
    evicted: tuple[str, ...] = ()
    _abandon: Callable[[Ticket[M]], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.lease is not None or self.error is not None

    def wait_for(self, abandon: Callable[[Ticket[M]], None]) -> None:
        """Begin to wait; `abandon` is called if the caller cancels first."""
        self._abandon = abandon

    def succeed(self, lease: ModelLease[M], outcome: Outcome) -> None:
        """End with a model."""
        self.lease, self.outcome, self._abandon = lease, outcome, None

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.error, self._abandon = error, None

    def cancel(self) -> None:
        """Stop waiting, or give the lease back. The last caller that cancels abandons the load. Harmless twice."""
        if self.lease is not None:
            lease, self.lease = self.lease, None
            lease.release()
        elif self._abandon is not None:
            abandon, self._abandon = self._abandon, None
            abandon(self)
