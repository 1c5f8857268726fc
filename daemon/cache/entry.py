"""A model in memory, as the model cache keeps it, and the leases that requests hold on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

M = TypeVar("M")

MOST_NAMES = 16
"""Names of a model in memory that are remembered and shown: the first, and those that were used last."""


@dataclass(slots=True, eq=False)
class Entry(Generic[M]):
    """
    A model in memory. Times are those of the cache's clock, in seconds.

    Attributes:
        key: Identity of its content.
        names: The names that it was asked for by, in order, MOST_NAMES at most: several may stand for one content.
        model: The loaded model.
        nbytes: Bytes of its weights.
        ttl: Idle time after which it is dropped.
        loaded_at: When its load ended.
        last_used: When a lease on it began or ended last.
        load_time: How long its load took.
        use_count: Leases that were ever given on it.
        leases: Requests that use it now.
        pinned: Whether only Invalidate may drop it.
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
    _last_use_as: dict[str, int] = field(default_factory=dict, repr=False)
    """By name, the number of the last use under it."""

    @property
    def name(self) -> str:
        """The name that it was loaded by."""
        return self.names[0]

    def used_as(self, name: str) -> None:
        """Count a use under a name. Beyond MOST_NAMES, the name that was used longest ago is forgotten."""
        self.use_count += 1
        self._last_use_as[name] = self.use_count
        if name not in self.names:
            self.names.append(name)
        if len(self.names) > MOST_NAMES:
            # The first name stays: logs and Stats have shown the model under it since its load.
            oldest = min(self.names[1:], key=lambda name: self._last_use_as.get(name, 0))
            self.names.remove(oldest)
            self._last_use_as.pop(oldest, None)

    def forget_model(self) -> None:
        """Drop the reference to the model, so that its memory returns even if the entry is still referred to."""
        self.model = cast("M", None)

    @property
    def evictable(self) -> bool:
        """Whether it may be dropped to make room."""
        return not (self.leases or self.pinned)

    def is_stale(self, now: float) -> bool:
        """Return whether it was idle for its time to live. A time to live of zero makes every idle model stale."""
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

    def split(self, parts: int) -> list[ModelLease[M]]:
        """Return leases in place of this one, which ends when the last of them is released; at least one."""
        left = parts

        def released(_: Entry[M]) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.release()

        return [ModelLease(self.entry, released) for _ in range(parts)]

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
