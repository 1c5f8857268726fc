"""
The model cache: loaded models, shared by all callers and bounded by bytes, number and idle time.

It is pure policy: no MLX, no gRPC, a single thread; the clock and the loader are injected. Requests share a load of the
same content, and at most a single load runs at a time (`load_queue.py`).

A model in memory is leased by requests, pinned, or idle. Eight events drop models:

    event                        method        drops                     until
    1 a load begins              _begin        idle models, LRU first    the bytes of its files and a slot are free
    2 its real size is known     _weigh        idle models, LRU first    these bytes and a slot are free
    3 a load or a use ends       _trim         idle models, LRU first    the cache is within its budget
    4 KV, or a load beside it     shed          idle models, LRU first    so many bytes are free
    5 the system lacks memory    shed          idle models, LRU first    so many bytes are free
    6 an idle time ends          evict_stale   each model of that age
    7 a stale model is wanted    _fresh        that model; it is loaded anew
    8 Invalidate                 invalidate    that model, even if it is leased or pinned

Events 1 and 2 drop nothing if even all idle models would not make enough room: the load fails with BUDGET_IN_USE. Room
is made before weights are read, so that the peak stays within the budget. Event 3 matters if a model takes more than it
said, or if leases kept room from being made. It spares the model that was used last: the next request would only load
it again. Events 4 and 5 drop cached prefixes first (`engine_memory.py` and `pressure.py` in `engine/memory/`), and no
models if `evict_on_memory_pressure` is off. A leased model that Invalidate drops is *draining*: no request finds it any
more, and its memory is freed when its last lease ends. With a budget of 0 each model drains from its load on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar

from daemon.cache.entry import Entry, ModelLease
from daemon.cache.limits import ModelCounters, ModelLimits, in_use
from daemon.cache.load import Load, Loadable, Loaded, LoadOutcome, Progress, Ticket
from daemon.cache.load_queue import LoadJob, LoadQueue

M = TypeVar("M")
S = TypeVar("S", bound=Loadable)


class ModelCache(Generic[S, M]):
    """
    Models in memory, least recently used first.

    Args:
        limits: Bytes, number and idle time of the models.
        loader: Starts a load in slices; gets the source, and whether the first caller skips the warm-up.
        clock: Returns seconds that never go back.
        on_free: Called after a model was dropped for good, to return its memory.
    """

    def __init__(
        self,
        limits: ModelLimits,
        loader: Callable[[S, bool], Load[M]],
        clock: Callable[[], float],
        on_free: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits
        self.counters = ModelCounters()
        self._loader = loader
        self._clock = clock
        self._on_free = on_free
        self._entries: dict[Hashable, Entry[M]] = {}
        """Least recently used first."""
        self._draining: dict[Entry[M], None] = {}
        self._loads: LoadQueue[S, M] = LoadQueue(self._begin, self._weigh, self._finish, on_free)
        self._serial = count()

    def get_or_load(
        self, source: S, *, pin: bool | None = None, ttl: float | None = None, skip_warmup: bool = False
    ) -> Ticket[M]:
        """
        Ask for a model.

        Args:
            source: The model.
            pin: Pins or unpins it once it is loaded; None leaves that as it is.
            ttl: Seconds of idle time after which it is dropped; None leaves that as it is.
            skip_warmup: Passed to the loader if this call starts the load.

        Returns:
            A ticket, done at once if the model is in memory. Else it waits for a load, which this call joins or starts.

        Raises:
            SidecarError: MODEL_EXCEEDS_BUDGET if its files alone exceed the budget; nothing is read or evicted.
        """
        ticket: Ticket[M] = Ticket(source.name, pin, ttl)
        entry = self._fresh(source.key)
        if entry is not None:
            self.counters.hits += 1
            self._grant(ticket, entry, LoadOutcome.HIT)
            ticket.evicted = self._trim()
            return ticket
        self.counters.misses += 1
        self.limits.refuse_if_never(source.name, source.size_bytes)
        # Without a budget each call has a model of its own, so that no two calls share a load.
        load_key = source.key if self.limits.budget_bytes else (source.key, next(self._serial))
        self._loads.join(load_key, ticket, source, skip_warmup)
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
        """Drop a model, pinned or not, and return whether it was in memory. Its leases stay usable."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def unpin(self, key: Hashable) -> None:
        """Let a model be evicted that was pinned; one that is not in memory is no error."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.pinned = False
            self._trim()

    def clear(self) -> None:
        """Drop every model. Leases stay usable."""
        for entry in list(self._entries.values()):
            self._drop(entry)

    def evict_stale(self) -> int:
        """Drop the models that were idle for their time to live, and return how many there were."""
        now = self._clock()
        stale = [entry for entry in self._entries.values() if entry.is_stale(now)]
        for entry in stale:
            self._evict(entry)
        return len(stale)

    def shed(self, nbytes: int) -> int:
        """
        Drop idle models until `nbytes` are free, because another part of the engine or of the system needs memory.

        Returns:
            Bytes that became free; 0 if `evict_on_memory_pressure` is off.
        """
        if not self.limits.evict_on_memory_pressure:
            return 0
        victims = self._evict_until(lambda freed, _: freed >= nbytes)
        return sum(entry.nbytes for entry in victims)

    @property
    def spare_bytes(self) -> int:
        """Bytes that `shed` could free."""
        return sum(entry.nbytes for entry in self._idle()) if self.limits.evict_on_memory_pressure else 0

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
        Check that the entries, their order and the limits agree.

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
            assert entry.leases > 0, "an entry without leases drains"
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

    def _begin(self, job: LoadJob[S, M]) -> Load[M]:
        job.started_at = self._clock()
        job.evicted = self._make_room(job.source.name, job.nbytes)
        return self._loader(job.source, job.skip_warmup)

    def _weigh(self, job: LoadJob[S, M], nbytes: int) -> None:
        """Make room for the bytes that a model really takes: a configuration can ask for more than its files have."""
        self.limits.refuse_if_never(job.source.name, nbytes)
        job.nbytes = 0  # or the estimate would count in `total_bytes` beside the real size
        job.evicted += self._make_room(job.source.name, nbytes)
        job.nbytes = nbytes

    def _finish(self, job: LoadJob[S, M], loaded: Loaded[M]) -> None:
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
            self._grant(ticket, entry, LoadOutcome.LOADED if cached else LoadOutcome.UNCACHED)
        evicted = job.evicted + self._trim()
        for ticket in job.tickets:
            ticket.evicted = evicted

    def _grant(self, ticket: Ticket[M], entry: Entry[M], outcome: LoadOutcome) -> None:
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
        """
        Evict until a model fits, and return the names of the evicted models.

        Raises:
            SidecarError: BUDGET_IN_USE if it does not fit now. Nothing was evicted then.
        """
        if not self.limits.budget_bytes:
            return ()
        bytes_free = self.limits.budget_bytes - self.total_bytes
        slots_free = self.limits.max_models - len(self._entries)

        def fits(freed_bytes: int, freed_slots: int) -> bool:
            return bytes_free + freed_bytes >= nbytes and slots_free + freed_slots >= 1

        idle = self._idle()
        if not fits(sum(entry.nbytes for entry in idle), len(idle)):
            holders = [entry for entry in self.entries() if not entry.evictable]
            raise in_use(name, nbytes, self.limits, holders)
        return _names(self._evict_until(fits))

    def _trim(self) -> tuple[str, ...]:
        """Evict until the cache is within its budget, and return the names. The model that was used last stays."""
        excess = self.total_bytes - self.limits.budget_bytes
        if excess <= 0 or not self._entries:
            return ()
        last_used = next(reversed(self._entries.values()))
        return _names(self._evict_until(lambda freed, _: freed >= excess, spare=last_used))

    def _evict_until(self, is_enough: Callable[[int, int], bool], spare: Entry[M] | None = None) -> list[Entry[M]]:
        """
        Evict idle models, least recently used first, until enough is free or none is left.

        Args:
            is_enough: Gets the bytes and the number of the models evicted so far.
            spare: A model that stays.

        Returns:
            The evicted models.
        """
        victims: list[Entry[M]] = []
        freed = 0
        for entry in self._idle():
            if is_enough(freed, len(victims)):
                break
            if entry is not spare:
                self._evict(entry)
                victims.append(entry)
                freed += entry.nbytes
        return victims

    def _idle(self) -> list[Entry[M]]:
        """Return the models that may be evicted, least recently used first."""
        return [entry for entry in self._entries.values() if entry.evictable]

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


def _names(entries: list[Entry[M]]) -> tuple[str, ...]:
    return tuple(name for entry in entries for name in entry.names)
