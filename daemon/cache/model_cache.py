"""
The model cache: a byte budget, slots and idle times over loaded models; one load at a time, shared by all who ask.

Pure policy: no mlx, no grpc, one thread, clock and loader injected. Victims go before the newcomer is read, so that
the peak stays within the budget, and what is in use or pinned is never a victim.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Generic, TypeVar

from daemon.cache.entry import Entry, Lease, Load, Loaded, Outcome, Progress, Source, Stage, Ticket
from daemon.errors import Reason, SidecarError

M = TypeVar("M")
S = TypeVar("S", bound=Source)

RETRY_IN_USE = 2.0
"""Seconds after which a caller may ask again for room that others use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What the cache may hold.

    Attributes:
        budget_bytes: Most bytes of weights; 0 disables caching: each call loads, uses and frees its own.
        max_models: Most models.
        ttl: Idle time to live of an entry, in seconds.
        evict_on_memory_pressure: Whether idle models may be dropped when memory is short elsewhere.
    """

    budget_bytes: int
    max_models: int = 4
    ttl: float = 3600.0
    evict_on_memory_pressure: bool = True


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of lookups that found their model loaded; 0.0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


@dataclass(slots=True, eq=False)
class _Loading(Generic[S, M]):
    """A load and those who wait for it."""

    source: S
    key: Hashable
    options: object
    tickets: list[Ticket[M]] = field(default_factory=list)
    steps: Load[M] | None = None
    started_at: float = 0.0
    evicted: tuple[str, ...] = ()


class ModelCache(Generic[S, M]):
    """
    Models in memory, least recently used first.

    Args:
        limits: What it may hold.
        loader: Starts a load in slices; gets the source and the options of the first caller.
        clock: Seconds that never go back.
        on_free: Called after a model was dropped for good, to return its memory.
    """

    def __init__(
        self,
        limits: Limits,
        loader: Callable[[S, object], Load[M]],
        clock: Callable[[], float],
        on_free: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits
        self.counters = Counters()
        self._loader = loader
        self._clock = clock
        self._on_free = on_free
        self._entries: dict[Hashable, Entry[M]] = {}
        self._draining: set[Entry[M]] = set()
        self._loading: dict[Hashable, _Loading[S, M]] = {}
        self._queue: deque[_Loading[S, M]] = deque()
        self._active: _Loading[S, M] | None = None
        self._uncached = count()

    def get_or_load(
        self, source: S, *, pin: bool | None = None, ttl: float | None = None, options: object = None
    ) -> Ticket[M]:
        """
        Ask for a model: a ticket that is done at once if the model is loaded, or else joins or starts its load.

        Raises:
            SidecarError: MODEL_EXCEEDS_BUDGET if it can never fit; nothing is read or evicted.
        """
        ticket: Ticket[M] = Ticket(source.name, pin, ttl)
        entry = self._fresh(source.key)
        if entry is not None:
            self.counters.hits += 1
            self._grant(ticket, entry, Outcome.HIT)
            return ticket
        self.counters.misses += 1
        self._refuse_oversize(source)
        self._join(ticket, source, options)
        return ticket

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._active is not None or bool(self._queue)

    def step(self) -> None:
        """Do one slice of the oldest load."""
        if self._active is None:
            if not self._queue:
                return
            self._active = self._queue.popleft()
            self._guard(self._begin, self._active)
        else:
            self._guard(self._advance, self._active)

    def contains(self, key: Hashable) -> bool:
        """Whether a model is in memory and not stale."""
        entry = self._entries.get(key)
        return entry is not None and not entry.is_stale(self._clock())

    def invalidate(self, key: Hashable) -> bool:
        """Drop a model, pinned or not, and tell whether it was there. Its leases stay usable."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def clear(self) -> None:
        """Drop every model. Leases stay usable."""
        for entry in list(self._entries.values()):
            self._drop(entry)

    def evict_stale(self) -> int:
        """Drop the entries that were idle for their time to live, and return how many there were."""
        now = self._clock()
        stale = [entry for entry in self._entries.values() if entry.is_stale(now)]
        for entry in stale:
            self._evict(entry)
        return len(stale)

    def shed(self, nbytes: int) -> int:
        """
        Drop idle models until `nbytes` are free, least recently used first, because memory is short elsewhere.

        Returns:
            Bytes that became free; 0 if `evict_on_memory_pressure` is off.
        """
        freed = 0
        while freed < nbytes and self.limits.evict_on_memory_pressure:
            victim = self._victim()
            if victim is None:
                break
            freed += victim.nbytes
            self._evict(victim)
        return freed

    def entries(self) -> list[Entry[M]]:
        """Return all models in memory, draining ones included, most recently used first."""
        return sorted([*self._entries.values(), *self._draining], key=lambda e: -e.last_used)

    def loading(self) -> list[tuple[S, Progress]]:
        """Return the loads that run or wait, in order."""
        jobs = [job for job in (self._active, *self._queue) if job is not None]
        return [(job.source, job.tickets[0].progress) for job in jobs if job.tickets]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights in memory, draining ones included."""
        return sum(entry.nbytes for entry in (*self._entries.values(), *self._draining))

    @property
    def oldest_entry_age(self) -> float | None:
        """Seconds since the oldest entry was loaded; None when the cache is empty."""
        now = self._clock()
        return max((now - entry.loaded_at for entry in self._entries.values()), default=None)

    @property
    def is_empty(self) -> bool:
        """Whether no model is cached."""
        return not self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def check_integrity(self) -> None:
        """
        Compare all states with each other.

        Raises:
            AssertionError: If they disagree.
        """
        for entry in self._entries.values():
            assert not entry.draining, "a dropped entry is still cached"
            assert entry.leases >= 0, "a lease was released twice"
        for entry in self._draining:
            assert entry.draining, "a draining entry does not know it"
            assert entry.leases > 0, "an entry drains though nobody uses it"
        waiting = [job for job in (self._active, *self._queue) if job is not None]
        assert {id(job) for job in waiting} == {id(job) for job in self._loading.values()}, "a load is lost"
        assert all(job.tickets for job in waiting), "a load goes on though nobody waits for it"
        assert len(self._entries) <= self.limits.max_models, "more models than slots"

    def _fresh(self, key: Hashable) -> Entry[M] | None:
        entry = self._entries.get(key)
        if entry is not None and entry.is_stale(self._clock()):
            self._evict(entry)
            return None
        return entry

    def _refuse_oversize(self, source: S) -> None:
        needed, budget = source.size_bytes, self.limits.budget_bytes
        if budget and needed > budget:
            raise SidecarError(
                Reason.MODEL_EXCEEDS_BUDGET,
                f"{source.name} needs {needed} bytes but model_cache_mb allows {budget}; "
                "raise it or use a smaller model",
                metadata={"needed_bytes": str(needed), "budget_bytes": str(budget)},
            )

    def _join(self, ticket: Ticket[M], source: S, options: object) -> None:
        disabled = self.limits.budget_bytes == 0
        key = (source.key, next(self._uncached)) if disabled else source.key
        job = self._loading.get(key)
        if job is None:
            job = self._loading[key] = _Loading(source, key, options)
            self._queue.append(job)
        else:
            ticket.progress = job.tickets[0].progress
        job.tickets.append(ticket)
        ticket._abandon = lambda t: self._leave(job, t)

    def _leave(self, job: _Loading[S, M], ticket: Ticket[M]) -> None:
        job.tickets.remove(ticket)
        if job.tickets:
            return
        steps, job.steps = job.steps, None
        self._forget(job)
        if steps is not None:
            steps.close()
            del steps
            self._on_free()

    def _guard(self, act: Callable[[_Loading[S, M]], None], job: _Loading[S, M]) -> None:
        try:
            act(job)
        except Exception as error:
            job.steps = None
            self._forget(job)
            for ticket in job.tickets:
                ticket.error, ticket._abandon = error, None
            self._on_free()

    def _forget(self, job: _Loading[S, M]) -> None:
        del self._loading[job.key]
        if self._active is job:
            self._active = None
        else:
            self._queue.remove(job)

    def _begin(self, job: _Loading[S, M]) -> None:
        job.started_at = self._clock()
        job.evicted = tuple(victim.name for victim in self._make_room(job.source))
        job.steps = self._loader(job.source, job.options)
        self._report(job, Progress(Stage.LOADING, 0, job.source.size_bytes))

    def _advance(self, job: _Loading[S, M]) -> None:
        assert job.steps is not None
        try:
            self._report(job, next(job.steps))
        except StopIteration as end:
            self._finish(job, end.value)

    def _report(self, job: _Loading[S, M], progress: Progress) -> None:
        progress = replace(progress, evicting=job.evicted)
        for ticket in job.tickets:
            ticket.progress = progress

    def _finish(self, job: _Loading[S, M], loaded: Loaded[M]) -> None:
        now = self._clock()
        source = job.source
        entry = Entry(
            job.key, source.name, loaded.model, loaded.nbytes, self.limits.ttl, now, now, now - job.started_at
        )
        self._forget(job)
        cached = self.limits.budget_bytes > 0
        if cached:
            self._entries[job.key] = entry
        else:
            entry.draining = True
            self._draining.add(entry)
        for ticket in job.tickets:
            ticket.evicted = job.evicted
            self._grant(ticket, entry, Outcome.LOADED if cached else Outcome.UNCACHED)
        self._trim()

    def _grant(self, ticket: Ticket[M], entry: Entry[M], outcome: Outcome) -> None:
        entry.last_used = self._clock()
        entry.use_count += 1
        entry.leases += 1
        if ticket.pin is not None:
            entry.pinned = ticket.pin
        if ticket.ttl is not None:
            entry.ttl = ticket.ttl
        ticket.outcome = outcome
        ticket.lease = Lease(entry, self._release)

    def _release(self, entry: Entry[M]) -> None:
        entry.leases -= 1
        entry.last_used = self._clock()
        if entry.draining and not entry.leases:
            self._draining.discard(entry)
            entry.forget_model()
            self._on_free()

    def _make_room(self, source: S) -> list[Entry[M]]:
        victims: list[Entry[M]] = []
        budget = self.limits.budget_bytes
        while budget and not self._fits(source.size_bytes):
            victim = self._victim()
            if victim is None:
                raise self._in_use(source)
            self._evict(victim)
            victims.append(victim)
        return victims

    def _fits(self, newcomer: int) -> bool:
        return len(self._entries) < self.limits.max_models and self.total_bytes + newcomer <= self.limits.budget_bytes

    def _trim(self) -> None:
        """Weights may take more than their files: make up for it now that the actual bytes are known."""
        while self.limits.budget_bytes and self.total_bytes > self.limits.budget_bytes:
            victim = self._victim()
            if victim is None:
                return
            self._evict(victim)

    def _victim(self) -> Entry[M] | None:
        idle: Iterator[Entry[M]] = (entry for entry in self._entries.values() if entry.evictable)
        return min(idle, key=lambda entry: entry.last_used, default=None)

    def _evict(self, entry: Entry[M]) -> None:
        self.counters.evictions += 1
        self._drop(entry)

    def _drop(self, entry: Entry[M]) -> None:
        del self._entries[entry.key]
        if entry.leases:
            entry.draining = True
            self._draining.add(entry)
        else:
            entry.forget_model()
            self._on_free()

    def _in_use(self, source: S) -> SidecarError:
        holders = {entry.name: str(entry.nbytes) for entry in (*self._entries.values(), *self._draining)}
        listing = ", ".join(f"{name} ({nbytes} bytes)" for name, nbytes in holders.items())
        return SidecarError(
            Reason.BUDGET_IN_USE,
            f"no room for {source.name} ({source.size_bytes} bytes): in use or pinned are {listing}",
            metadata={
                "needed_bytes": str(source.size_bytes),
                "budget_bytes": str(self.limits.budget_bytes),
                **holders,
            },
            retry_after=RETRY_IN_USE,
        )
