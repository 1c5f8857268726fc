"""
The model cache: a byte budget, slots and idle times over loaded models; one load at a time, shared by all who ask.

Pure policy: no mlx, no grpc, one thread, clock and loader injected. Victims go before the newcomer is read, so that
the peak stays within the budget, and what is in use or pinned is never a victim.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar

from daemon.cache.entry import Entry, Load, Loaded, ModelLease, Outcome, Progress, Source, Ticket
from daemon.cache.limits import Counters, ModelLimits, in_use
from daemon.cache.load_queue import Job, LoadQueue

M = TypeVar("M")
S = TypeVar("S", bound=Source)


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
        limits: ModelLimits,
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
        """Least recently used first."""
        self._draining: dict[Entry[M], None] = {}
        self._loads: LoadQueue[S, M] = LoadQueue(self._begin, self._weigh, self._finish, on_free)
        self._serial = count()

    def get_or_load(
        self, source: S, *, pin: bool | None = None, ttl: float | None = None, options: object = None
    ) -> Ticket[M]:
        """
        Ask for a model: a ticket that is done at once if the model is loaded, or else joins or starts its load.

        Raises:
            SidecarError: MODEL_EXCEEDS_BUDGET if it can never fit by its files; nothing is read or evicted.
        """
        ticket: Ticket[M] = Ticket(source.name, pin, ttl)
        entry = self._fresh(source.key)
        if entry is not None:
            self.counters.hits += 1
            self._grant(ticket, entry, Outcome.HIT)
            ticket.evicted = tuple(self._trim())
            return ticket
        self.counters.misses += 1
        self.limits.refuse_if_never(source.name, source.size_bytes)
        shared = source.key if self.limits.budget_bytes else (source.key, next(self._serial))
        self._loads.join(shared, ticket, source, options)
        return ticket

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return len(self._loads) > 0

    def step(self) -> None:
        """Do one slice of the oldest load."""
        self._loads.step()

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
        for entry in list(self._entries.values()) if self.limits.evict_on_memory_pressure else []:
            if freed < nbytes and entry.evictable:
                freed += entry.nbytes
                self._evict(entry)
        return freed

    def entries(self) -> list[Entry[M]]:
        """Return all models in memory, draining ones included, most recently used first."""
        return sorted([*self._draining, *self._entries.values()], key=lambda entry: entry.last_used)[::-1]

    def loading(self) -> list[tuple[S, Progress]]:
        """Return the loads that run or wait, in order."""
        return self._loads.progress()

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights: cached, draining, and expected of the load under way."""
        return sum(entry.nbytes for entry in (*self._entries.values(), *self._draining)) + self._loads.nbytes

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
        for key, entry in self._entries.items():
            assert entry.key == key, "an entry is cached under another key"
            assert not entry.draining, "a dropped entry is still cached"
            assert entry.leases >= 0, "a lease was released twice"
            assert entry.model is not None, "a cached entry has lost its model"
        for entry in self._draining:
            assert entry.draining, "a draining entry does not know it"
            assert entry.leases > 0, "an entry drains though nobody uses it"
        uses = [entry.last_used for entry in self._entries.values()]
        assert uses == sorted(uses), "entries are not in the order of their last use"
        assert len(self._entries) <= self.limits.max_models, "more models than slots"
        spare = [entry for entry in self._entries.values() if entry.evictable][:-1]
        assert not spare or self.total_bytes <= self.limits.budget_bytes, "over budget though idle models could go"
        self._loads.check_integrity()

    def _fresh(self, key: Hashable) -> Entry[M] | None:
        entry = self._entries.get(key)
        if entry is not None and entry.is_stale(self._clock()):
            self._evict(entry)
            return None
        return entry

    def _begin(self, job: Job[S, M]) -> Load[M]:
        job.started_at = self._clock()
        job.evicted = self._make_room(job.source.name, job.nbytes)
        return self._loader(job.source, job.options)

    def _weigh(self, job: Job[S, M], nbytes: int) -> None:
        """Files may say little of a model's size: what it really takes gets room, or is refused, before it is taken."""
        self.limits.refuse_if_never(job.source.name, nbytes)
        job.nbytes = 0  # its first estimate is part of the total
        job.evicted += self._make_room(job.source.name, nbytes)
        job.nbytes = nbytes

    def _finish(self, job: Job[S, M], loaded: Loaded[M]) -> None:
        now = self._clock()
        source = job.source
        entry = Entry(
            source.key, [source.name], loaded.model, loaded.nbytes, self.limits.ttl, now, now, now - job.started_at
        )
        cached = self.limits.budget_bytes > 0
        if cached:
            self._entries[entry.key] = entry
        else:
            entry.draining = True
            self._draining[entry] = None
        for ticket in job.tickets:
            self._grant(ticket, entry, Outcome.LOADED if cached else Outcome.UNCACHED)
        evicted = (*job.evicted, *self._trim())
        for ticket in job.tickets:
            ticket.evicted = evicted

    def _grant(self, ticket: Ticket[M], entry: Entry[M], outcome: Outcome) -> None:
        self._touch(entry)
        entry.used_as(ticket.name)
        entry.leases += 1
        if ticket.pin is not None:
            entry.pinned = ticket.pin
        if ticket.ttl is not None:
            entry.ttl = ticket.ttl
        ticket.succeed(ModelLease(entry, self._release), outcome)

    def _release(self, entry: Entry[M]) -> None:
        entry.leases -= 1
        self._touch(entry)
        if entry.draining and not entry.leases:
            del self._draining[entry]
            entry.forget_model()
            self._on_free()
        self._trim()

    def _touch(self, entry: Entry[M]) -> None:
        entry.last_used = self._clock()
        if not entry.draining:
            self._entries[entry.key] = self._entries.pop(entry.key)

    def _make_room(self, name: str, nbytes: int) -> tuple[str, ...]:
        """Evict until a newcomer fits, and return the names of the victims; if it cannot fit now, evict nothing."""
        idle = (entry for entry in self._entries.values() if entry.evictable)
        bytes_free = self.limits.budget_bytes - self.total_bytes
        slots_free = self.limits.max_models - len(self._entries)
        victims: list[Entry[M]] = []
        while self.limits.budget_bytes and (bytes_free < nbytes or slots_free < 1):
            victim = next(idle, None)
            if victim is None:
                holders = [entry for entry in self.entries() if not entry.evictable]
                raise in_use(name, nbytes, self.limits.budget_bytes, holders)
            victims.append(victim)
            bytes_free += victim.nbytes
            slots_free += 1
        for victim in victims:
            self._evict(victim)
        return tuple(name for victim in victims for name in victim.names)

    def _trim(self) -> list[str]:
        """Weights may take more than their files: make up for it once the actual bytes are known, but keep the last."""
        trimmed: list[str] = []
        idle = [entry for entry in self._entries.values() if entry.evictable]
        for entry in idle if self.limits.budget_bytes else []:
            last = entry is next(reversed(self._entries.values()))
            if self.total_bytes > self.limits.budget_bytes and not last:
                trimmed += entry.names
                self._evict(entry)
        return trimmed

    def _evict(self, entry: Entry[M]) -> None:
        self.counters.evictions += 1
        self._drop(entry)

    def _drop(self, entry: Entry[M]) -> None:
        del self._entries[entry.key]
        if entry.leases:
            entry.draining = True
            self._draining[entry] = None
        else:
            entry.forget_model()
            self._on_free()
