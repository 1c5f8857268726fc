"""The model cache does, step by step, the same as a short reference of its rules."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.cache.limits import ModelLimits
from daemon.cache.load import Ticket
from daemon.shared.errors import SidecarError
from tests.support.builders import FakeModels, FakeSource, Weights

NAMES = st.sampled_from("abcd")


@dataclass(eq=False)
class Row:
    """A model in memory."""

    name: str
    size: int
    ttl: float
    used: float
    leases: int = 0
    pinned: bool = False

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return not self.leases and not self.pinned


class Reference:
    """The rules of the cache, written for clarity. `rows` are in the order of their last use, the oldest first."""

    def __init__(self, limits: ModelLimits) -> None:
        self.limits = limits
        self.rows: list[Row] = []
        self.dropped: list[Row] = []
        self.now = 0.0
        self.hits = self.misses = self.evictions = 0

    @property
    def total(self) -> int:
        """Bytes in memory. A model that was dropped in use counts until its last lease ends."""
        return sum(row.size for row in (*self.rows, *self.dropped))

    def get(self, source: FakeSource, pin: bool | None, ttl: float | None) -> Row | str:
        """Get or load a model at once, and return the leased row or the reason of the refusal."""
        row = next((row for row in self.rows if row.name == source.name), None)
        if row is not None and row.idle and self.now - row.used >= row.ttl:
            self.evict(row)
            row = None
        if row is None:
            self.misses += 1
            refusal = self._room(source)
            if refusal:
                return refusal
            assert source.actual_bytes is not None
            row = Row(source.name, source.actual_bytes, self.limits.ttl, self.now)
            (self.rows if self.limits.budget_bytes else self.dropped).append(row)
        else:
            self.hits += 1
        self._touch(row)
        row.leases += 1
        row.pinned = row.pinned if pin is None else pin
        row.ttl = row.ttl if ttl is None else ttl
        self._trim()
        return row

    def _room(self, source: FakeSource) -> str:
        budget = self.limits.budget_bytes
        if 0 < budget < source.size_bytes:
            return "MODEL_EXCEEDS_BUDGET"
        victims: list[Row] = []
        candidates = [row for row in self.rows if row.idle]
        while budget and (
            self.total - sum(row.size for row in victims) + source.size_bytes > budget
            or len(self.rows) - len(victims) >= self.limits.max_models
        ):
            if not candidates:
                return "BUDGET_IN_USE"
            victims.append(candidates.pop(0))
        for row in victims:
            self.evict(row)
        return "" if source.fails_in is None else "MODEL_CORRUPT"

    def release(self, row: Row) -> None:
        """End a use."""
        row.leases -= 1
        self._touch(row)
        if row in self.dropped and not row.leases:
            self.dropped.remove(row)
        self._trim()

    def _touch(self, row: Row) -> None:
        row.used = self.now
        if row in self.rows:
            self.rows.remove(row)
            self.rows.append(row)

    def _trim(self) -> None:
        for row in [row for row in self.rows[:-1] if row.idle] if self.limits.budget_bytes else []:
            if self.total > self.limits.budget_bytes:
                self.evict(row)

    def evict(self, row: Row) -> None:
        """Drop and count."""
        self.evictions += 1
        self.drop(row)

    def drop(self, row: Row) -> None:
        """Drop a model; it drains if it is in use."""
        self.rows.remove(row)
        if row.leases:
            self.dropped.append(row)


class ReferenceMachine(RuleBasedStateMachine):
    """The same calls to the cache and to the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.start(250, 3, 10.0)
        self.held: list[tuple[Ticket[Weights], Row]] = []

    @initialize(
        budget=st.sampled_from([0, 100, 250, 250]), slots=st.integers(1, 4), ttl=st.sampled_from([0.0, 10.0, 99.0])
    )
    def start(self, budget: int, slots: int, ttl: float) -> None:
        """Choose the limits."""
        self.models = FakeModels(budget, max_models=slots, ttl=ttl)
        self.reference = Reference(self.models.cache.limits)
        self.reference.now = self.models.clock.now

    @rule(
        name=NAMES,
        size=st.sampled_from([10, 60, 90, 120]),
        grows=st.sampled_from([0, 60, -1]),
        fails=st.sampled_from([None, None, None, None, 1]),
        pin=st.sampled_from([None, None, None, None, True, False, False]),
        ttl=st.sampled_from([None, None, None, 0.0, 5.0]),
    )
    def get(self, name: str, size: int, grows: int, fails: int | None, pin: bool | None, ttl: float | None) -> None:
        """Get or load a model and keep the lease."""
        source = FakeSource(name, size, size + grows, 2, fails)
        expected = self.reference.get(source, pin, ttl)
        try:
            ticket = self.models.cache.get_or_load(source, pin=pin, ttl=ttl)
            self.models.finish()
            refusal: Exception | None = ticket.error
        except SidecarError as error:
            refusal = error
        if isinstance(refusal, SidecarError):
            assert refusal.reason == expected
        else:
            assert isinstance(expected, Row)
            self.held.append((ticket, expected))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """End a use."""
        ticket, row = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.reference.release(row)
        ticket.cancel()

    @precondition(lambda self: self.held)
    @rule()
    def release_the_oldest(self) -> None:
        """End the use that has lasted longest."""
        ticket, row = self.held.pop(0)
        self.reference.release(row)
        ticket.cancel()

    @rule(name=NAMES)
    def invalidate(self, name: str) -> None:
        """Drop a model, pinned or not."""
        rows = [row for row in self.reference.rows if row.name == name]
        for row in rows:
            self.reference.drop(row)
        assert self.models.cache.invalidate(f"key of {name}") == bool(rows)

    @rule(seconds=st.sampled_from([1.0, 4.0, 10.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.models.clock.pass_(seconds)
        self.reference.now += seconds

    @rule()
    def sweep(self) -> None:
        """Drop stale models."""
        now = self.reference.now
        stale = [row for row in self.reference.rows if row.idle and now - row.used >= row.ttl]
        for row in stale:
            self.reference.evict(row)
        assert self.models.cache.evict_stale() == len(stale)

    @rule(nbytes=st.integers(0, 200))
    def shed(self, nbytes: int) -> None:
        """Free memory for others."""
        freed = 0
        for row in [row for row in self.reference.rows if row.idle]:
            if freed < nbytes:
                freed += row.size
                self.reference.evict(row)
        assert self.models.cache.shed(nbytes) == freed

    @invariant()
    def both_agree(self) -> None:
        """The cache and the reference agree on models, order, bytes, uses and counters."""
        cache, reference = self.models.cache, self.reference
        cache.check_integrity()
        kept = [entry for entry in cache.entries() if not entry.draining]
        assert sorted((e.name, e.nbytes, e.leases, e.pinned, e.last_used) for e in kept) == sorted(
            (row.name, row.size, row.leases, row.pinned, row.used) for row in reference.rows
        )
        assert cache.total_bytes == reference.total
        assert (cache.counters.hits, cache.counters.misses) == (reference.hits, reference.misses)
        assert cache.counters.evictions == reference.evictions
        assert sorted(e.name for e in cache.entries() if e.draining) == sorted(row.name for row in reference.dropped)


class TestReference(ReferenceMachine.TestCase):  # type: ignore[misc, valid-type]
    """The length of every test run."""

    settings = settings(max_examples=200, stateful_step_count=50, deadline=None, print_blob=True)


@pytest.mark.slow
class TestReferenceForLong(ReferenceMachine.TestCase):  # type: ignore[misc, valid-type]
    """A million steps."""

    settings = settings(max_examples=10_000, stateful_step_count=100, deadline=None, print_blob=True)
